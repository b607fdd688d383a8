"""Every benchmark on its real rows: it loads, its gold answer is right, a wrong one is not."""

import json
import sys
from fnmatch import fnmatch
from itertools import islice

import numpy as np
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate import arena_hard, mt_bench
from selfevo_jax.evaluate.asking import Wording, pool_of, questions
from selfevo_jax.evaluate.benchmark import Choose
from selfevo_jax.evaluate.benchmarks.gsm8k import number
from selfevo_jax.evaluate.benchmarks.math import gold as boxed
from selfevo_jax.evaluate.data import raw_rows, read_split
from selfevo_jax.evaluate.judged import SETS
from selfevo_jax.evaluate.tasks import (
    BENCHMARKS,
    FILE_TASKS,
    PLAIN,
    benchmark_groups,
    drawn,
    get_benchmarks,
    get_task,
)
from selfevo_jax.text.datasets import read_examples

EVERY = 97  # of the rows, the gold answers are marked: all would cost a minute
WRONG = "It is raining. zebra 987654321"
# A right reply where it is more than the target, by the beginning of the benchmark's name.
RIGHT = {
    "gsm8k_cot": lambda row, target: f"First so.\nThe answer is {number(row)}.",
    "hendrycks_math": lambda row, target: f"It is ${boxed(row)}$, so \\boxed{{{boxed(row)}}}",
    "minerva_math": lambda row, target: (
        f"So $\\boxed{{{boxed(row)}}}$.\n"
        f"Final Answer: The final answer is ${boxed(row)}$. I hope it is correct."
    ),
    "math:plain": lambda row, target: f"We get $\\boxed{{{boxed(row)}}}$.",
    "bbh_cot_fewshot": lambda row, target: f"So the answer is {target}.",
}
UNPLAIN = ("natural", "self", "instruction", "conala", "math")
NEEDS_MORE = ("mmlu", "logiqa", "mbpp", "humaneval", "ifeval")
NAMES = [name for name in BENCHMARKS if not name.startswith(NEEDS_MORE)]


def reply_of(name, row, target):
    for start, make in RIGHT.items():
        if name.startswith(start):
            return make(row, target)
    if name.endswith(PLAIN) and not name.startswith(UNPLAIN):
        return f"The answer is {target}"
    return target


@pytest.mark.parametrize("name", NAMES)
def test_gold_is_right_and_a_wrong_reply_is_not(name, shared_data):
    benchmark = BENCHMARKS[name]
    read = read_split(name, benchmark.data, benchmark.split, shared_data)
    asked = islice(
        questions(benchmark, read, pool_of(benchmark, shared_data, Wording()), Wording()),
        0,
        None,
        EVERY,
    )
    for question in asked:
        if isinstance(benchmark.ask, Choose):
            choices = benchmark.ask.choices(question.row)
            right = benchmark.ask.gold(question.row)
            assert len(question.choices) == len(choices) > right >= 0
            continue
        right = reply_of(name, question.row, question.target)
        for reading, mark in benchmark.ask.readings.items():
            first, *_ = mark(right, question.row).scores.values()
            literal = (name, reading, question.target) == ("squadv2", "none", "unanswerable")
            assert first == (0.0 if literal else 1.0), (reading, right)
            wrong = mark(WRONG, question.row)
            assert next(iter(wrong.scores.values())) < 0.5
            assert mark("", question.row).parsed is None  # silence is no error, and no answer


