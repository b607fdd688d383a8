"""ELITE in miniature, every stage real: what is learned, shown and evaluated."""

import json
from pathlib import Path

import pytest

from selfevo_jax.config import load_config
from selfevo_jax.errors import UserError
from selfevo_jax.evolve import decisions
from selfevo_jax.evolve.elite import critique_messages
from selfevo_jax.evolve.jax_model import JaxModel
from selfevo_jax.evolve.launch import check_config
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.records import Prompt, Row, Sample
from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.sample.protocol import ScoreRequest

CONFIG = Path(__file__).parents[2] / "configs" / "elite.py"
COMPUTE = {"dtype": "float32", "remat": "none", "mesh": "1,-1,1", "slots": 8, "max_length": 512}


@pytest.fixture(scope="module")
def seen():
    """Every request that engines were asked, and every adapter that they were made with."""
    asked, made = [], []
    generate, generator = JaxGenerator.generate, JaxModel.generator

    def watched(self, requests):
        return generate(self, (asked.append(request) or request for request in requests))

    def opened(self, folder):
        made.append(folder)
        return generator(self, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JaxGenerator, "generate", watched)
        patch.setattr(JaxModel, "generator", opened)
        yield asked, made


@pytest.fixture(scope="module")
def run(method, seen):
    """One whole run, with both baselines."""
    run = method()
    run.said = run()
    return run


def kept(run, stage: str, kind) -> dict:
    return {row["id"]: kind.from_json(row) for row in run.rows(stage)}


def test_the_lesson_is_the_voted_critique_of_that_answer(run):
    """7.1 b: each stage's output reaches the next by its declared fields."""
    prompts = kept(run, "round_01/prompts", Prompt)
    answers, critiques = (kept(run, f"round_01/{s}", Sample) for s in ("answer", "critique"))
    voted, lessons = run.rows("round_01/vote"), run.rows("round_01/learn")
    assert len(lessons) == len(voted) == len(answers) == 6 and len(critiques) == 30
    for row, lesson in zip(voted, lessons, strict=True):
        critique = critiques[row["id"]]
        answer = answers[critique.parent_id]
        assert lesson["completion"] == critique.text.strip()
        asked = critique_messages((answer, prompts[answer.prompt_id]), letters=280)
        assert lesson["prompt"] == list(asked)
        assert answer.text.strip() in asked[-1]["content"]


def test_training_teaches_the_critique(run):
    """7.1 a: after training, the critiques (not the prompts) are likelier."""
    model = JaxModel("random:tiny?seed=0", COMPUTE, Progress())
    adapter = run.workdir / "round_01/train/adapter"
    lessons = run.rows("round_01/learn")

    def score(folder) -> float:
        requests = [ScoreRequest(x["id"], x["prompt"], x["completion"]) for x in lessons]
        return sum(sum(s.logps) for s in model.generator(folder).score(requests))

    assert score(adapter) > score(None) + 1.0
    for line in (run.workdir / "round_01/train/metrics.jsonl").read_text().splitlines():
        step = json.loads(line)
        assert step["loss_tokens"] < step["tokens"] / 4  # the prompts are longer than that


def test_examples_chosen_by_clustering_stand_in_the_next_prompts(run, seen):
    """7.1 c: in round 2, in the requests for answers and for critiques alike."""
    (example,) = [row["values"] for row in run.rows("round_01/next_examples")]
    shown = f"Task: {example['input']}\n\nAnswer: {example['output']}"
    texts = [request.messages[-1]["content"] for request in seen[0]]
    with_example = [text for text in texts if shown in text and example["reason"] in text]
    answers, critiques = run.rows("round_02/answer"), run.rows("round_02/critique")
    assert len(with_example) == len(answers) + len(critiques)
    lessons = run.rows("round_02/learn")
    assert not any(shown in lesson["prompt"][-1]["content"] for lesson in lessons)


