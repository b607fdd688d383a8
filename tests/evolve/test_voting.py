"""Votes over replies: typical ones, commonest answers, rules for few and equal replies."""

import numpy as np
import pytest

from selfevo_jax.evolve.voting import (
    consistent,
    even_cap,
    inliers,
    medoid,
    representatives,
    shortened,
    shown_examples,
    typical_examples,
)
from selfevo_jax.records import Prompt, Row, Sample, Vector, Verdict


def reply(text: str, number: int) -> Sample:
    return Sample.make(
        prompt_id="p", parent_id="a", text=text, tokens=(number,), logps=(0.0,), finish="stop",
        seed=number, policy="base",
    )  # fmt: skip


def placed(*rows: tuple[str, tuple[float, ...]]) -> list[tuple[Sample, Vector]]:
    made = []
    for number, (text, values) in enumerate(rows):
        sample = reply(text, number)
        made.append((sample, Vector.make(source_id=sample.id, policy="base", values=values)))
    return made


def voted(*rows, contamination=0.3) -> str:
    (winner,) = medoid(placed(*rows), contamination, 0)
    return winner.text


def test_the_reply_nearest_the_centre_of_the_inliers_wins():
    """Without the far one the centre is 0.2; with it, it would be 1.36, nearest to 0.4."""
    near = [("a", (0.0, 0.0)), ("b", (0.2, 0.0)), ("c", (0.4, 0.0)), ("d", (0.2, 0.01))]
    far = ("far", (6.0, 0.0))
    assert voted(*near, far) in ("b", "d")
    assert voted(*near, far, contamination=0.0) == "c"


def test_outliers_are_the_isolated_ones_and_only_their_share():
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(0, 0.1, (8, 16)), rng.normal(5, 0.1, (2, 16))])
    assert inliers(vectors, 0.2, 0).tolist() == list(range(8))
    assert inliers(vectors, 0.05, 0).tolist() == list(range(10))
    assert inliers(vectors[:3], 0.5, 0).tolist() == [0, 1, 2]


def test_few_and_equal_replies_have_rules():
    assert voted(("only", (1.0, 0.0))) == "only"
    assert voted(("first", (1.0, 0.0)), ("second", (0.0, 1.0))) == "first"
    same = [("same", (1.0, 0.0))] * 5
    assert voted(*same) == "same"
    assert voted(("x", (0.0, 9.0)), ("y", (0.0, 8.0)), *same[:3]) == "same"


def test_the_vote_is_the_same_every_time():
    rng = np.random.default_rng(1)
    rows = [(str(i), tuple(rng.normal(size=8))) for i in range(10)]
    assert len({voted(*rows) for _ in range(3)}) == 1


def answered(*parsed: str | None) -> list[tuple[Sample, Verdict]]:
    rows = []
    for number, answer in enumerate(parsed):
        sample = reply(f"reply {number}", number)
        verdict = Verdict.make(sample_id=sample.id, score=0.0, correct=False, parsed=answer)
        rows.append((sample, verdict))
    return rows


def test_self_consistency_counts_answers_and_not_texts():
    assert consistent(answered("3", "4", "4", None, None, None))[0].text == "reply 1"
    assert consistent(answered("4", "3", "3", "4"))[0].text == "reply 0"
    assert consistent(answered(None, None)) == []


def test_representatives_are_one_of_each_cluster():
    vectors = np.array([[0, 0], [0.1, 0], [0.05, 0], [9, 9], [9.1, 9], [9.05, 9]], float)
    assert representatives(vectors, 2, 0) == [2, 5]
    assert representatives(np.zeros((4, 2)), 3, 0) == [0]


def of_task(task: str, number: int, file: str = "") -> Prompt:
    messages = ({"role": "user", "content": f"q{number}"},)
    meta = {"task": file} if file else {}
    return Prompt.make(task=task, messages=messages, answer=None, meta=meta)


def chosen_from(prompts: list[Prompt]) -> list[Row]:
    rows = []
    for number, prompt in enumerate(prompts):
        critique, answer = reply(f"because {number}", number), reply(f"answer {number}", number)
        vector = Vector.make(source_id=critique.id, policy="base", values=(float(number), 0.0))
        rows.append((critique, vector, answer, prompt))
    return typical_examples(rows, 1, 0)


def test_examples_are_chosen_within_a_task():
    chosen = [row.values for row in chosen_from([of_task(t, n) for n, t in enumerate("aabb")])]
    assert [values["task"] for values in chosen] == ["a", "b"]
    for values in chosen:
        number = values["input"][1:]
        assert values["output"] == f"answer {number}" and values["reason"] == f"because {number}"


def test_a_collection_of_tasks_is_not_one_task():
    """The tasks of Natural Instructions have one name; the file is told by `meta`."""
    prompts = [of_task("collection", n, f"file_{n % 3}") for n in range(6)]
    examples = chosen_from(prompts)
    assert [row.values["task"] for row in examples] == ["file_0", "file_1", "file_2"]
    for prompt, example in zip(prompts[:3], examples, strict=True):
        shown = shown_examples(prompt, examples, room=500)
        assert shown.count("Task: ") == 1 and example.values["reason"] in shown
    assert shown_examples(of_task("collection", 9, "file_9"), examples, room=500) == ""


@pytest.mark.parametrize("room", [0, 100, 500, 3000, 9000])
def test_examples_fill_their_room_and_no_more(room):
    values = {"task": "", "output": "short", "reason": "r" * 1000}
    examples = [
        Row.make(source_id=str(n), values=values | {"input": "y" * 4000 + f"end {n}"})
        for n in range(2)
    ]
    shown = shown_examples(of_task("any", 0), examples, room)
    assert len(shown) <= room
    if room < 500:
        assert shown == ""  # of what would be left nobody learns
    else:
        assert len(shown) > room - 10
        assert shown.count("end 0") == shown.count("end 1") == 1 and shown.count("short") == 2


def test_the_longest_texts_are_cut_first():
    assert even_cap([10, 200, 300], 1000) == 300
    assert even_cap([10, 200, 300], 410) == 200
    assert even_cap([10, 200, 300], 110) == 50
    assert even_cap([10, 200, 300], -5) == even_cap([], 10) == 0


def test_a_text_is_cut_in_its_middle():
    assert shortened("abc", 3) == "abc"
    assert shortened("a" * 50 + "b" * 50, 27) == "a" * 10 + " [...] " + "b" * 10
    assert [len(shortened("x" * 100, letters)) for letters in (0, 5, 8, 99)] == [0, 5, 8, 99]


@pytest.mark.parametrize("count", [3, 4, 7])
def test_every_number_of_replies_has_one_winner(count):
    rng = np.random.default_rng(count)
    rows = [(str(i), tuple(rng.normal(size=4))) for i in range(count)]
    assert len(medoid(placed(*rows), 0.3, 0)) == 1
