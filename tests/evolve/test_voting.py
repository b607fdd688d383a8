"""Votes over replies: typical ones, commonest answers, rules for few and equal replies."""

import numpy as np
import pytest

from selfevo_jax.evolve.voting import consistent, inliers, medoid, representatives, typical_examples
from selfevo_jax.records import Prompt, Sample, Vector, Verdict


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


def test_examples_are_chosen_within_a_task():
    rows = []
    for number, task in enumerate("aabb"):
        messages = ({"role": "user", "content": f"q{number}"},)
        prompt = Prompt.make(task=task, messages=messages, answer=None)
        critique, answer = reply(f"because {number}", number), reply(f"answer {number}", number)
        vector = Vector.make(source_id=critique.id, policy="base", values=(float(number), 0.0))
        rows.append((critique, vector, answer, prompt))
    chosen = [row.values for row in typical_examples(rows, 1, 0)]
    assert [values["task"] for values in chosen] == ["a", "b"]
    for values in chosen:
        number = values["input"][1:]
        assert values["output"] == f"answer {number}" and values["reason"] == f"because {number}"


@pytest.mark.parametrize("count", [3, 4, 7])
def test_every_number_of_replies_has_one_winner(count):
    rng = np.random.default_rng(count)
    rows = [(str(i), tuple(rng.normal(size=4))) for i in range(count)]
    assert len(medoid(placed(*rows), 0.3, 0)) == 1