def test_all_of_the_shared_data_is_used(shared_data):
    """Each file is some task's, a judge's, or read whole by the command that needs it."""
    used = {file for b in BENCHMARKS.values() for file in b.data.files.values()}
    used |= {file for spec in FILE_TASKS.values() for file in spec.files.values()}
    used |= {file for s in SETS.values() for file in s.data.files.values()}
    readers = {
        "bbh/cot_*": lambda path: list(raw_rows(path)),
        "arena_hard/question*": lambda path: list(read_examples(path)),
        "arena_hard/model_answer*": arena_hard.read_answers,
        "mt_bench/*question*": mt_bench.read_questions,
        "mt_bench/*reference*": mt_bench.read_answers,
        "mt_bench/judge_prompts*": lambda path: mt_bench.read_material(shared_data),
        "mt_bench/dummy*": lambda path: list(read_examples(path)),
    }
    files = {str(p.relative_to(shared_data)) for p in shared_data.glob("*/*.jsonl")}
    for file in sorted(files - used):
        (read,) = (read for name, read in readers.items() if fnmatch(file, name))
        assert read(shared_data / file)


def test_choices_of_boolq_in_their_order(shared_data):
    benchmark = BENCHMARKS["boolq"]
    read = read_split("boolq", benchmark.data, "test", shared_data)
    first = next(questions(benchmark, read, pool_of(benchmark, shared_data, Wording()), Wording()))
    assert first.choices == (" no", " yes")
    assert first.prompt.endswith("\nAnswer:")
    assert first.prompt.startswith(first.row["passage"] + "\nQuestion: ")
    chat = next(
        questions(
            benchmark, read, pool_of(benchmark, shared_data, Wording(chat=True)), Wording(chat=True)
        )
    )
    assert chat.choices == ("no", "yes")
    assert chat.prompt == ({"role": "user", "content": first.prompt},)


def test_code_tasks_run_the_reference_and_refuse_a_wrong_one(shared_data):
    for name, solution in (("mbpp", "code"), ("humaneval", "canonical_solution")):
        benchmark = BENCHMARKS[name]
        rows = read_split(name, benchmark.data, "test", shared_data).rows
        (mark,) = benchmark.ask.readings.values()
        for row in rows[:3]:
            assert mark(row[solution], row).scores == {"pass@1": 1.0}
            assert mark("    return None\n", row).scores == {"pass@1": 0.0}


def test_a_reply_that_began_in_a_block_of_code_ends_with_it(shared_data):
    """As the harness reads `humaneval_instruct`."""
    benchmark = BENCHMARKS["humaneval_instruct"]
    (mark,) = benchmark.ask.readings.values()
    row = read_split(benchmark.name, benchmark.data, "test", shared_data).rows[0]
    solution = row["canonical_solution"]
    for ending in ("", "```", "\n```\nThis compares all pairs.\n```python\nprint(1)\n```"):
        assert mark(solution + ending, row).scores == {"pass@1": 1.0}
    assert mark("    return None\n```\n" + solution, row).scores == {"pass@1": 0.0}


def test_ifeval_counts_instructions_and_prompts(shared_data):
    benchmark = BENCHMARKS["ifeval"]
    rows = read_split("ifeval", benchmark.data, "test", shared_data).rows
    row = next(r for r in rows if r["instruction_id_list"] == ["punctuation:no_comma"])
    (mark,) = benchmark.ask.readings.values()
    assert set(mark("No such mark here.", row).scores.values()) == {1.0}
    two = next(r for r in rows if len(r["instruction_id_list"]) == 2)
    reading = mark("x", two)
    assert reading.counts["inst_level_strict_acc"] == 2
    assert reading.scores["prompt_level_strict_acc"] <= reading.scores["inst_level_strict_acc"]