def test_evaluation_uses_the_adapter_just_trained(run, seen):
    """7.1 d."""
    made = [None if path is None else str(path.relative_to(run.workdir)) for path in seen[1]]
    for number in (1, 2):
        trained = f"round_{number:02d}/train/adapter"
        assert trained in made
        stage = json.loads((run.workdir / f"round_{number:02d}/evaluate/stage.json").read_text())
        policies = json.loads((run.workdir / "run.json").read_text())["policies"]
        assert stage["stage"]["inputs"]["policy"] == policies[f"round_{number:02d}"]["hash"]
        assert {row["policy"] for row in run.rows(f"round_{number:02d}/evaluate")} == {
            f"round_{number:02d}"
        }


def test_baselines_and_rounds_stand_in_one_table(run):
    rows = [row["values"] for row in run.rows("round_02/table")]
    assert [row["policy"] for row in rows] == [
        "base", "round_01", "sft.round_01", "majority.round_01", "round_02", "sft.round_02",
        "majority.round_02",
    ]  # fmt: skip
    assert all(row["n"] == 4 for row in rows) and "gain" in rows[-1] and "gain" not in rows[0]
    assert "majority.round_02" in run.said.rpartition("table")[2]
    gold = {row["id"]: row["answer"] for row in run.rows("round_01/prompts")}
    for lesson in run.rows("round_01/sft.learn"):
        assert lesson["completion"] == gold[lesson["prompt_id"]]


def test_killed_and_gone_on_with_it_is_the_same(run, method, content_of):
    one = ("rounds=1", "baselines=()")
    whole = method("whole")
    whole(*one)
    killed = method.killed("killed", 20, *one)
    assert content_of(killed) == content_of(whole)


def test_ties_human_critiques_and_learning_the_answer(method, tmp_path):
    """The variants that the default run does not have."""
    people, shown = tmp_path / "people.jsonl", tmp_path / "examples.jsonl"
    first = method("variants")
    first("rounds=1", "baselines=()", "evaluate.n=2")
    question = first.rows("round_01/prompts")[0]["messages"][-1]["content"]
    people.write_text(json.dumps({"question": question, "feedback": "It is fine."}) + "\n")
    shown.write_text(json.dumps({"input": "1+1", "output": "2", "reason": "right"}) + "\n")
    first(
        "baselines=()", "evaluate.n=2", f"human.file={people}", "human.share=1.0",
        f"examples.file={shown}", "examples.from_critiques=false", "adapters=ties",
        "accept.questions=2", "accept.tolerance=1.0", "accept.lost=1.0",
    )  # fmt: skip
    mixed = first.rows("round_01/mix")
    assert [row["text"] for row in mixed if row["policy"] == "human"] == ["It is fine."]
    assert len(mixed) == 6
    assert (first.workdir / "round_02/merge/adapter/adapter_model.safetensors").exists()
    assert {row["policy"] for row in first.rows("round_02/evaluate")} == {"round_02.merge"}


def test_a_refused_adapter_is_not_merged(method):
    """With a tolerance below zero every round has to gain, and a random model gains nothing."""
    run = method("refused")
    run(
        "rounds=2", "prompts.n=2", "baselines=()", "evaluate.n=2", "adapters=ties",
        "accept.questions=2", "accept.tolerance=-1.0",
    )  # fmt: skip
    (decided,) = [row["values"] for row in run.rows("round_02/accept")]
    assert (decided["policy"], decided["accepted"]) == ("round_02", False)
    assert not (run.workdir / "round_02/merge").exists()


def by_script(answers, tolerance, lost_share):
    """What a validation split might say of four rounds: better, within the tolerance, worse."""
    best, name = list(dict.fromkeys(answer.policy for answer in answers))
    score = {"round_01": 0.9, "round_02.merge": 0.85, "round_03.merge": 0.1}.get(name, 0.9)
    values = {"policy": name, "accepted": score > 0.5, "why": "", "n": 2, "best": best}
    values |= {"score": score, "best_score": 0.5 if best == "base" else 0.9, "gained": 0, "lost": 0}
    return [Row.make(source_id=name, values=values)]


