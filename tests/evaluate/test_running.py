"""Asking a model: choices and replies, what is too long, results that repeat byte for byte."""

import json
import re
import shutil
from itertools import islice

import jax
import pytest

from selfevo_jax import cli
from selfevo_jax.evaluate.asking import Wording, pool_of, questions
from selfevo_jax.evaluate.data import read_split
from selfevo_jax.evaluate.results import summarise
from selfevo_jax.evaluate.running import Manner, outcomes
from selfevo_jax.evaluate.stats import standard_error
from selfevo_jax.evaluate.task import SPLIT_SALT
from selfevo_jax.evaluate.tasks import BENCHMARKS
from selfevo_jax.evolve.evaluated import LocalModel
from selfevo_jax.evolve.tiny import random_model
from selfevo_jax.models.attention import Layout
from selfevo_jax.models.llama import forward, logits
from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.sample.protocol import SamplingParams
from selfevo_jax.text.tokenizer import load_tokenizer
from selfevo_jax.weights.model_files import open_model

GREEDY = SamplingParams(max_new_tokens=4, temperature=0.0)


class Tiny:
    """The random byte model with its engine, as `evolve.jax_model.JaxModel` shows it."""

    source = "random:tiny?seed=0"
    settings = {"max_length": 512, "dtype": "float32"}

    def __init__(self):
        self.files = open_model(random_model(self.source))
        self.tokenizer = load_tokenizer(self.files.path)
        self.params = self.files.load()

    def generator(self, adapter=None, slots=4):
        return JaxGenerator(
            self.files.config, self.params, self.tokenizer, slots=slots, max_length=512,
            prompt_rows=slots,
        )  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFEVO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Tiny()


def folder_of(tmp_path, name, rows):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def asked(tiny, name, data, slots=4, n=None, repeats=1, sampling=GREEDY, **wording):
    benchmark = BENCHMARKS[name]
    model = LocalModel(tiny, None)
    read = read_split(name, benchmark.data, benchmark.split, data)
    manner = Manner(sampling, repeats, 0, model.room, model.show, model.count, model.single)
    some = islice(
        questions(
            benchmark, read, pool_of(benchmark, data, Wording(**wording)), Wording(**wording)
        ),
        n,
    )
    found = list(outcomes(tiny.generator(slots=slots), benchmark, some, manner))
    return sorted(found, key=lambda outcome: outcome.number)


BOOLQ = [
    {"question": f"is {n} even", "passage": f"Numbers like {n} are said to be so.", "answer": True}
    for n in range(5)
]


def whole_logp(tiny, prompt: str, choice: str) -> float:
    """The sum of log-probabilities by one pass over everything, without cache or engine."""
    tokens = tiny.tokenizer.encode(prompt + choice)
    start = len(tiny.tokenizer.encode(prompt))
    array = jax.numpy.array([tokens])
    layout = Layout.plain(jax.numpy.ones((1, len(tokens)), bool))
    hidden = forward(tiny.files.config, tiny.params, array, layout)
    table = jax.nn.log_softmax(logits(tiny.files.config, tiny.params, hidden)[0])
    return float(sum(table[i - 1, tokens[i]] for i in range(start, len(tokens))))


def test_choices_have_the_log_probabilities_of_one_whole_pass(tiny, tmp_path):
    data = folder_of(tmp_path, "boolq/dev.jsonl", BOOLQ)
    for outcome in asked(tiny, "boolq", data):
        wanted = [whole_logp(tiny, outcome.prompt, choice) for choice in (" no", " yes")]
        assert outcome.logps == pytest.approx(wanted, abs=2e-4)
        scores = outcome.readings["none"]["scores"]
        assert scores["acc"] == float(wanted[1] > wanted[0])
        assert scores["acc_norm"] == float(wanted[1] / 3 > wanted[0] / 2)


