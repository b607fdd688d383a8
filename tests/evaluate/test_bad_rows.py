"""A bad row is one message with its file and line, before any model is asked."""

import copy
import json

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.asking import Wording, pool_of, questions
from selfevo_jax.evaluate.benchmark import Choose
from selfevo_jax.evaluate.contamination import check_file
from selfevo_jax.evaluate.data import read_split
from selfevo_jax.evaluate.tasks import BENCHMARKS

NO_SHOTS = Wording(num_fewshot=0)
SQUAD = {
    "title": "T", "context": "Ann has a cat.", "question": "Who?",
    "answers": {"text": ["Ann"], "answer_start": [0]},
}  # fmt: skip
PAIR = {"chosen": "yes", "rejected": "no"}
NATURAL = {
    "Definition": ["Add."],
    "Positive Examples": [{"input": "1 1", "output": "2"}],
    "Instances": [{"id": "a", "input": "1 2", "output": ["3"]}],
}
ROWS = {
    "squad": SQUAD,
    "squadv2": SQUAD,
    "ultrafeedback": {"prompt": "p", "metadata": {"score_chosen": 2.0, "score_rejected": 1.0}}
    | PAIR,
    "polite": {"instruction": "i", "input": ""} | PAIR,
    "mbpp:plain": {
        "text": "t", "code": "def f(): pass", "task_id": 1, "test_setup_code": "",
        "test_list": ["assert 1", "assert 2", "assert 3"],
    },
    "ifeval": {
        "key": 1, "prompt": "p", "instruction_id_list": ["length_constraints:number_words"],
        "kwargs": [{"relation": "at least", "num_words": 2}],
    },
    "self_instruct:plain": {
        "id": "a", "instruction": "i", "instances": [{"input": "x", "output": "y"}],
    },
    "natural_instructions": NATURAL,
    "logiqa": {"context": "c", "question": "q", "options": ["1", "2", "3", "4"], "label": "a"},
    "mmlu_anatomy": {"question": "q", "choices": ["1", "2", "3", "4"], "answer": 1},
    "gsm8k": {"question": "q", "answer": "#### 1"},
    "hendrycks_math": {"problem": "p", "solution": "$\\boxed{1}$", "level": "1", "type": "t"},
    "qasc:plain": {"question": "q (A) a (B) b", "answer": "(A)", "rationale": ""},
    "boolq": {"question": "q", "passage": "p", "answer": True},
}  # fmt: skip
ENDING = {"natural_instructions": "json"}


def file_of(tmp_path, name, *rows):
    """Rows in a file of the task's kind; a .json file holds one task."""
    path = tmp_path / f"rows.{ENDING.get(name, 'jsonl')}"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made_ready(name, path):
    """What `prepare` does with the rows of a file, and the reading of a reply to each."""
    benchmark = BENCHMARKS[name]
    read = read_split(name, benchmark.data, benchmark.split, path)
    for question in questions(benchmark, read, pool_of(benchmark, path, NO_SHOTS), NO_SHOTS):
        if isinstance(benchmark.ask, Choose):
            assert all(question.choices) and benchmark.ask.gold(question.row) is not None
        elif not benchmark.ask.code:
            for mark in benchmark.ask.readings.values():
                mark("Some reply, 1.", question.row)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("squad", {"answers": {"text": "Ann"}}, "no list of strings 'text'"),
        ("mbpp:plain", {"test_list": ["assert 1"]}, "fewer than three tests"),
        ("mbpp:plain", {"test_list": [1, 2, 3]}, "not of the task's shape (TypeError"),
        ("ultrafeedback", {"metadata": ["x"]}, "not of the task's shape (AttributeError"),
        ("logiqa", {"options": ["a", "", "c", "d"]}, "an answer to choose from is empty"),
        ("self_instruct:plain", {"instances": "none"}, "'instances' is missing or no list"),
        ("self_instruct:plain", {"instances": ["none"]}, "'instances' is missing or no list"),
        ("ifeval", {"kwargs": [None]}, "'kwargs' does not hold an object for each"),
        ("ifeval", {"kwargs": [{}]}, "length_constraints:number_words has wrong arguments"),
    ],
)
def test_a_bad_row_is_named(tmp_path, name, change, message):
    path = file_of(tmp_path, name, ROWS[name], ROWS[name] | change)
    with pytest.raises(UserError) as caught:
        made_ready(name, path)
    assert "rows.jsonl:2" in str(caught.value) and message in str(caught.value)
    assert "mend the row or take it out" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Positive Examples": [{"input": "1 1"}]}, "an example has no text 'input' and 'output'"),
        ({"Positive Examples": ["1 1"]}, "'Positive Examples' is missing or no list of objects"),
        ({"Instances": ["1 1"]}, "'Instances' is missing or no list of objects"),
        ({"Definition": [None]}, "'Definition' is missing or no list of texts"),
    ],
)
def test_a_bad_task_file_of_natural_instructions_is_named(tmp_path, change, message):
    path = file_of(tmp_path, "natural_instructions", NATURAL | change)
    with pytest.raises(UserError) as caught:
        made_ready("natural_instructions", path)
    assert "rows.json:1" in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("name", ["ultrafeedback", "polite"])
