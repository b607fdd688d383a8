"""Overlap of training records with test questions: found where planted, quiet elsewhere."""

import json
import random

import pytest

from selfevo_jax import cli
from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.contamination import check_overlap, items_of, texts_of
from selfevo_jax.evaluate.data import read_split
from selfevo_jax.evaluate.tasks import BENCHMARKS

WORDS = [f"w{n}" for n in range(5000)]


def text(draw, n):
    return " ".join(draw.choices(WORDS, k=n))


def test_planted_spans_are_found_with_their_words():
    draw = random.Random(0)
    items = [(f"item{n}", text(draw, 40)) for n in range(50)]
    span = items[7][1].split()[10:25]
    records = [(f"record{n}", text(draw, 60)) for n in range(30)]
    records[4] = ("planted", f"{text(draw, 9)} {' '.join(span).upper()}! {text(draw, 9)}")
    records[5] = ("short", f"{text(draw, 9)} {' '.join(items[8][1].split()[:12])} {text(draw, 5)}")
    records[6] = ("equal", f"Q:\n{items[9][1]}\nA: 5")
    records = [(name, [said]) for name, said in records]
    found = check_overlap("t", records, items)
    assert (found.records, found.tested, found.items, found.exact) == (30, 50, 2, 1)
    by_record = {match.record: match for match in found.matches}
    assert by_record["planted"].span == " ".join(span)
    assert not by_record["planted"].exact and by_record["planted"].item == "item7"
    assert by_record["equal"].exact and by_record["equal"].item == "item9"
    assert "short" not in by_record
    assert check_overlap("t", records, items, 12).items == 3


def test_a_short_question_counts_only_when_equal():
    items = [("a", "What is 2 + 2?"), ("b", "Who?")]
    records = [("r", ["We ask who did it."]), ("s", ["user", "what is 2+2", "4"])]
    found = check_overlap("t", records, items)
    assert [(m.record, m.item, m.exact) for m in found.matches] == [("s", "a", True)]


def test_a_question_of_several_lines_is_equal_to_a_whole_text_of_a_record():
    items = [("a", "2 + 2 =\nReply with the answer only.")]
    assert check_overlap("t", [("r", [items[0][1], "4"])], items).exact == 1
    assert check_overlap("t", [("r", ["2 + 2 =", "Reply with the answer only."])], items).exact == 0


@pytest.mark.parametrize("asked", ["What is 5 - 3?", "What is 5-3?", "What is (5) * 3?"])
def test_operators_are_words(asked):
    """Without them every sum would be "found" among the differences."""
    items = [("a", "What is 5 + 3?")]
    assert check_overlap("t", [("r", [asked])], items).items == 0
    assert check_overlap("t", [("r", ["what is 5 + 3"])], items).exact == 1
    assert check_overlap("t", [("r", ["A well known fact"])], [("b", "a well-known fact")]).exact


def test_a_record_that_says_a_question_twice_is_one_match():
    question = "What did the two farmers who lived near the old mill sell there each market day?"
    rows = [("r", [question, f"You ask: {question} Eggs."])]
    assert len(check_overlap("t", rows, [("a", question)]).matches) == 1


def test_the_wording_of_the_task_itself_is_no_overlap():
    draw = random.Random(1)
    opening = text(draw, 20)
    items = [(f"item{n}", f"{opening} {text(draw, 20)}") for n in range(30)]
    assert check_overlap("t", [("r", [f"{opening} {text(draw, 20)}"])], items).items == 0


def test_records_of_any_format_are_read():
    row = {"messages": [{"role": "user", "content": "one"}], "n": 3, "rejected": ["two", None]}
    assert texts_of(row) == ["user", "one", "two"]
    with pytest.raises(UserError, match="at least 1"):
        check_overlap("t", [], [], 0)


def test_the_command_finds_test_questions_in_a_training_file(shared_data, tmp_path, capsys):
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text().splitlines()
    test_row = json.loads(lines[3])
    train = (shared_data / "gsm8k" / "train_1000.jsonl").read_text().splitlines()[:50]
    leaked = {"prompt": f"Solve: {test_row['question']}", "completion": "540"}
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join([*train, json.dumps(leaked)]))
    command = ["eval", "--tasks=gsm8k,svamp", f"--data={shared_data}", f"--contamination={path}"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    # One more is flagged: the set itself repeats the opening of a problem in train and test.
    assert "gsm8k: 2 of 1319 test items share words with 51 training records, 1 of them" in said
    assert f"equal: {path}:51 and gsm8k/test.jsonl:4" in said
    assert "svamp:plain: 0 of 218" in said
    assert cli.main([*command[:-1], "--contamination=nowhere.jsonl"]) == 2


def test_a_short_question_is_found_where_it_stands_whole():
    eight = "Who wrote the book about the old sea"
    items = [("a", eight + "?"), ("b", "is it blue"), ("c", "Is it\\nred?")]
    records = [
        ("within", [f"Passage: x y z {eight} and then some."]),
        ("label", ["Background: far\nQuestion: is it blue?\nAnswer: no"]),
        ("sentence", ["It rains. Is it blue? Yes."]),
        ("part", ["is it blue or green"]),
        ("lines", ["Is it\nred?"]),
    ]
    found = check_overlap("t", records, items)
    assert {(m.record, m.item) for m in found.matches} == {
        ("within", "a"), ("label", "b"), ("sentence", "b"), ("lines", "c"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("task", "least"),
    [
        ("svamp:plain", 1.0), ("logiqa", 0.98), ("instruction_small:plain", 0.98), ("boolq", 1.0),
        ("squadv2", 1.0), ("polite", 0.99), ("qasc_choice", 1.0), ("mbpp", 1.0), ("gsm8k", 1.0),
    ],
)  # fmt: skip
def test_prompts_in_the_training_are_found(shared_data, task, least):
    """Every test prompt verbatim among the training records."""
    benchmark = BENCHMARKS[task]
    rows = read_split(task, benchmark.data, benchmark.split, shared_data)
    texts = [f"{benchmark.prompt(row)} {benchmark.target(row)}" for row in rows.rows]
    records = ((place, [text]) for place, text in zip(rows.places, texts, strict=True))
    found = check_overlap(task, records, items_of(task, shared_data))
    assert found.items >= least * found.tested