def test_what_was_rolled_back_with_a_later_round_is_not_merged_either(method, monkeypatch):
    """Round 2 is within the tolerance but not the best; with round 3 the run goes back to 1."""
    monkeypatch.setattr(decisions, "verdict_on_round", by_script)
    run = method("rolled_back")
    run(
        "rounds=4", "prompts.n=2", "baselines=()", "evaluate.n=2", "adapters=ties",
        "examples.from_critiques=false", "accept.questions=2",
    )  # fmt: skip

    def merged(number: int) -> set[str]:
        stage = json.loads((run.workdir / f"round_0{number}/merge/stage.json").read_text())
        return set(stage["stage"]["inputs"])

    assert merged(2) == {"round_01", "round_02"}
    assert merged(3) == {"round_01", "round_02", "round_03"}
    assert merged(4) == {"round_01", "round_04"}


COLLECTION = """
on_sums = get_config

def get_config(arg=None):
    config = on_sums(arg)
    config.task.name, config.task.args = "natural_instructions", {"data_dir": %r}
    return config
"""


def natural_instructions(folder):
    """Two tasks as the collection stores them; their questions have some 180 letters."""
    folder.mkdir()
    for colour in ("red", "blue"):
        shown = [{"input": "one", "output": "two"}] * 2
        inputs = [f"word {number} of {colour}" for number in range(40)]
        instances = [{"id": text, "input": text, "output": ["two"]} for text in inputs]
        content = {"Definition": ["Say what is next."], "Positive Examples": shown}
        text = json.dumps(content | {"Instances": instances})
        (folder / f"task_{colour}.json").write_text(text)


def test_tasks_of_one_collection_have_examples_of_their_own_that_fit(method, seen, tmp_path):
    """Of Natural Instructions, whose questions hold their task's definition and two examples.

    Uncut, a request of round 2 has some 600 letters, and the model reads 511.
    """
    natural_instructions(tmp_path / "natural_instructions")
    run, config = method("collection"), tmp_path / "config.py"
    config.write_text(CONFIG.read_text() + COLLECTION % str(tmp_path))
    run.config = f"{config}:tiny"
    before = len(seen[0])
    run("letters=290", "baselines=()", "prompts.n=8")
    examples = {row["values"]["task"]: row["values"] for row in run.rows("round_01/next_examples")}
    assert list(examples) == ["task_blue", "task_red"]
    asked = [request.messages[-1]["content"] for request in seen[0][before:]]
    with_example = [text for text in asked if text.count("Task: ") == 2]
    assert len(with_example) == 8 * 6  # all answers and critiques of round 2
    for text in with_example:
        example, _, question = text.rpartition("Task: ")
        own, other = ("red", "blue") if " of red" in question else ("blue", "red")
        assert examples[f"task_{own}"]["input"][-40:] in example and other not in text
        assert examples[f"task_{own}"]["reason"] in example


def test_a_question_and_an_answer_that_are_too_long_are_cut_in_the_middle():
    turn = {"role": "user", "content": "How it begins" + "x" * 9000 + "What is asked"}
    prompt = Prompt.make(task="t", messages=(turn,), answer="1")
    values = {"task": "", "input": "y" * 900 + "end", "output": "short", "reason": "r" * 900}
    example = Row.make(source_id="e", values=values)
    answer = Sample.make(
        prompt_id=prompt.id, parent_id=prompt.id, text="z" * 9000, tokens=(), logps=(),
        finish="stop", seed=0, policy="x",
    )  # fmt: skip
    (plain,) = critique_messages((answer, prompt), [example], letters=1000)
    assert "How it begins" in plain["content"] and "What is asked" in plain["content"]
    assert len(plain["content"]) < 1250 and "Review: r" not in plain["content"]
    short = Prompt.make(task="t", messages=({"role": "user", "content": "1 + 1"},), answer="2")
    (shown,) = critique_messages((answer, short), [example], letters=2000)
    assert "yyend\n\nAnswer: short\n\nReview: rrrr" in shown["content"]
    assert 2000 < len(shown["content"]) < 2250