def test_choices_of_one_token_are_read_from_one_place(tiny, tmp_path):
    """The byte model makes one token of a letter where no space stands before it."""
    row = {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2}
    data = folder_of(tmp_path, "mmlu/anatomy/test.jsonl", [row])
    (outcome,) = asked(tiny, "mmlu_anatomy", data, chat=True)
    assert outcome.replies == ("A", "B", "C", "D") and outcome.prompt_tokens == 0
    assert outcome.prompt.startswith("<|system|>The following are multiple choice")
    sealed = tiny.tokenizer.encode(outcome.prompt, allow_special=True)
    layout = Layout.plain(jax.numpy.ones((1, len(sealed)), bool))
    hidden = forward(tiny.files.config, tiny.params, jax.numpy.array([sealed]), layout)
    table = jax.nn.log_softmax(logits(tiny.files.config, tiny.params, hidden)[0, -1])
    wanted = [float(table[tiny.tokenizer.encode(x)[0]]) for x in "ABCD"]
    assert outcome.logps == pytest.approx(wanted, abs=2e-4)


def test_batch_size_and_order_change_nothing(tiny, tmp_path):
    data = folder_of(tmp_path, "boolq/dev.jsonl", BOOLQ)
    data = folder_of(tmp_path, "svamp/svamp.jsonl", SVAMP)
    for name in ("boolq", "svamp:plain"):
        first = asked(tiny, name, data)
        assert first == asked(tiny, name, data, slots=2)
        assert [o.id for o in asked(tiny, name, data, n=2)] <= [o.id for o in first]


SVAMP = [
    {"Body": f"A hen has {n} eggs", "Question": "How many eggs are there?", "Answer": n}
    for n in range(24)
]


def test_what_is_too_long_is_counted_listed_and_wrong(tiny, tmp_path):
    rows = [BOOLQ[0], BOOLQ[1] | {"passage": "far " * 200}]
    data = folder_of(tmp_path, "boolq/dev.jsonl", rows)
    short, long = asked(tiny, "boolq", data)
    assert (short.too_long, long.too_long) == (False, True)
    assert long.place == "boolq/dev.jsonl:2"
    assert long.readings["none"] == {"parsed": [None], "scores": {"acc": 0.0, "acc_norm": 0.0}}


def test_what_is_too_long_is_wrong_by_every_metric(tiny, tmp_path):
    """pass@10 of a question that was not asked is 0, and an IFEval prompt weighs as many
    instructions as it has."""
    row = {
        "task_id": "T/0", "entry_point": "f", "canonical_solution": "    return 1\n",
        "prompt": "# " + "far " * 300 + "\ndef f():\n    'one'\n",
        "test": "def check(f):\n    assert f() == 1\n",
    }  # fmt: skip
    (tmp_path / "code").mkdir()
    data = folder_of(tmp_path / "code", "humaneval/HumanEval.jsonl", [row])
    (long,) = asked(tiny, "humaneval", data, repeats=10, sampling=SamplingParams(8))
    found = long.readings["create_test"]["scores"]
    assert long.too_long and found == {"pass@1": 0.0, "pass@10": 0.0}
    two = {
        "key": 1, "prompt": "far " * 300, "kwargs": [{}, {}],
        "instruction_id_list": ["punctuation:no_comma", "change_case:english_lowercase"],
    }  # fmt: skip
    data = folder_of(tmp_path, "ifeval/input_data.jsonl", [two])
    (long,) = asked(tiny, "ifeval", data)
    assert long.too_long and long.readings["none"]["counts"]["inst_level_strict_acc"] == 2


@pytest.mark.parametrize("name", ["gsm8k", "squad"])
def test_a_file_of_questions_is_not_among_its_own_examples(tiny, tmp_path, name):
    benchmark = BENCHMARKS[name]
    rows = {
        "gsm8k": [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(8)],
        "squad": [
            {"id": str(n), "title": "t", "context": "c", "question": f"q{n}",
             "answers": {"text": [f"a{n}"], "answer_start": [0]}} for n in range(8)
        ],
    }[name]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read, wording = read_split(name, benchmark.data, benchmark.split, path), Wording(num_fewshot=4)
    pool = pool_of(benchmark, path, wording)
    for question in questions(benchmark, read, pool, wording):
        assert question.prompt.count(benchmark.prompt(question.row)) == 1


