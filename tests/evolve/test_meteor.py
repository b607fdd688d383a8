"""METEOR in miniature, every stage real; teacher and judge are a server of this test's own."""

import json
import re
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from selfevo_jax.config import load_config
from selfevo_jax.errors import UserError
from selfevo_jax.evolve import criteria, guiding, meteor
from selfevo_jax.evolve.importing.reading import import_file
from selfevo_jax.evolve.launch import check_config
from selfevo_jax.learn.carried import OPTIMIZER
from selfevo_jax.records import Example, Pair, Prompt, Row, Sample

CONFIGS = Path(__file__).parents[2] / "configs"
CRITERIA = meteor.CRITERIA.listed("criteria")
END_OF_ADVICE = guiding.ADVICE.messages[-1]["content"][-60:]
ADVICE = "the second step is not what was asked"


class Teacher(BaseHTTPRequestHandler):
    """Answers, advises, and marks: always best what is shown first, as judges are known to do."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["messages"][-1]["content"]
        self.server.asked.append(asked)
        message = {"role": "assistant", "content": self.reply(asked)}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
        sent = json.dumps({"id": "x", "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def reply(self, asked: str) -> str:
        if "JSON list" in asked:
            shown = len(re.findall("<answer_", asked))
            marks = [dict.fromkeys(CRITERIA, 9 if place == 0 else 4) for place in range(shown)]
            return json.dumps([m | {"justification": f"Place {n}."} for n, m in enumerate(marks)])
        if "Verdict: right" in asked:
            output = asked.partition("<output>\n")[2].partition("\n</output>")[0]
            return ("Verdict: right", f"Verdict: wrong\n{ADVICE}", "right, I think")[
                len(output) % 3
            ]
        return "Along the guideline. Answer: 7"

    def log_message(self, *words) -> None:
        pass


@pytest.fixture(scope="module")
def teacher():
    with ThreadingHTTPServer(("127.0.0.1", 0), Teacher) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


TAUGHT = (
    "distil.by=teacher", "distil.compare=true", "iterate.verdict=judge", "criteria.questions=2",
    "iterate.answer.n=4", "iterate.train_every=2", "learn.batch_size=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def taught(method, teacher):
    """A run with a teacher and a judge behind a server."""
    run, address = method("taught"), f"http://127.0.0.1:{teacher.server_port}/v1#gpt"
    roles = [f"roles.{role}.model={address}" for role in ("teacher", "judge", "rival_1")]
    roles += ["roles.rival_3.model=random:tiny?seed=2", "roles.teacher.cap_tokens=1000000"]
    run.settings = [*TAUGHT, *roles, "roles.teacher.price_out=2.5"]
    run.planned = run(*run.settings, dry_run=True)
    run.said = run(*run.settings)
    return run


def kept(run, stage: str, kind) -> dict:
    return {row["id"]: kind.from_json(row) for row in run.rows(stage)}


def test_each_stage_reaches_the_next(taught, teacher):
    """7.1 b: guideline -> teacher's request -> lesson, by their declared fields."""
    prompts = kept(taught, "round_01/prompts", Prompt)
    guidelines = kept(taught, "round_01/guideline", Sample)
    answers = kept(taught, "round_01/distil", Sample)
    assert len(answers) == len(guidelines) == len(prompts) == 8
    for answer in answers.values():
        text = guidelines[answer.parent_id].text.strip()
        assert any(f"Guideline: {text}" in asked for asked in teacher.asked)
        assert guiding.text_of(prompts[answer.prompt_id]) not in text  # the reply alone
    for row in taught.rows("round_01/learn"):
        lesson = Example.from_json(row)
        assert lesson.completion == answers[lesson.source_id].text
        assert tuple(lesson.prompt) == prompts[lesson.prompt_id].messages


def test_what_the_teacher_cost_is_counted_in_the_workdir(taught):
    """It goes with the run to another machine; the judge on the same server has no cap."""
    with sqlite3.connect(taught.workdir / "servers" / "server.sqlite") as ledger:
        (spent,) = ledger.execute("SELECT prompt, completion FROM spending").fetchall()
    calls = spent[0] // 5
    assert calls >= 8 and spent == (5 * calls, 4 * calls)