def test_half_of_the_critiques_are_a_persons_and_the_answer_is_learned(method, tmp_path):
    """LaFFi's mix, the vote on parsed answers, and training on (question -> answer)."""
    run, people = method("mixed"), tmp_path / "people.jsonl"
    small = "rounds=1", "baselines=()", "evaluate.n=2", "prompts.n=12"
    run(*small)
    prompts = run.rows("round_01/prompts")
    said = [{"question": p["messages"][-1]["content"], "feedback": "It is fine."} for p in prompts]
    people.write_text("".join(json.dumps(row) + "\n" for row in said))
    run(
        *small, f"human.file={people}", "human.share=0.5", "learn_to=answer", "vote.by=answers",
        "critique.n=24",
    )  # fmt: skip
    critiques = kept(run, "round_01/critique", Sample)
    parsed = {row["sample_id"]: row["parsed"] for row in run.rows("round_01/parse")}
    voted = run.rows("round_01/vote")
    assert voted
    for row in voted:
        siblings = [n for n, c in critiques.items() if c.parent_id == row["parent_id"]]
        votes = [parsed[name] for name in siblings if parsed[name] is not None]
        assert votes.count(parsed[row["id"]]) == max(map(votes.count, votes))
    mixed = {row["prompt_id"]: row["policy"] == "human" for row in run.rows("round_01/mix")}
    assert mixed == {name: name[0] in "01234567" for name in mixed}
    assert len(mixed) == len(voted) and set(mixed.values()) == {True, False}
    answers, asked = kept(run, "round_01/answer", Sample), {p["id"]: p for p in prompts}
    lessons = run.rows("round_01/learn")
    assert len(lessons) == len(mixed)
    for lesson in lessons:
        assert lesson["completion"] == answers[lesson["source_id"]].text.strip()
        assert lesson["prompt"] == asked[lesson["prompt_id"]]["messages"]


@pytest.mark.slow
def test_four_bits_and_merged_adapters_go_together(method, run):
    """The combination of the 3b, 7b and 13b presets: an NF4 base, adapters merged by TIES."""
    four = method("four_bits")
    four(
        "compute.quant=nf4", "compute.dtype=bfloat16", "compute.remat=full", "adapters=ties",
        "baselines=()", "prompts.n=2", "evaluate.n=2",
    )  # fmt: skip
    assert {row["policy"] for row in four.rows("round_02/evaluate")} == {"round_02.merge"}
    stages = [
        json.loads((r.workdir / "round_01/train/stage.json").read_text()) for r in (four, run)
    ]
    assert len({stage["stage"]["inputs"]["base"] for stage in stages}) == 2
    losses = [
        json.loads(line)["loss"]
        for line in (four.workdir / "round_02/train/metrics.jsonl").read_text().splitlines()
    ]
    assert losses and all(0 < loss < 20 for loss in losses)


@pytest.mark.parametrize("variant", ("3b", "7b", "13b"))
def test_the_presets_are_the_papers(variant):
    config = load_config(f"{CONFIG}:{variant}")
    check_config(config)
    assert (config.compute.quant, config.adapters, config.ties_density) == ("nf4", "ties", 0.2)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vote.contamination=0.6", "contamination=0.6: 0.6 must be from 0.0 to 0.5"),
        ("vote.contamination=-0.1", "contamination=-0.1: .* must be from 0.0 to 0.5"),
        ("examples.clusters=0", "clusters=0: 0 must be at least 1"),
        ("letters=0", "letters=0: 0 must be at least 1"),
        ("human.share=1.5", "human.share=1.5: 1.5 must be from 0.0 to 1.0"),
        ("human.share=-0.5", "human.share=-0.5: -0.5 must be from 0.0 to 1.0"),
    ],
)
def test_a_share_or_number_that_cannot_be_is_refused_before_any_work(method, override, message):
    with pytest.raises(UserError, match=message):
        method("wrong")(override, dry_run=True)


def test_a_wrong_choice_is_one_message(method):
    with pytest.raises(UserError, match="learn_to 'critic'.*critique"):
        method("wrong")("learn_to=critic")