def test_an_adapter_that_is_not_there_is_a_mistake(command, tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    assert cli.main([*command, f"--adapter={tmp_path / 'none'}", out]) == 2
    assert "holds no adapter_config.json" in capsys.readouterr().err


def test_another_file_of_examples_is_another_evaluation(command, tmp_path, capsys):
    data = tmp_path / "data"
    folder_of(data, "gsm8k/test.jsonl", [{"question": "1 + 1?", "answer": "#### 2"}])
    shots = [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(5, 12)]
    folder_of(data, "gsm8k/train_1000.jsonl", shots)
    again = [*command, "--tasks=gsm8k", f"--data={data}", f"--out={tmp_path / 'out'}"]
    assert cli.main(again) == 0
    folder_of(data, "gsm8k/train_1000.jsonl", shots[::-1])
    assert cli.main(again) == 2
    assert "holds another evaluation" in capsys.readouterr().err


def test_repeats_are_different_seeded_and_averaged(tiny, tmp_path):
    data = folder_of(tmp_path, "svamp/svamp.jsonl", SVAMP)
    warm = SamplingParams(max_new_tokens=6, temperature=1.5)
    one, two = (asked(tiny, "svamp:plain", data, n=2, repeats=3, sampling=warm) for _ in range(2))
    assert one == two
    assert len(set(one[0].replies)) > 1
    assert len(one[0].readings["none"]["parsed"]) == 3


@pytest.fixture
def command(tiny, tmp_path):
    folder_of(tmp_path / "data", "boolq/dev.jsonl", BOOLQ)
    folder_of(tmp_path / "data", "svamp/svamp.jsonl", SVAMP)
    return [
        "eval", f"--model={tiny.source}", "--tasks=boolq,svamp", f"--data={tmp_path / 'data'}",
        "--gen_kwargs=max_gen_toks=4", "--batch_size=4", "--max-length=512",
    ]  # fmt: skip


def files_of(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "timings.jsonl")
    }