def test_a_pair_with_an_empty_side_or_no_scores(tmp_path, name):
    """An empty text has no probability to compare; scores need not be there."""
    good, empty = ROWS[name] | {"metadata": None}, ROWS[name] | {"rejected": " "}
    path = file_of(tmp_path, name, good, empty)
    read = read_split(name, BENCHMARKS[name].data, "test", path)
    assert read.places == ("rows.jsonl:1",)
    made_ready(name, path)


def test_a_bad_example_is_named(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    good, bad = ROWS["gsm8k"], ROWS["gsm8k"] | {"answer": "one"}
    for name, rows in (("test", [good]), ("train_1000", [good] * 9 + [bad])):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "gsm8k" / f"{name}.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"train_1000.jsonl:10: .*no single number after '####'"):
        pool_of(BENCHMARKS["gsm8k"], tmp_path, Wording())


def test_a_bad_row_is_named_where_overlap_is_looked_for(tmp_path):
    path = file_of(tmp_path, "mbpp", ROWS["mbpp:plain"] | {"text": "", "test_list": []})
    with pytest.raises(UserError, match=r"rows.jsonl:1: .*fewer than three tests"):
        check_file(path, "mbpp", path, 13)


OTHERS = (
    None,
    "",
    " ",
    "x",
    0,
    -1,
    7.5,
    True,
    [],
    {},
    [None],
    [{}],
    ["x"],
    {"text": "x"},
    {"a": 1},
)


def changed(row):
    """`row` with each value in it, however deep, replaced by each of OTHERS, or left out."""
    places = list(_places(row))
    for place in places:
        for other in OTHERS:
            yield _with(row, place, other)
        if isinstance(place[-1], str):
            yield _with(row, place, ...)


def _places(value, at=()):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in items:
        yield (*at, key)
        if isinstance(part, dict | list):
            yield from _places(part, (*at, key))


def _with(row, place, other):
    new = copy.deepcopy(row)
    holder = new
    for key in place[:-1]:
        holder = holder[key]
    if other is ...:
        del holder[place[-1]]
    else:
        holder[place[-1]] = other
    return new


@pytest.mark.parametrize("name", ROWS)
def test_no_change_of_a_row_is_a_traceback(tmp_path, name):
    """Whatever stands in any field: the row is taken, left out, or named."""
    refused = 0
    for row in changed(ROWS[name]):
        path = file_of(tmp_path, name, row)
        try:
            made_ready(name, path)
        except UserError as error:
            refused += 1
            assert "rows.json" in str(error), row
    assert refused
