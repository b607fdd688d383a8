"""Acquisition: each strategy against a hand-made pool, and token statistics against torch."""

import numpy as np
import pytest

from selfevo_jax.evolve.acquire import (
    UNCERTAINTY,
    by_chance,
    by_diversity,
    by_uncertainty,
    facility_location,
    k_centre,
    spread_over,
    statistics,
    without_near_copies,
)
from selfevo_jax.evolve.tables import study
from selfevo_jax.records import Answer, Example, Prompt, Row, Sample, Vector


def question(number: int) -> Prompt:
    return Prompt.make(task="t", messages=({"role": "user", "content": f"q{number}"},), answer=None)


def judged(*values: dict[str, float]) -> list[tuple[Sample, Row, Prompt]]:
    rows = []
    for number, found in enumerate(values):
        prompt = question(number)
        sample = Sample.make(
            prompt_id=prompt.id, parent_id=prompt.id, text="", tokens=(), logps=(), finish="stop",
            seed=number, policy="base",
        )  # fmt: skip
        rows.append((sample, Row.make(source_id=sample.id, values=found), prompt))
    return rows


def test_statistics_of_two_tokens_by_hand():
    sure, even = [1.0, 0.0], [0.5, 0.5]
    tokens = {
        "entropy": np.array([0.0, np.log(2)]),
        "margin": np.array([sure[0] - sure[1], even[0] - even[1]]),
        "logp": np.array([0.0, np.log(0.5)]),
    }
    found = statistics(tokens)
    assert found["mean_entropy"] == pytest.approx(np.log(2) / 2)
    assert found["max_entropy"] == pytest.approx(np.log(2))
    assert (found["mean_margin"], found["min_margin"]) == (0.5, 0.0)
    assert found["sum_logp"] == pytest.approx(2 * found["mean_logp"]) == pytest.approx(-np.log(2))


@pytest.mark.parametrize("strategy", UNCERTAINTY)
def test_the_least_sure_come_first(strategy):
    """Question 1 is the least sure by every measure, question 2 the surest."""
    sure = {"mean_entropy": 0.1, "max_entropy": 0.2, "mean_margin": 0.9, "min_margin": 0.8}
    unsure = {"mean_entropy": 2.0, "max_entropy": 3.0, "mean_margin": 0.1, "min_margin": 0.0}
    middle = {"mean_entropy": 1.0, "max_entropy": 1.0, "mean_margin": 0.5, "min_margin": 0.4}
    logps = [{"mean_logp": logp, "sum_logp": 3 * logp} for logp in (-0.5, -2.0, -0.1)]
    rows = judged(middle | logps[0], unsure | logps[1], sure | logps[2])
    chosen = by_uncertainty(rows, 2, strategy)
    assert [row.source_id for row in chosen] == [question(1).id, question(0).id]
    assert [row.values["rank"] for row in chosen] == [0, 1]


def test_the_uncertain_can_be_spread_over_their_kinds():
    """Two near copies lead the shortlist: the second of them is not taken."""
    rows = [
        (
            Row.make(source_id=f"{n}", values={"rank": n, "strategy": "entropy", "score": 9.0 - n}),
            Vector.make(source_id=f"{n}", policy="p", values=vector),
        )
        for n, vector in enumerate([(0.0, 1.0), (0.0, 0.99), (1.0, 0.0), (0.7, 0.7)])
    ]
    chosen = spread_over(rows, 3)
    assert [row.source_id for row in chosen] == ["0", "2", "3"]
    assert [row.values["rank"] for row in chosen] == [0, 1, 2]
    assert [row.values["score"] for row in chosen] == [9.0, 7.0, 6.0]


def test_the_study_tells_the_gain_over_chance_at_the_same_m():
    def line(policy: str, marks: str) -> list[Answer]:
        return [
            Answer.make(
                prompt_id=f"{n}", task="t", policy=policy, text=f"{n}", parsed="1", gold="1",
                score=float(mark == "x"), correct=mark == "x", tokens=1,
            )
            for n, mark in enumerate(marks)
        ]  # fmt: skip

    answers = [
        *line("base", "...."), *line("random-1.round_01", "x..."),
        *line("random-2.round_02", "xx.."), *line("min_margin-2.round_02", "xxx."),
    ]  # fmt: skip
    rows = [row.values for row in study(answers)]
    assert [(r.get("strategy"), r.get("m")) for r in rows] == [
        (None, None), ("random", 1), ("random", 2), ("min_margin", 2),
    ]  # fmt: skip
    assert rows[3]["over_random"] == 0.25 and rows[3]["gain"] == 0.75
    assert rows[3]["over_random_low"] < 0.25 < rows[3]["over_random_high"]
    assert not any("over_random" in row for row in rows[:3])


def test_k_centre_takes_the_farthest_from_all_centres():
    vectors = np.array([[0.0], [1.0], [2.0], [10.0], [4.5]])
    assert [i for i, _ in k_centre(vectors, [0], 2)] == [3, 4]
    assert [d for _, d in k_centre(vectors, [0], 2)] == [10.0, 4.5]
    assert [i for i, _ in k_centre(vectors, [], 1)] == [4]  # nearest to the mean 3.5
    assert sorted(i for i, _ in k_centre(np.zeros((4, 1)), [], 9)) == [0, 1, 2, 3]


def test_a_pick_of_k_centre_does_not_go_through_the_centres():
    """It went through all of them, and through all picks, again for every pick."""
    looks = []

    class Watched(list):
        def __iter__(self):
            looks.append(1)
            return super().__iter__()

    vectors = np.arange(40.0)[:, None]
    picked = [i for i, _ in k_centre(vectors, Watched([3, 11]), 38)]
    assert sorted([3, 11, *picked]) == list(range(40))
    assert len(looks) < 5


def test_facility_location_takes_what_speaks_for_most():
    angles = np.array([0.0, 0.1, 0.2, 1.5, 1.6])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    first, second = (i for i, _ in facility_location(vectors, [], 2))
    assert first in (0, 1, 2) and second in (3, 4)
    assert [i for i, _ in facility_location(vectors, [1], 1)][0] in (3, 4)


def test_diversity_keeps_clear_of_what_is_labelled():
    rows = [
        (question(n), Vector.make(source_id=question(n).id, policy="base", values=(x, 0.0)))
        for n, x in enumerate((0.0, 0.1, 5.0))
    ]
    labelled = [
        Example.make(prompt_id=question(2).id, source_id="s", prompt=({"role": "user"},),
                     completion="x")
    ]  # fmt: skip
    chosen = by_diversity(rows, labelled, 1, "k_centre")
    assert [row.source_id for row in chosen] == [question(0).id]


def test_chance_is_seeded_and_draws_without_replacement():
    pool = [question(n) for n in range(20)]
    one, two = by_chance(pool, 8, 1), by_chance(pool, 8, 2)
    assert one == by_chance(pool, 8, 1) != two
    assert len({row.source_id for row in one}) == 8


def test_near_copies_are_left_out():
    unit = [(1.0, 0.0), (0.999, 0.0447), (0.0, 1.0)]
    rows = [
        (question(n), Vector.make(source_id=question(n).id, policy="base", values=v))
        for n, v in enumerate(unit)
    ]
    assert without_near_copies(rows, 0.99) == [question(0), question(2)]
    assert len(without_near_copies(rows, 0.9999)) == 3