def test_the_plan_says_the_most_that_servers_may_write(taught):
    """What was then asked of the teacher is that; a finished stage asks for nothing more."""
    found = re.findall(
        r"roles\.(\w+) is on a server: at most (\d+) replies of (\d+) tokens in all, (.*?);",
        taught.planned,
    )
    most = {name: (int(replies), int(tokens), money) for name, replies, tokens, money in found}
    assert most.keys() == {"teacher", "judge", "rival_1"}
    replies, tokens, money = most["teacher"]
    assert replies == len([*taught.rows("round_01/distil"), *taught.rows("round_01/unguided")])
    assert money == f"at most {tokens * 2.5 / 1e6:.4f} in money"
    assert most["judge"][2] == "prices not given"
    again = taught(*taught.settings, dry_run=True)
    assert (
        "roles.teacher is on" not in again and "roles.judge is on" in again
    )  # its inputs might change


def test_a_revision_sees_the_answer_and_the_advice(taught):
    first, second = (kept(taught, f"round_02/answer_{turn}", Sample) for turn in (1, 2))
    opinions = {row["source_id"]: row["values"] for row in taught.rows("round_02/opinion_1")}
    wrong = {name for name, values in opinions.items() if values["right"] is False}
    assert wrong and {answer.parent_id for answer in second.values()} == wrong
    for name in wrong:
        opinion = Row.make(source_id=name, values=opinions[name])
        prompt = kept(taught, "round_01/prompts", Prompt)[first[name].prompt_id]
        row = first[name], opinion, prompt
        (message,) = guiding.revise_messages(row, file=meteor.REVISE, letters=4000)
        assert first[name].text.strip() in message["content"] and ADVICE in message["content"]


