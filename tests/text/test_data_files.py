"""Data files: line numbers in every complaint, and each known format read to one shape."""

import hashlib
import json

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.text.data_files import detect_format, read_jsonl
from selfevo_jax.text.datasets import read_examples

Q, A, B = "Why?", "So.", "Because."
USER = {"role": "user", "content": Q}


def said(text):
    return {"role": "assistant", "content": text}


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Lines


def test_rows_come_back_in_order_with_a_byte_order_mark_and_blank_end(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + '{"x": "é"}\r\n{"x": "\u2028"}\n\n  \n'.encode())
    assert list(read_jsonl(path)) == [{"x": "é"}, {"x": "\u2028"}]


def test_reading_is_lazy(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1}\nbroken')
    rows = read_jsonl(path)
    assert next(rows) == {"x": 1}
    with pytest.raises(UserError, match=r"a\.jsonl:2"):
        next(rows)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.jsonl: the file has no rows"),
        (b"\n\n", r"a\.jsonl: the file has no rows"),
        (b'{"x": 1}\n{"x": \n', r"a\.jsonl:2: not JSON at column 7"),
        (b'{"x": 1} {"x": 2}\n', r"a\.jsonl:1: not JSON at column 10"),
        (b'{"x": 1}\n\n{"x": 2}\n', r"a\.jsonl:2: an empty line between rows"),
        (b'{"x": 1}\n[1, 2]\n', r"a\.jsonl:2: a list where an object must be"),
        (b"null\n", r"a\.jsonl:1: a NoneType"),
        (b'{"x": 1}\n{"x": "\xff"}\n', r"a\.jsonl:2: byte 8 of the line is not UTF-8"),
        (b'{"x": NaN}\n', r"a\.jsonl:1: .*NaN is not a JSON number"),
        (b'{"x": "\\ud800"}\n', r"a\.jsonl:1: half a surrogate pair"),
        (b"[" * 100_000, r"a\.jsonl:1: "),
        (b'{"x": ' + b"9" * 5000 + b"}", r"a\.jsonl:1: "),
    ],
)
def test_bad_lines_are_named(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_jsonl(path))


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            list(read_jsonl(path))


def test_required_fields_are_checked(tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "p", "n": 1, "score": 1}, {"prompt": 3, "n": 1})
    with pytest.raises(UserError, match=r"a\.jsonl:2: the field 'prompt' is a int.*must be a str"):
        list(read_jsonl(path, {"prompt": str}))
    with pytest.raises(UserError, match=r"a\.jsonl:2: the field 'score' is missing.*prompt, n"):
        list(read_jsonl(path, {"score": float}))
    bad = write(tmp_path / "b.jsonl", {"n": True})
    with pytest.raises(UserError, match="'n' is a bool"):
        list(read_jsonl(bad, {"n": int}))
    assert len(list(read_jsonl(path, {"n": int}))) == 2


# Formats

ROWS = {
    "preference": ({"prompt": Q, "chosen": A, "rejected": B}, [A, B]),
    "prompt-completion": ({"prompt": Q, "completion": A}, [A]),
    "prompt-only": ({"prompt": Q}, []),
    "implicit-preference": ({"chosen": [USER, said(A)], "rejected": [USER, said(B)]}, [A, B]),
    "language-modeling": ({"messages": [USER, said(A)]}, [A]),
    "alpaca": ({"instruction": Q, "input": "", "output": A}, [A]),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]},
        [A],
    ),
}
CONVERSATIONAL = {
    "preference": {"prompt": [USER], "chosen": [said(A)], "rejected": [said(B)]},
    "prompt-completion": {"prompt": [USER], "completion": [said(A)]},
    "prompt-only": {"prompt": [USER]},
}


@pytest.mark.parametrize("name", ROWS)
def test_each_format_is_detected_and_read(tmp_path, name):
    row, completions = ROWS[name]
    assert detect_format([row, row | {"extra": 1}]) == name
    (example,) = read_examples(write(tmp_path / "a.jsonl", row))
    assert example["messages"] == [USER] and example["completions"] == completions


@pytest.mark.parametrize("name", CONVERSATIONAL)
def test_conversational_rows_read_as_standard_ones(tmp_path, name):
    row = CONVERSATIONAL[name]
    assert detect_format([row]) == name
    (example,) = read_examples(write(tmp_path / "a.jsonl", row))
    assert (example["messages"], example["completions"]) == ([USER], ROWS[name][1])