def test_logiqa_rows_of_the_wheel_become_the_harness_fields(tmp_path):
    text = "\nPassage: P one. Question: Q two? \nA. A.a \nB. b \nC. c \nD. d \nAnswer: "
    row = {"input": [{"role": "system", "content": "x"}, {"role": "user", "content": text}]}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row | {"ideal": "C"}))
    benchmark = BENCHMARKS["logiqa"]
    read = read_split("logiqa", benchmark.data, "test", path)
    (question,) = questions(benchmark, read, pool_of(benchmark, path, Wording()), Wording())
    assert question.prompt == (
        "Passage: P one.\nQuestion: Q two?\nChoices:\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    )
    assert question.choices == (" a", " b", " c", " d") and question.target == "c"
    assert benchmark.ask.gold(question.row) == 2


def test_no_example_is_the_question_itself(shared_data):
    benchmark = BENCHMARKS["natural_instructions"]
    read = read_split(benchmark.name, benchmark.data, "test", shared_data)
    tasks = [row["task"] for row in read.rows[:8]]
    assert len(set(tasks)) == 4  # tasks take turns
    train = read_split(benchmark.name, benchmark.data, "train", shared_data)
    assert not {r["input"] for r in read.rows} & {r["input"] for r in train.rows}


def test_a_smaller_limit_asks_the_same_prompts(shared_data):
    benchmark = BENCHMARKS["gsm8k"]
    read = read_split("gsm8k", benchmark.data, "test", shared_data)
    few = list(
        islice(questions(benchmark, read, pool_of(benchmark, shared_data, Wording()), Wording()), 3)
    )
    assert (
        few
        == list(
            islice(
                questions(benchmark, read, pool_of(benchmark, shared_data, Wording()), Wording()), 9
            )
        )[:3]
    )
    assert few[0].prompt.count("Question: ") == 6
    seeded = next(
        questions(
            benchmark,
            read,
            pool_of(benchmark, shared_data, Wording(fewshot_seed=1)),
            Wording(fewshot_seed=1),
        )
    )
    assert seeded.prompt != few[0].prompt


def test_drawn_tasks_mark_by_their_own_rule():
    benchmark, rows = drawn("rg:chain_sum", 5, 0)
    (mark,) = benchmark.ask.readings.values()
    for row in rows.rows:
        assert mark(f"It is {row['answer']}", row).scores["exact_match"] == 1.0
        assert mark("no idea", row).parsed is None


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("gsm9k", "did you mean gsm8k"),
        ("boolq,mmlu_astronmy", "mmlu_astronomy"),
        (" , ", "no task"),
    ],
)
def test_an_unknown_name_offers_the_nearest(names, message):
    with pytest.raises(UserError, match=message):
        get_benchmarks(names)


def test_groups_and_short_names():
    assert get_benchmarks("svamp, boolq,svamp") == ["svamp:plain", "boolq"]
    assert len(get_benchmarks("bbh")) == 27 == len(get_benchmarks("bbh_zeroshot"))
    assert len(get_benchmarks("mmlu")) == 57
    everything = benchmark_groups()["all"]
    assert "bbh:plain" in everything and "gsm8k" in everything
    assert not {"gsm8k_cot", "gsm8k:plain", "mmlu_anatomy"} & set(everything)


GSM8K_ROW = {"question": "How many?", "answer": "One.\n#### 1"}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("gsm8k", {"question": "x"}, r"rows.jsonl:2: the field 'answer' is missing"),
        ("gsm8k", {**GSM8K_ROW, "answer": "no mark"}, r":2: .*no single number after '####'"),
        ("boolq", {"question": "q", "passage": "p", "answer": "yes"}, r"'answer' holds a str"),
        ("boolq", {"question": "q", "passage": "p", "answer": 1}, r"'answer' holds a int"),
        ("mmlu_anatomy", {"question": "q", "choices": ["a"], "answer": 0}, "four strings"),
        (
            "mmlu_anatomy",
            {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 4},
            "not 0, 1, 2 or 3",
        ),
        ("hendrycks_math", {"problem": "p", "solution": "1"}, "no .*boxed answer"),
        ("strategyqa_choice", {"question": "q", "answer": "maybe", "rationale": ""}, "neither yes"),
        (
            "ifeval",
            {"key": 1, "prompt": "p", "instruction_id_list": ["x:y"], "kwargs": [{}]},
            "'x:y' is not known",
        ),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path, name, row, message):
    good = {
        "gsm8k": GSM8K_ROW,
        "boolq": {"question": "q", "passage": "p", "answer": True},
        "mmlu_anatomy": {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 3},
        "hendrycks_math": {"problem": "p", "solution": "\\boxed{1}"},
        "strategyqa_choice": {"question": "q", "answer": "yes", "rationale": ""},
        "ifeval": {
            "key": 1, "prompt": "p", "instruction_id_list": ["punctuation:no_comma"],
            "kwargs": [{}],
        },
    }[name]  # fmt: skip
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (good, row)))
    benchmark = BENCHMARKS[name]
    with pytest.raises(UserError, match=message):
        read = read_split(name, benchmark.data, benchmark.split, path)
        list(
            questions(
                benchmark,
                read,
                pool_of(benchmark, path, Wording(num_fewshot=0)),
                Wording(num_fewshot=0),
            )
        )


