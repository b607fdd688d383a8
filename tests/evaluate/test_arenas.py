"""AlpacaEval and Arena-Hard: figures on judgments whose truth is known, files of both."""

import csv
import io
import json

import numpy as np
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate import alpaca_eval, arena_hard
from selfevo_jax.evaluate.arena_hard import VERDICTS
from selfevo_jax.evaluate.data import jsonl


def judged(n, theta, phi, seed=0, model_length=600):
    """Annotations drawn from the length model itself: at equal length sigmoid(theta) win."""
    draw = np.random.default_rng(seed)
    own, base = draw.normal(model_length, 200, n).clip(20), draw.normal(400, 200, n).clip(20)
    own, base = own.astype(int), base.astype(int)
    gap = own - base
    chance = 1 / (1 + np.exp(-(theta + phi * np.tanh(gap / gap.std()))))
    return [
        {"instruction": f"i{k}", "output_1": "a" * base[k], "output_2": "b" * own[k],
         "preference": 1.0 + float(draw.random() < chance[k])}
        for k in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize(("theta", "phi"), [(0.0, 1.5), (-0.8, 1.0), (0.7, -1.0), (0.5, 0.0)])
def test_length_control_finds_the_win_rate_at_equal_length(theta, phi):
    truth = 100 / (1 + np.exp(-theta))
    found = [alpaca_eval.win_rate(judged(1500, theta, phi, seed)) for seed in range(4)]
    assert np.mean([f.length_controlled_winrate for f in found]) == pytest.approx(truth, abs=2.5)
    if phi:
        raw = np.mean([f.win_rate for f in found])
        assert abs(raw - truth) > 5 and np.sign(found[0].length_effect) == np.sign(phi)


def test_a_win_rate_is_a_mean_of_probabilities():
    rows = [{"output_1": "a", "output_2": "b", "preference": p} for p in (1.0, 1.25, 2.0)]
    rows.append({"output_1": "a", "output_2": "bbb", "preference": None})
    found = alpaca_eval.win_rate(rows)
    assert found.win_rate == pytest.approx(100 * 1.25 / 3)
    assert found.standard_error == pytest.approx(100 * np.std([0, 0.25, 1], ddof=1) / np.sqrt(3))
    assert (found.n_total, found.unjudged, found.avg_length) == (3, 1, 1.0)
    assert found.length_controlled_winrate == pytest.approx(found.win_rate, abs=0.01)


def test_difficulty_shifts_the_fit():
    rows = judged(2000, 0.0, 0.0)
    rows = [{"instruction": f"i{n}"} | row for n, row in enumerate(rows)]
    gamma = {r["instruction"]: 2.0 if r["preference"] == 2.0 else -2.0 for r in rows}
    known = alpaca_eval.win_rate(rows, gamma)
    assert known.length_controlled_winrate == pytest.approx(known.win_rate, abs=3)


def test_perfect_agreement_of_length_and_preference_stays_finite():
    rows = [
        {"output_1": "a" * 50, "output_2": "b" * n, "preference": 1.0 + (n > 50)}
        for n in range(1, 100)
    ]
    found = alpaca_eval.win_rate(rows)
    assert 0 < found.length_controlled_winrate < 100 and np.isfinite(found.length_effect)


@pytest.mark.parametrize("preference", [0.5, 2.1, float("nan"), "2", True])
def test_a_preference_outside_its_range_is_named(preference):
    rows = [{"output_1": "a", "output_2": "b", "preference": p} for p in (1.0, preference)]
    with pytest.raises(UserError, match="annotation 1"):
        alpaca_eval.win_rate(rows)


def test_alpaca_files_go_round(tmp_path):
    path = tmp_path / "outputs.json"
    rows = [{"instruction": f"i{n}", "output": f"o{n}", "generator": "m"} for n in range(3)]
    path.write_text(alpaca_eval.outputs_json(rows))
    model = alpaca_eval.read_outputs(path)
    baseline = {k: v | {"output": "base", "generator": "b"} for k, v in reversed(model.items())}
    pairs = alpaca_eval.paired_outputs(model, baseline)
    assert [(p["output_1"], p["output_2"]) for p in pairs] == [("base", f"o{n}") for n in range(3)]
    made = [
        alpaca_eval.annotation(p, "judge", x) for p, x in zip(pairs, (1.5, None, 2.0), strict=True)
    ]
    (tmp_path / "annotations.json").write_text(alpaca_eval.outputs_json(made))
    read = alpaca_eval.read_annotations(tmp_path / "annotations.json")
    result = alpaca_eval.win_rate(read)
    assert (result.n_total, result.unjudged, result.win_rate) == (2, 1, 75.0)
    table = list(csv.DictReader(io.StringIO(alpaca_eval.leaderboard_csv({"m": result}))))
    assert table[0]["name"] == "m" and float(table[0]["win_rate"]) == 75.0
    assert set(table[0]) == set(alpaca_eval.LEADERBOARD)
    with pytest.raises(UserError, match="1 instructions are answered in one file only"):
        alpaca_eval.paired_outputs(model, dict(list(baseline.items())[1:]))
    path.write_text(json.dumps([rows[0], rows[0]]))
    with pytest.raises(UserError, match="came before"):
        alpaca_eval.read_outputs(path)


def fought(strengths, n, seed=0, longer=None, effect=0.0):
    """Judgments of models with known chances against the baseline, weak verdicts only."""
    draw = np.random.default_rng(seed)
    rows, lengths = [], {}
    for model, strength in strengths.items():
        for question in range(n):
            gap = 0.0 if longer is None else longer[model] + draw.normal(0, 0.3)
            gap = float(np.clip(gap, -0.9, 0.9))
            lengths[model, f"q{question}"] = int(1000 * (1 + gap))
            lengths["base", f"q{question}"] = int(1000 * (1 - gap))
            chance = 1 / (1 + np.exp(-(strength + effect * gap)))
            games = []
            for order in (0, 1):
                won = draw.random() < chance
                games.append({"score": "A>B" if won == (order == 1) else "B>A"})
            rows.append({"uid": f"q{question}", "model": model, "baseline": "base", "games": games})
    return rows, lengths


def test_scores_are_the_chances_against_the_baseline():
    rows, _ = fought({"weak": -1.0, "even": 0.0, "strong": 1.5}, 800)
    found, missing = arena_hard.battles(rows)
    table = arena_hard.standings(found, "base")
    assert missing == 0 and [s.model for s in table][0] == "strong"
    truth = {"weak": 26.9, "even": 50.0, "strong": 81.8, "base": 50.0}
    for standing in table:
        assert standing.score == pytest.approx(truth[standing.model], abs=4)
        assert standing.low <= standing.score <= standing.high
    (base,) = [s for s in table if s.model == "base"]
    assert (base.score, base.low, base.high) == (50.0, 50.0, 50.0)
    assert table == arena_hard.standings(found, "base")
    for model in ("weak", "even", "strong"):  # one baseline: the fit is the share of wins
        wins = [battle.won for battle in found if battle.model == model]
        (standing,) = [s for s in table if s.model == model]
        assert standing.score == pytest.approx(100 * np.mean(wins), abs=0.05)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    inside = 0
    for seed in range(60):
        rows, _ = fought({"m": 0.4}, 120, seed)
        found, _ = arena_hard.battles(rows)
        (standing,) = [s for s in arena_hard.standings(found, "base") if s.model == "m"]
        inside += standing.low <= 100 / (1 + np.exp(-0.4)) <= standing.high
    assert 50 <= inside <= 60


def test_style_control_takes_the_advantage_of_length_away():
    rows, lengths = fought({"long": 0.0}, 1500, longer={"long": 0.4}, effect=3.0)
    found, _ = arena_hard.battles(rows, lengths)
    (raw,) = [s for s in arena_hard.standings(found, "base") if s.model == "long"]
    (fair,) = [s for s in arena_hard.standings(found, "base", True) if s.model == "long"]
    assert raw.score > 65 and fair.score == pytest.approx(50, abs=5)


def test_strong_verdicts_count_three_times_and_missing_ones_are_counted():
    row = {"uid": "q", "model": "m", "baseline": "b"}
    games = [{"score": "B>>A"}, {"score": None}]
    found, missing = arena_hard.battles([row | {"games": games}])
    assert missing == 1
    assert [(b.won, b.weight) for b in found] == [(1.0, 3)]
    orders = [{"score": "A>B"}, {"score": "A>B"}]
    found, _ = arena_hard.battles([row | {"games": orders}])
    assert [b.won for b in found] == [0.0, 1.0]
    with pytest.raises(UserError, match="no battles"):
        arena_hard.standings([], "b")


def test_a_model_that_only_wins_stays_finite():
    rows, _ = fought({"m": 50.0}, 30)
    found, _ = arena_hard.battles(rows)
    best = arena_hard.standings(found, "base")[0]
    assert 95 < best.score < 100 and np.isfinite(best.high)


def test_the_last_label_of_a_judgment_counts():
    assert arena_hard.verdict("first [[A>B]], but no: [[B>>A]].") == "B>>A"
    assert arena_hard.verdict("A>B") is None and set(VERDICTS) >= {"A=B"}


def test_arena_files_go_round(tmp_path, shared_data):
    answers = arena_hard.read_answers(shared_data / "arena_hard/model_answer_gpt-4-0314.jsonl")
    assert len(answers) == 150
    own = [arena_hard.answer_row(a.uid, a.model, a.prompt, a.text) for a in answers.values()]
    (tmp_path / "m.jsonl").write_text(jsonl(own))
    assert arena_hard.read_answers(tmp_path / "m.jsonl") == answers
    asked = (shared_data / "arena_hard/question_v0.1.jsonl").read_text().splitlines()
    prompts = {row["uid"]: row["prompt"] for row in map(json.loads, asked)}
    assert all(answer.prompt == prompts[uid] for uid, answer in answers.items())
    rows = [arena_hard.judgment_row("u", "c", "j", "m", "b", labels) for labels in (["A>B", None],)]
    path = tmp_path / "judgments.jsonl"
    path.write_text(jsonl(rows))
    assert arena_hard.read_judgments(path) == rows
    for bad, message in (
        ({"games": rows[0]["games"][:1]}, "both orders"),
        ({"games": [{"score": "A"}, {"score": None}]}, "the score 'A'"),
        ({"games": [{"score": ["A>B"]}, {"score": None}]}, "the score"),
        ({"uid": None}, "uid, model or baseline"),
    ):
        path.write_text(json.dumps(rows[0] | bad))
        with pytest.raises(UserError, match=message):
            arena_hard.read_judgments(path)
    (tmp_path / "bad.jsonl").write_text('{"uid": "u", "messages": []}')
    with pytest.raises(UserError, match="bad.jsonl:1"):
        arena_hard.read_answers(tmp_path / "bad.jsonl")