def bursts_of(run, number: int) -> list[list[dict]]:
    """The examples of every burst of a part, in order; those that were trained on."""
    folder = run.workdir / f"round_0{number}"
    made = sorted(folder.glob("burst_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    rows = [run.rows(f"round_0{number}/{path.name}") for path in made]
    assert all((folder / f"train_{n}").exists() == bool(r) for n, r in enumerate(rows, start=1))
    return [burst for burst in rows if burst]


def test_only_what_was_judged_right_is_learned_in_bursts(taught):
    """Never judged right, never learned; each kept answer once, every two of them a training."""
    said = [r for n in (2, 3) for t in (1, 2) for r in taught.rows(f"round_0{n}/opinion_{t}")]
    right = {row["source_id"] for row in said if row["values"]["right"] is True}
    bursts = [bursts_of(taught, number) for number in (2, 3)]
    learned = [row["source_id"] for part in bursts for burst in part for row in burst]
    assert len(learned) == len(set(learned)) and set(learned) == right
    assert len(bursts[0]) > 1  # more than one training after a part
    sizes = [len(burst) for part in bursts for burst in part]
    assert set(sizes[:-1]) == {2} and sizes[-1] in (1, 2)
    (one, two) = [row["values"] for row in taught.rows("round_03/turns")]
    assert one["failed"] > 0 and one["right"] + one["wrong"] + one["failed"] == one["n"]
    assert one["n"] + two["n"] == len(said)


def test_the_optimiser_goes_on_from_burst_to_burst(taught):
    """Adam's own count of steps runs through; nothing is left by the other trainings."""
    steps = 0
    for number in (2, 3):
        for burst in range(1, len(bursts_of(taught, number)) + 1):
            folder = taught.workdir / f"round_0{number}/train_{burst}"
            steps += len((folder / "metrics.jsonl").read_text().splitlines())
            left = load_file(folder / OPTIMIZER)
            assert [int(array) for name, array in left.items() if name.endswith("count")] == [steps]
            assert OPTIMIZER in json.loads((folder / "stage.json").read_text())["files"]
    assert steps > 2
    for number in (1, 4):
        assert not (taught.workdir / f"round_0{number}/train" / OPTIMIZER).exists()


def test_self_training_compares_two_decodings_of_one_question(taught):
    """7.1 e: also with batches of one; at its start the loss is the margin, not 0 and not NaN."""
    cheap, costly = (kept(taught, f"round_04/{name}", Sample) for name in ("cheap", "costly"))
    pairs = kept(taught, "round_04/pair", Pair)
    assert pairs
    for pair in pairs.values():
        assert costly[pair.chosen_id].parent_id == pair.rejected_id
        assert pair.prompt_id == cheap[pair.rejected_id].prompt_id
        assert (pair.chosen, pair.rejected) == (
            costly[pair.chosen_id].text,
            cheap[pair.rejected_id].text,
        )
    lines = (taught.workdir / "round_04/train/metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["loss"] == pytest.approx(1.0, abs=1e-4)


MODELS = ["base", "distilled", "iterated", "trained", "rival_1", "rival_3"]


def test_rotation_cancels_a_judge_that_likes_the_first_place(taught):
    """Every answer stands once in every place, so this judge's marks say nothing: all equal."""
    rows = [row["values"] for row in taught.rows("round_04/criteria")]
    assert [row["model"] for row in rows] == MODELS
    assert {row["n"] for row in rows} == {2} and {row["failed"] for row in rows} == {0}
    assert [row["overall"] for row in rows] == pytest.approx([(9 + 4 * 5) / 6] * 6)
    for criterion in CRITERIA:
        assert sum(row[f"{criterion} share"] for row in rows) == pytest.approx(1)
    sides = [row["values"] for row in taught.rows("round_01/quality")]
    assert [side["model"] for side in sides] == ["with", "without"]
    assert [side["accuracy share"] for side in sides] == pytest.approx([0.5, 0.5])


def test_further_models_are_marked_beside_the_stages(taught):
    """Roles without a model are not; a rival answers the same held-out questions."""
    base, rival = (taught.rows(f"round_04/answer.{name}") for name in ("base", "rival_1"))
    assert {row["text"] for row in rival} == {"Along the guideline. Answer: 7"}
    assert [row["prompt_id"] for row in rival] == [row["prompt_id"] for row in base]
    assert not (taught.workdir / "round_04/answer.rival_2").exists()
    assert {row["policy"] for row in taught.rows("round_04/answer.rival_3")} == {"rival_3"}


def test_an_evaluation_is_shaped_like_the_published_ones(taught):
    row = taught.rows("round_04/criteria.evaluation")[0]["values"]
    assert set(row) == {"question", "answers", "evaluation", "rotations", "faults"}
    assert list(row["answers"]) == MODELS
    assert [marks["Answer"] for marks in row["evaluation"]] == [1, 2, 3, 4, 5, 6]
    for marks in row["evaluation"]:
        assert list(marks)[1:-1] == [name.capitalize() for name in CRITERIA]
        assert marks["Accuracy"] == pytest.approx(29 / 6)
        assert marks["Justification"] == "Place 0."  # as it was said where this answer stood first
    for turn, rotation in enumerate(row["rotations"]):
        said = [marks["justification"] for marks in rotation]
        assert said == [f"Place {(place - turn) % 6}." for place in range(6)]
    base = {a["prompt_id"]: a["text"] for a in taught.rows("round_04/answer.base")}
    assert row["answers"]["base"] in base.values()


def test_an_evaluation_of_a_run_is_imported(taught, tmp_path):
    """As the published files are: the answers by model, and each one's marks and words."""
    path = taught.workdir / "round_04/criteria.evaluation/records.jsonl"
    report = import_file("meteor", path, tmp_path / "out")
    assert report.rows == {"our evaluation": 2}

    def read(name: str) -> list[dict]:
        return [json.loads(line) for line in (tmp_path / f"out/{name}.jsonl").open()]

    said = {row["source_id"]: row["values"] for row in read("rows")}
    asked = {prompt["messages"][-1]["content"]: prompt["id"] for prompt in read("prompts")}
    for record in (row["values"] for row in taught.rows("round_04/criteria.evaluation")):
        question = asked[record["question"]]
        answers = {s["policy"]: s for s in read("samples") if s["prompt_id"] == question}
        assert {name: s["text"] for name, s in answers.items()} == record["answers"]
        for name, marks in zip(MODELS, record["evaluation"], strict=True):
            assert said[answers[name]["id"]] == {k: v for k, v in marks.items() if k != "Answer"}
        assert said[question] == {name: record[name] for name in ("rotations", "faults")}


def test_the_judge_reads_to_the_end_of_its_request(teacher, taught):
    """7.1 g: however long an answer is, the words after it are there, and it is what is cut."""
    prompt = Prompt.make(
        task="t", messages=({"role": "user", "content": "How?"},), answer="1", meta={}
    )
    long = sample("p", "x" * 9000 + "THE END")
    (message,) = guiding.advice_messages((long, prompt), letters=500)
    assert message["content"].endswith(END_OF_ADVICE) and "THE END" not in message["content"]
    row = (long, prompt, "0")
    (message,) = criteria.criteria_messages(row, file=meteor.CRITERIA, letters=500)
    end = meteor.CRITERIA.messages[-1]["content"][-80:]
    assert message["content"].endswith(end) and len(message["content"]) < 2500
    advised = [asked for asked in teacher.asked if "Verdict: right" in asked]
    assert advised and all(asked.endswith(END_OF_ADVICE) for asked in advised)


def test_without_a_pair_self_training_is_left_out_and_all_else_is_shown(method):
    """Greedy on both sides: the two decodings say the same."""
    run = method("no_pair")
    said = run(
        "rounds=1", "prompts.n=4", "self_train.cheap.temperature=0.0", "self_train.costly.n=1",
        "self_train.costly.temperature=0.0", "iterate.answer.n=4",
    )  # fmt: skip
    (row,) = run.rows("round_03/decodings")
    assert row["values"]["questions"] == 4 and row["values"]["pair"] == 0
    assert "no pair" in row["values"]["self-training"] and "no pair" in said
    assert not (run.workdir / "round_03/train").exists()
    policies = [row["values"]["policy"] for row in run.rows("round_03/table")]
    assert policies[:2] == ["base", "round_01"] and "round_03" not in policies
    assert json.loads((run.workdir / "run.json").read_text())["best"] == policies[-1]


def test_beams_are_the_costly_decoding(method):
    run = method("beams")
    run(
        "rounds=1", "prompts.n=4", "self_train.costly.n=1", "self_train.costly.num_beams=4",
        "self_train.costly.temperature=0.0", "iterate.train_every=2",
    )  # fmt: skip
    cheap, costly = (kept(run, f"round_03/{name}", Sample) for name in ("cheap", "costly"))
    for sample in costly.values():  # what beams are for
        assert sum(sample.logps) > sum(cheap[sample.parent_id].logps)
    pairs = run.rows("round_03/pair")
    assert pairs and {(pair["chosen_id"], pair["rejected_id"]) for pair in pairs} <= {
        (sample.id, sample.parent_id) for sample in costly.values()
    }
    (row,) = run.rows("round_03/decodings")
    assert row["values"]["pair"] == len(pairs)
    assert (run.workdir / "round_03/train/adapter").exists()


def test_killed_and_gone_on_with_gives_the_same_bytes(method, content_of):
    small = "prompts.n=4", "iterate.answer.n=16", "rounds=1", "iterate.train_every=2"
    whole = method("whole")
    whole(*small)
    assert content_of(method.killed("killed", 60, *small)) == content_of(whole)


def sample(parent: str, text: str, tokens=(1, 2), logps=(-1.0, -1.0)) -> Sample:
    return Sample.make(
        prompt_id="p", parent_id=parent, text=text, tokens=tokens, logps=logps, finish="stop",
        seed=0, policy="x",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("Verdict: right", True),
        ("Verdict: wrong\nAdd the second term.", False),
        ("Verdict: wrong", None),  # no advice
        ("That is not right at all.", None),  # the word alone is no verdict
        ("Verdict: right\nVerdict: wrong\nBoth.", None),
    ],
)
def test_a_verdict_is_a_line_not_a_word(reply, right):
    (row,) = guiding.judge_opinion((sample("a", reply), sample("p", "5")), turn=1)
    assert row.values["right"] is right
    assert (row.values["advice"] == "Add the second term.") is (right is False)


def test_bursts_are_whole_until_the_last():
    waiting = list(range(25))
    assert guiding.burst(waiting, 10, False) == waiting[:10]
    assert guiding.burst(waiting[:9], 10, False) == []
    assert guiding.burst(waiting, 10, True) == waiting[:10]
    assert guiding.burst(waiting[:9], 10, True) == waiting[:9]
    assert guiding.burst([], 10, True) == []


def test_costly_decodings_win_by_likelihood_of_a_token_not_by_length():
    prompt = Prompt.make(task="t", messages=({"role": "user", "content": "?"},), answer="", meta={})
    cheap = sample("p", "cheap", (1, 2), (-1.0, -1.0))
    likely = sample(cheap.id, "likely", (1, 2, 3), (-0.5, -0.5, -0.5))
    long = sample(cheap.id, "long", (1,) * 9, (-0.2,) * 9)
    rare = sample(cheap.id, "rare", (3,), (-0.9,))

    def pairs(*costly: Sample) -> list[Pair]:
        return guiding.costly_over_cheap([(c, cheap, prompt) for c in costly], length_ratio=1.5)

    (pair,) = pairs(rare, likely)
    assert (pair.chosen, pair.rejected) == ("likely", "cheap")
    assert pairs(likely, long) == []  # the best by token is far longer
    sure = sample(cheap.id, "sure", (1, 2), (-0.1, -0.1))
    assert [pair.chosen for pair in pairs(likely, sure)] == ["sure"]
    assert pairs(sample(cheap.id, "cheap ")) == []
    assert pairs(sample(cheap.id, "")) == []


def test_marks_that_cannot_be_read_are_failures():
    good = json.dumps([dict.fromkeys(CRITERIA, 3), dict.fromkeys(CRITERIA, 8)])
    prompt = Prompt.make(task="t", messages=({"role": "user", "content": "?"},), answer="", meta={})
    older = sample("p", "older")
    newer = sample(older.id, "newer")

    def read(*replies: str) -> dict:
        rows = [(sample(newer.id, reply), newer, older, prompt) for reply in replies]
        (row,) = criteria.evaluation(rows, ("one", "two"), CRITERIA)
        return row

    row = read(good, good)
    assert row.values["answers"] == {"one": "older", "two": "newer"}
    assert row.values["evaluation"][0]["Accuracy"] == 5.5  # 3 shown first, 8 shown second
    failed = read(good, "Both are good.")
    assert failed.values["evaluation"] == [] and len(failed.values["faults"]) == 1
    table = criteria.criteria_rows([row, failed])
    assert [(r.values["n"], r.values["failed"]) for r in table] == [(1, 1), (1, 1)]
    wrong = json.dumps([dict.fromkeys(CRITERIA, 3)])
    assert read(wrong, good).values["evaluation"] == []
    assert read(good, json.dumps([dict.fromkeys(CRITERIA, 3) | {"justification": 1}] * 2)).values[
        "faults"
    ] == ["a justification is no text"]


@pytest.mark.parametrize("variant", ("llama3_8b", "qwen2_7b", "cpu", "tiny"))
def test_every_variant_is_whole(variant):
    config = load_config(f"{CONFIGS / 'meteor.py'}:{variant}")
    check_config(config)
    assert config.model.startswith("hf:") == (variant not in ("cpu", "tiny"))
    with pytest.raises(UserError, match="use llama3_8b, qwen2_7b, cpu or tiny"):
        load_config(f"{CONFIGS / 'meteor.py'}:8b")


@pytest.mark.parametrize("asked", ["distil.by=teacher", "distil.compare=true"])
def test_nobody_teaches_itself_unawares(method, asked):
    """A teacher that is asked for has to be named; the student's own model can be, in words."""
    run = method("unawares")
    with pytest.raises(
        UserError, match=r"roles\.teacher\.model is not given, .* ask for a teacher"
    ):
        run(asked, dry_run=True)
    said = run(asked, "roles.teacher.model=random:tiny?seed=0", dry_run=True)
    assert re.search(r"round_01/distil +teacher", said)
    assert "round_01/distil" not in run(dry_run=True)


def test_a_role_that_nothing_asks_is_named(method):
    """With gold answers a teacher has nothing to do, which the plan says."""
    run, teacher = method("idle"), "roles.teacher.model=random:tiny?seed=1"
    idle = "roles.teacher is given, and no stage of these settings asks it"
    assert idle in run(teacher, dry_run=True)
    assert idle not in run(teacher, "distil.by=teacher", dry_run=True)
    assert "no stage" not in run(dry_run=True)