def test_missing_data_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("SELFEVO_DATA", raising=False)
    for where in (tmp_path, None):
        with pytest.raises(UserError, match="github.com/openai/grade-school-math"):
            read_split("gsm8k", BENCHMARKS["gsm8k"].data, "test", where)
    with pytest.raises(UserError, match="declares no data set on the hub"):
        read_split("svamp", BENCHMARKS["svamp:plain"].data, "test", "hf")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match="pip install tensorflow-datasets"):
        read_split("gsm8k", BENCHMARKS["gsm8k"].data, "test", "tfds:gsm8k")


BOOLQ = {"question": "is it", "passage": "It is.", "title": "T", "answer": True}


def test_rows_come_through_datasets_by_name(tmp_path):
    """A folder is a data set by name too; the split is the one that the task has there."""
    pytest.importorskip("datasets", reason="extra parity")
    (tmp_path / "validation.jsonl").write_text((json.dumps(BOOLQ) + "\n") * 2)
    read = read_split("boolq", BENCHMARKS["boolq"].data, "test", f"hf:{tmp_path}")
    assert read.rows == (BOOLQ, BOOLQ)
    assert read.places[1] == f"hf:{tmp_path}/validation:1"
    assert list(read.origin) == [f"hf:{tmp_path}/validation"]
    with pytest.raises(UserError, match="hf:.* split train cannot be read"):
        read_split("boolq", BENCHMARKS["boolq"].data, "train", f"hf:{tmp_path}")


def test_rows_come_through_tfds_by_name(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets", reason="extra tfds")
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))

    class TinyBoolq(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.3")

        def _info(self):
            features = {"question": tfds.features.Text(), "passage": tfds.features.Text()}
            features |= {"title": tfds.features.Text(), "answer": tfds.features.Scalar(np.bool_)}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"validation": self._generate_examples()}

        def _generate_examples(self):
            yield from ((number, BOOLQ) for number in range(2))

    read = read_split("boolq", BENCHMARKS["boolq"].data, "test", "tfds:tiny_boolq")
    assert read.rows == (BOOLQ, BOOLQ)
    assert read.origin == {"tfds:tiny_boolq/validation": "1.2.3"}
    with pytest.raises(UserError, match="tfds:nothing_such/validation cannot be read"):
        read_split("boolq", BENCHMARKS["boolq"].data, "test", "tfds:nothing_such")