def test_results_have_the_harness_shape_and_repeat_to_the_byte(command, tmp_path, capsys):
    out, again = tmp_path / "out", tmp_path / "again"
    assert cli.main([*command, f"--out={out}"]) == 0
    said = capsys.readouterr()
    assert "has a chat template and is asked without it (boolq)" in said.err
    assert "first prompt" in said.out and "parsed (none)" in said.out
    first = files_of(out)
    assert cli.main([*command, f"--out={out}"]) == 0
    assert files_of(out) == first
    assert capsys.readouterr().out == said.out
    assert cli.main([*command, f"--output_path={again}"]) == 0
    assert files_of(again) == first
    (results,) = out.glob("results_*.json")
    content = json.loads(results.read_text())
    boolq = content["results"]["boolq"]
    assert 0 <= boolq["acc_ci95,none"][0] <= boolq["acc,none"] <= boolq["acc_ci95,none"][1] <= 1
    assert {"alias", "acc_stderr,none", "acc_norm,none", "parse_rate,none"} <= boolq.keys()
    assert content["n-samples"]["boolq"] == {"original": 5, "effective": 5}
    assert content["versions"]["boolq"] == "2.0" and content["n-shot"]["boolq"] == 0
    (samples,) = out.glob("samples_boolq_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [row["doc_id"] for row in rows] == list(range(5))
    assert rows[0]["doc"] == BOOLQ[0] and rows[0]["filter"] == "none"
    assert rows[0]["arguments"]["gen_args_1"]["arg_1"] == " yes"
    assert sum(row["acc"] for row in rows) / 5 == boolq["acc,none"]


def results_of(out):
    (path,) = out.glob("results_*.json")
    return json.loads(path.read_text())


def test_a_share_of_the_questions_is_rounded_up_and_told_from_the_whole(command, tmp_path):
    """As the harness does it: the ceiling, and both counts."""
    out = tmp_path / "out"
    assert cli.main([*command, "--limit=0.3", f"--out={out}"]) == 0
    found = results_of(out)
    assert found["n-samples"]["boolq"] == {"original": 5, "effective": 2}
    assert found["config"]["limit"] == 0.3
    assert cli.main([*command, "--show=all", "--limit=0.5", f"--out={out}"]) == 0


def test_results_say_how_each_task_was_asked(command, tmp_path):
    """In the harness's words; the division of a file by question hash with its salt."""
    out = tmp_path / "out"
    assert cli.main([*command, "--limit=1", "--repeats=2", f"--out={out}"]) == 0
    found = results_of(out)
    assert found["config"]["splits"] == {
        "boolq": {"split": "test"}, "svamp:plain": {"split": "test", "salt": SPLIT_SALT},
    }  # fmt: skip
    boolq, svamp = found["configs"]["boolq"], found["configs"]["svamp:plain"]
    assert boolq["output_type"] == "multiple_choice" and "generation_kwargs" not in boolq
    assert boolq["metadata"] == {"version": "2.0"} and boolq["fewshot_split"] == "train"
    assert svamp["output_type"] == "generate_until" and svamp["repeats"] == 2
    kwargs = svamp["generation_kwargs"]
    assert (kwargs["max_gen_toks"], kwargs["do_sample"], kwargs["temperature"]) == (4, False, 0.0)
    one = ["--tasks=svamp", f"--data={tmp_path / 'data' / 'svamp' / 'svamp.jsonl'}"]
    assert cli.main([*command, *one, "--limit=1", f"--out={tmp_path / 'one'}"]) == 0
    assert results_of(tmp_path / "one")["config"]["splits"] == {"svamp:plain": {"split": "test"}}


def test_a_stop_of_ones_own_replaces_those_of_the_task(command, tmp_path):
    """As the harness reads --gen_kwargs until=."""
    folder_of(tmp_path / "data", "gsm8k/test.jsonl", [{"question": "1?", "answer": "#### 2"}])
    gsm8k = [*command, "--tasks=gsm8k", "--num_fewshot=0"]
    for more, until in (
        (["--gen_kwargs=max_gen_toks=4"], ["Question:", "</s>", "<|im_end|>"]),
        (["--gen_kwargs=max_gen_toks=4,until=So"], ["So"]),
    ):
        out = tmp_path / f"out{len(until)}"
        assert cli.main([*gsm8k, *more, f"--out={out}"]) == 0
        assert results_of(out)["configs"]["gsm8k"]["generation_kwargs"]["until"] == until


def test_what_holds_programs_is_told_before_any_runs(command, tmp_path, capsys):
    row = {
        "text": "t", "code": "def f(): pass", "task_id": 1, "test_setup_code": "",
        "test_list": ["assert 1", "assert 2", "assert 3"],
    }  # fmt: skip
    folder_of(tmp_path / "data", "mbpp/mbpp_test.jsonl", [row])
    more = ["--tasks=boolq,mbpp", "--num_fewshot=0", "--limit=1", f"--out={tmp_path / 'out'}"]
    assert cli.main([*command, *more]) == 0
    assert capsys.readouterr().err.count("sandbox enforces network, files, user, processes") == 1
    assert cli.main([*command, "--limit=1", f"--out={tmp_path / 'other'}"]) == 0
    assert "sandbox" not in capsys.readouterr().err


def test_a_torn_journal_is_finished_by_the_same_command(command, tmp_path):
    """As after a kill: two of the answers are there, the third line is cut."""
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert cli.main([*command, f"--out={whole}"]) == 0
    assert cli.main([*command, f"--out={torn}"]) == 0
    folder = torn / "svamp_plain"
    stage = json.loads((folder / "stage.json").read_text())
    records = (folder / "records.jsonl").read_bytes().splitlines()
    (folder / "stage.json").unlink()
    (folder / "records.jsonl").unlink()
    from selfevo_jax.evolve.journal import Entry, Journal

    journal = Journal(folder / "records.part.jsonl", stage["key"])
    for place in (0, 2):
        row = json.loads(records[place])
        journal.append(Entry(place, str(row["number"]), [row]))
    journal.close()
    with open(folder / "records.part.jsonl", "ab") as stream:
        stream.write(b'{"n":1,"id":"cut')
    assert cli.main([*command, f"--out={torn}"]) == 0
    assert files_of(torn) == files_of(whole)


def test_out_may_be_a_json_file(command, tmp_path):
    assert cli.main([*command, f"--out={tmp_path / 'r.json'}", "--no-log_samples"]) == 0
    assert "boolq" in json.loads((tmp_path / "r.json").read_text())["results"]
    assert not list((tmp_path / "r").glob("samples_*"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--limit=0"], "--limit 0 must be at least 1"),
        (["--limit=-0.5"], "neither a number of questions nor a share"),
        (["--limit=1.5"], "neither a number of questions nor a share"),
        (["--gen_kwargs=temprature=1"], "did you mean temperature"),
        (["--gen_kwargs=top_k=x"], "--gen_kwargs top_k=x"),
        (["--num_fewshot=5"], "no file"),
        (["--tasks=svamp", "--num_fewshot=2"], "no examples to show"),
        (["--model=http://127.0.0.1:1/v1"], "#NAME"),
        (["--tasks=bolq"], "did you mean boolq"),
    ],
)
def test_mistakes_are_said_before_anything_is_loaded(command, more, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main([*command, *more, f"--out={out}"]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_another_evaluation_in_the_folder_is_refused(command, tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    assert cli.main([*command, out]) == 0
    assert cli.main([*command, out, "--limit=2"]) == 2
    assert "holds another evaluation (questions 5 -> 2)" in capsys.readouterr().err


def test_two_evaluations_are_compared_item_by_item(command, tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli.main([*command, f"--out={one}"]) == 0
    assert cli.main([*command, "--model=random:tiny?seed=1", f"--out={two}"]) == 0
    capsys.readouterr()
    assert cli.main([*command, f"--out={two}", f"--compare={one}"]) == 0
    said = capsys.readouterr().out
    assert "boolq" in said and "95 % interval" in said
    page = (two / "compare.html").read_text()
    (data,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    rows = json.loads(data)["items"]["rows"]
    assert {row["task"] for row in rows} == {"boolq", "svamp:plain"}
    assert all(row["before"] is not None for row in rows)
    few = tmp_path / "few"
    assert cli.main([*command, f"--out={few}", "--limit=3"]) == 0
    assert cli.main([*command, f"--out={few}", f"--compare={one}"]) == 2
    assert "did not answer the same questions" in capsys.readouterr().err


def items(said):
    """The places of the questions that --show prints."""
    return [line.split()[2].rstrip(",") for line in said.splitlines() if line.startswith("--- ")]


def test_items_are_shown_by_what_became_of_them(command, tmp_path, capsys):
    """The second time two gold answers are the others, so that two verdicts flip."""
    one, two = tmp_path / "one", tmp_path / "two"
    other = [row | {"answer": n not in (1, 3)} for n, row in enumerate(BOOLQ)]
    folder_of(tmp_path / "other", "boolq/dev.jsonl", other)
    command = [*command, "--tasks=boolq"]
    assert cli.main([*command, f"--out={one}"]) == 0
    command = [*command, f"--data={tmp_path / 'other'}"]
    assert cli.main([*command, f"--out={two}"]) == 0
    right = {}
    for out in (one, two):
        (samples,) = out.glob("samples_boolq_*.jsonl")
        rows = [json.loads(line) for line in samples.read_text().splitlines()]
        right[out] = {row["place"]: row["acc"] == 1.0 for row in rows}
    wanted = {
        "wrong": [place for place in right[two] if not right[two][place]],
        "right": [place for place in right[two] if right[two][place]],
        "unparsed": [],
        "flipped": ["boolq/dev.jsonl:2", "boolq/dev.jsonl:4"],
    }
    capsys.readouterr()
    for which, places in wanted.items():
        more = [f"--show={which}"] + [f"--compare={one}"] * (which == "flipped")
        assert cli.main([*command, f"--out={two}", *more]) == 0
        assert items(capsys.readouterr().out) == places
    assert wanted["wrong"] and wanted["right"]
    assert cli.main([*command, f"--out={two}", "--show=flipped"]) == 2
    assert "--show=flipped needs --compare" in capsys.readouterr().err
    assert cli.main([*command, f"--out={two}", "--show=wrog"]) == 2
    assert "did you mean wrong" in capsys.readouterr().err


SQUAD = [
    {"title": "T", "context": "Ann has a cat.", "question": "Who has a cat?",
     "answers": {"text": ["Ann"], "answer_start": [0]}},
    {"title": "T", "context": "Ann has a cat.", "question": "Who has a dog?",
     "answers": {"text": [], "answer_start": []}},
]  # fmt: skip


def test_squad_asks_how_likely_there_is_no_answer(tiny, tmp_path):
    data = folder_of(tmp_path, "squad/dev_v2.0_4articles.jsonl", SQUAD)
    found = asked(tiny, "squadv2", data)
    for outcome in found:
        wanted = whole_logp(tiny, outcome.prompt, " unanswerable")
        for reading in outcome.readings.values():
            assert reading["no_answer"] == pytest.approx(wanted, abs=2e-3)
    result = summarise("squadv2", found)
    figures = {(f.reading, f.metric): f for f in result.figures}
    # Whatever the model wrote, taking every reply back is right for the second question.
    assert figures["none", "best_exact"].mean >= 0.5
    assert figures["none", "best_exact"].mean >= figures["none", "exact"].mean


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("boolq/dev.jsonl", {"question": "q", "passage": "p"}, "the field 'answer' is missing"),
        ("gsm8k/test.jsonl", {"question": "q", "answer": "none"}, "no single number after '####'"),
    ],
)
def test_a_bad_row_stops_the_command(command, tmp_path, capsys, name, row, message):
    good = BOOLQ[0] | {"answer": True} if "boolq" in name else row | {"answer": "#### 1"}
    data = folder_of(tmp_path / "bad", name, [good, row])
    task = name.partition("/")[0]
    more = [f"--tasks={task}", f"--data={data}", "--num_fewshot=0", f"--out={tmp_path / 'out'}"]
    assert cli.main([*command, *more]) == 2
    said = capsys.readouterr().err
    assert f"{name}:2: " in said and message in said


def test_a_model_without_a_template_cannot_be_asked_in_turns(command, tiny, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(random_model(tiny.source), bare)
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    more = [f"--model={bare}", "--apply_chat_template", f"--out={tmp_path / 'out'}"]
    assert cli.main([*command, *more]) == 2
    assert "bare has no chat template; leave out --apply_chat_template" in capsys.readouterr().err


def test_the_table_tells_clusters_power_and_what_was_too_long(command, tmp_path, capsys):
    rows = [BOOLQ[n % 5] | {"title": f"T{n // 3}", "answer": n % 2 == 0} for n in range(9)] + [
        BOOLQ[0] | {"title": "Long", "passage": "far " * 200}
    ]
    data = folder_of(tmp_path / "rows", "boolq/dev.jsonl", rows)
    out = tmp_path / "out"
    assert cli.main([*command, "--tasks=boolq", f"--data={data}", f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "boolq: 1 prompts too long for the model were not asked and count as wrong" in said
    assert "(boolq/dev.jsonl:10)" in said
    (results,), (samples,) = out.glob("results_*.json"), out.glob("samples_*.jsonl")
    found = json.loads(results.read_text())["results"]["boolq"]
    values = [json.loads(line)["acc"] for line in samples.read_text().splitlines()]
    assert 0 < sum(values) < 10 and values[-1] == 0.0
    wanted = standard_error(values, [row["title"] for row in rows])
    assert found["acc_stderr,none"] == pytest.approx(wanted)
    assert found["acc_stderr,none"] != pytest.approx(standard_error(values))
    needed = found["acc_n_for_2_points,none"]
    assert f"boolq: to see a gain of 2 points, about {needed} questions are needed" in said
    assert found["too_long"] == ["boolq/dev.jsonl:10"]