def test_text_rows_are_one_text_to_learn(tmp_path):
    (example,) = read_examples(write(tmp_path / "a.jsonl", {"text": A}))
    assert example["messages"] == [said(A)] and example["completions"] == []


def test_alpaca_input_system_and_history(tmp_path):
    row = {"instruction": "Sum", "input": "1 2", "output": "3", "system": "S", "history": [[Q, A]]}
    (example,) = read_examples(write(tmp_path / "a.jsonl", row))
    system = {"role": "system", "content": "S"}
    assert example["messages"] == [system, USER, said(A), {"role": "user", "content": "Sum\n1 2"}]


def test_ids_are_given_or_hashes_of_the_content(tmp_path):
    rows = [{"prompt": "é", "completion": "b"}, {"prompt": "é", "id": 7}]
    path = write(tmp_path / "a.jsonl", rows[0], {**rows[0], "id": 7}, {**rows[0], "id": "x"})
    ids = [example["id"] for example in read_examples(path)]
    canonical = '{"completion":"b","prompt":"é"}'.encode()
    assert ids == [hashlib.sha256(canonical).hexdigest()[:16], "7", "x"]


def test_repeated_ids_are_refused_by_line(tmp_path):
    same = write(tmp_path / "a.jsonl", {"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"})
    with pytest.raises(UserError, match=r"a\.jsonl:3: the id .* is that of line 1"):
        list(read_examples(same))
    given = write(tmp_path / "b.jsonl", {"prompt": "a", "id": 1}, {"prompt": "b", "id": "1"})
    with pytest.raises(UserError, match=r"b\.jsonl:2: the id '1'"):
        list(read_examples(given))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q"}, "no format has"),
        ({"instruction": "i", "output": "o", "chosen": "c", "rejected": "r"}, "several formats"),
        ({"prompt": "p", "messages": []}, "several formats"),
        ({"chosen": "x a", "rejected": "x b"}, "add a field 'prompt'"),
        ({"chosen": [USER, said(A)], "rejected": [said(B)]}, "same conversation"),
        ({"prompt": 3}, "is a int"),
        ({"prompt": []}, "not a list of messages"),
        ({"prompt": [USER, said(A)], "completion": "x"}, "ends with an assistant"),
        ({"prompt": "p", "completion": [USER]}, "one assistant message"),
        ({"prompt": "p", "id": 1.5}, "'id' is 1.5"),
        ({"messages": [USER]}, "end with an assistant"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "'bot'"),
        ({"instruction": "i", "output": 3}, "'output' is a int"),
        ({"instruction": "i", "output": "o", "input": 3}, "'input' is a int"),
        ({"instruction": "i", "output": "o", "history": [1]}, "pairs"),
        ({"conversations": "x"}, "must be a list"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "turn 1 of 'conversations'"),
        ({"conversations": [{"from": [], "value": "x"}]}, "turn 1 of 'conversations'"),
        ({"conversations": [{"from": "human"}, {"from": "gpt", "value": "x"}]}, "not a text"),
        ({"text": None}, "must be a str"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path, row, message):
    path = write(tmp_path / "a.jsonl", row)
    with pytest.raises(UserError, match=rf"a\.jsonl:1.*{message}|{message}.*a\.jsonl:1"):
        list(read_examples(path))


def test_mixed_formats_are_refused(tmp_path):
    rows = [{"prompt": "p"}, {"text": "t"}]
    with pytest.raises(UserError, match="different formats"):
        detect_format(rows)
    with pytest.raises(UserError, match=r"a\.jsonl:2: a text row in a file of prompt-only"):
        list(read_examples(write(tmp_path / "a.jsonl", *rows)))
    with pytest.raises(UserError, match="no rows"):
        detect_format([])


def test_real_files(shared, tmp_path):
    alpaca = list(read_examples(shared / "instruction_small/instruction_data.jsonl"))
    assert len(alpaca) == 900 and all(len(row["completions"]) == 1 for row in alpaca)
    pairs = list(read_examples(shared / "ultrafeedback/clean.jsonl"))
    assert len(pairs) > 700 and all(len(row["completions"]) == 2 for row in pairs)
    talks = list(read_examples(shared / "mt_bench/dummy_conversation.jsonl"))
    assert len(talks) == 300 and any(len(row["messages"]) > 2 for row in talks)
    with pytest.raises(UserError, match=r"preference_data\.jsonl:1: .*several formats"):
        list(read_examples(shared / "instruction_small/preference_data.jsonl"))