def test_lists_of_texts_come_through_tfds(tmp_path, monkeypatch):
    """SQuAD's answers: a sequence of records, which TFDS gives as lists of bytes."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="extra tfds")
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    row = {"title": "T", "context": "Ann, Bob", "question": "Who?"}
    golds = [
        {"text": ["Ann", "B\u00f6b"], "answer_start": [0, 5]},
        {"text": [], "answer_start": []},
    ]

    class TinySquad(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            answers = {"text": tfds.features.Text(), "answer_start": np.int32}
            features = dict.fromkeys(row, tfds.features.Text())
            features |= {"answers": tfds.features.Sequence(answers)}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"validation": self._generate_examples()}

        def _generate_examples(self):
            yield from ((n, row | {"answers": answers}) for n, answers in enumerate(golds))

    benchmark = BENCHMARKS["squadv2"]
    read = read_split("squadv2", benchmark.data, "test", "tfds:tiny_squad")
    assert sorted(read.rows, key=lambda row: not row["answers"]["text"]) == [
        row | {"answers": answers} for answers in golds
    ]
    asked = questions(benchmark, read, pool_of(benchmark, None, Wording()), Wording())
    assert sorted(question.target for question in asked) == ["Ann", "unanswerable"]


def test_a_data_set_that_is_a_script_is_a_message(tmp_path):
    """`datasets` runs no programs of others any more, and says so by a RuntimeError."""
    pytest.importorskip("datasets", reason="extra parity")
    script = tmp_path / f"{tmp_path.name}.py"
    script.write_text("raise SystemExit")
    with pytest.raises(UserError, match="cannot be read .*scripts are no longer supported"):
        read_split("boolq", BENCHMARKS["boolq"].data, "test", f"hf:{tmp_path}")


def test_the_data_folder_can_come_from_the_environment(shared_data, monkeypatch):
    monkeypatch.setenv("SELFEVO_DATA", str(shared_data))
    read = read_split("svamp", BENCHMARKS["svamp:plain"].data, "test", None)
    assert len(read.rows) == 218 and read.places[0].startswith("svamp/svamp.jsonl:")
    assert set(read.origin) == {"svamp/svamp.jsonl"}


def test_files_beside_the_rows_come_from_the_folder_of_the_environment(shared_data, monkeypatch):
    """Also where the rows are elsewhere: the hub has no prompts of BIG-bench Hard."""
    benchmark = BENCHMARKS["bbh_cot_fewshot_navigate"]
    pool = pool_of(benchmark, shared_data, Wording())
    monkeypatch.setenv("SELFEVO_DATA", str(shared_data))
    assert pool_of(benchmark, None, Wording()) == pool
    assert pool_of(benchmark, "hf", Wording()) == pool
    monkeypatch.delenv("SELFEVO_DATA")
    with pytest.raises(UserError, match="needs bbh/cot_prompts.jsonl .*cot-prompts/.*SELFEVO_DATA"):
        pool_of(benchmark, "hf", Wording())


def test_rows_of_the_hub_need_not_name_their_task(tmp_path):
    pytest.importorskip("datasets", reason="extra parity")
    row = {"input": "True is", "target": "True"}
    (tmp_path / "test.jsonl").write_text(json.dumps(row) + "\n")
    data = BENCHMARKS["bbh_zeroshot_boolean_expressions"].data
    assert read_split("bbh", data, "test", f"hf:{tmp_path}").rows == (row,)


def test_csv_json_and_parquet_rows_are_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    row = {"question": "q", "choices": ["a", "b", "c", "d"], "answer": 3}
    folder = tmp_path / "mmlu" / "anatomy"
    folder.mkdir(parents=True)
    data = BENCHMARKS["mmlu_anatomy"].data
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "test.parquet")
    (folder / "dev.json").write_text(f"[{json.dumps(row)},\n\n{json.dumps(row)}]")
    assert read_split("mmlu_anatomy", data, "test", tmp_path).rows == (row,)
    assert (
        read_split("mmlu_anatomy", data, "dev", tmp_path).places[1] == "mmlu/anatomy/dev.json:3#2"
    )


@pytest.mark.parametrize(
    ("name", "files"),
    [("natural_instructions", 4), ("gsm8k", 2), ("svamp", 1), ("mbpp", 1), ("ifeval", 1)],
)
def test_a_run_draws_from_every_file_and_knows_their_hashes(name, files, shared_data):
    task = get_task(name, data_dir=shared_data)
    assert len(task.inputs()) == files
    assert {len(digest) for digest in task.inputs().values()} == {64}
    train = {p.messages[-1]["content"] for p in task.prompts("train")}
    test = {p.messages[-1]["content"] for p in task.prompts("test")}
    assert train and test and not train & test
    prompt = next(task.prompts("train", 1))
    assert not task.check(prompt, WRONG).correct
