"""Arena-Hard's files and figures: Bradley-Terry scores over a baseline, with bootstrap intervals.

Li et al. 2024, "From Crowdsourced Data to High-Quality Benchmarks: Arena-Hard and BenchBuilder".
Every question is judged in both orders with `A>>B A>B A=B B>A B>>A`; a strong verdict counts
three times. A judgment file has `uid, category, judge, model, baseline, games` with two games; in
the first the baseline is A, in the second the model. A model's score is 100 times its modelled
chance against the baseline, whose own is 50. With style control the answers' lengths are a
covariate of the fit, so that a score is that at equal length.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.data import raw_rows

# Verdict -> (chance that A wins, weight).
VERDICTS = {
    "A>>B": (1.0, 3), "A>B": (1.0, 1), "A=B": (0.5, 1), "B>A": (0.0, 1), "B>>A": (0.0, 3),
}  # fmt: skip
_LABEL = re.compile(r"\[\[(A>>B|A>B|A=B|B>A|B>>A)\]\]")
RESAMPLES = 100
RIDGE = 1e-5  # on strengths, per battle: a model that only wins stays finite
STEPS = 50  # of Newton's method; it needs about six


@dataclass(frozen=True)
class Answer:
    """A model's answer to the question `uid`, whose text is `prompt`."""

    uid: str
    model: str
    prompt: str
    text: str


@dataclass(frozen=True)
class Battle:
    """One game from the model's side: its chance of the win, a weight, and who was longer.

    `longer` is (model length - baseline length) / (sum of both), in [-1, 1].
    """

    uid: str
    model: str
    won: float
    weight: float
    longer: float = 0.0


@dataclass(frozen=True)
class Standing:
    """A model's score with its 95 % bootstrap interval. The baseline's is 50 to 50."""

    model: str
    score: float
    low: float
    high: float
    battles: int


def verdict(judgment: str) -> str | None:
    """The label of a judgment: the last `[[...]]`; None where there is none."""
    found = _LABEL.findall(judgment)
    return found[-1] if found else None


def read_answers(path: Path) -> dict[str, Answer]:
    """uid -> answer of a model's answer file. Raises UserError naming a bad or repeated row."""
    found: dict[str, Answer] = {}
    for place, row in raw_rows(path):
        try:
            *_, asked, said = row["messages"]
            content = said["content"]
            text = content["answer"] if isinstance(content, Mapping) else content
            answer = Answer(row["uid"], row["model"], asked["content"], text)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{place}: no uid and model, or no question and answer") from error
        if not all(isinstance(part, str) for part in (answer.uid, answer.model, text)):
            raise UserError(f"{place}: uid, model or the answer is no text")
        if answer.uid in found:
            raise UserError(f"{place}: the uid {answer.uid!r} came before; keep one answer of each")
        found[answer.uid] = answer
    if not found:
        raise UserError(f"{path} holds no answers")
    return found


def check_same_questions(model: Mapping[str, Answer], baseline: Mapping[str, Answer]) -> None:
    """Raises UserError when a question is answered in one file only."""
    if odd := sorted(set(model) ^ set(baseline)):
        raise UserError(f"{len(odd)} questions are answered in one file only, the first: {odd[0]}")


def answer_row(uid: str, model: str, prompt: str, answer: str) -> dict[str, Any]:
    """A row of an answer file; the answer's id follows from its content."""
    messages = [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": {"answer": answer}},
    ]
    return {"uid": uid, "ans_id": f"{uid}-{model}", "model": model, "messages": messages}


def judgment_row(
    uid: str, category: str, judge: str, model: str, baseline: str, labels: Sequence[str | None]
) -> dict[str, Any]:
    """A row of a judgment file. `labels`: verdicts with the baseline as A, then as B."""
    games = [{"score": label} for label in labels]
    return {
        "uid": uid, "category": category, "judge": judge, "model": model, "baseline": baseline,
        "games": games,
    }  # fmt: skip


def read_judgments(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a judgment file. Raises UserError naming a bad row."""
    rows = []
    for place, row in raw_rows(path):
        games = row.get("games")
        if not all(isinstance(row.get(n), str) for n in ("uid", "model", "baseline")):
            raise UserError(f"{place}: uid, model or baseline is missing")
        if not isinstance(games, list) or len(games) != 2:
            raise UserError(f"{place}: the field 'games' must hold both orders")
        for game in games:
            score = game.get("score") if isinstance(game, Mapping) else game
            if score is not None and not (isinstance(score, str) and score in VERDICTS):
                raise UserError(f"{place}: the score {score!r} is none of {', '.join(VERDICTS)}")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} holds no judgments")
    return rows


def battles(
    judgments: Iterable[Mapping[str, Any]], lengths: Mapping[tuple[str, str], int] | None = None
) -> tuple[list[Battle], int]:
    """(battles, games without a verdict) of judgments of one baseline.

    A game without a verdict is left out and counted; the other order of its question stays.
    `lengths`: (model, uid) -> length of the answer, for style control.
    """
    found, missing = [], 0
    for row in judgments:
        for order, game in enumerate(row["games"]):
            label = game.get("score") if isinstance(game, Mapping) else game
            if label is None:
                missing += 1
                continue
            first, weight = VERDICTS[label]
            won = first if order == 1 else 1.0 - first
            longer = _longer(row, lengths) if lengths else 0.0
            found.append(Battle(row["uid"], row["model"], won, weight, longer))
    return found, missing


def _longer(row: Mapping[str, Any], lengths: Mapping[tuple[str, str], int]) -> float:
    own, other = (lengths[row[side], row["uid"]] for side in ("model", "baseline"))
    return (own - other) / max(own + other, 1)


def standings(
    fought: Sequence[Battle],
    baseline: str,
    style_control: bool = False,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Standing]:
    """Every model's score against the baseline, the best first, the baseline among them.

    Intervals come from resampling questions, both orders together. Raises UserError without
    battles.
    """
    if not fought:
        raise UserError("no battles: no judgment has a verdict")
    models = sorted({battle.model for battle in fought})
    arrays = _arrays(fought, models, style_control)
    scores = _scores(arrays, arrays.weight, len(models))
    drawn = np.array([
        _scores(arrays, arrays.weight * times[arrays.question], len(models))
        for times in _resampled(int(arrays.question.max()) + 1, resamples, seed)
    ])  # fmt: skip
    low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    counts = np.bincount(arrays.who, minlength=len(models))
    found = [Standing(baseline, 50.0, 50.0, 50.0, len(fought))]
    for model, *figures, count in zip(models, scores, low, high, counts, strict=True):
        found.append(Standing(model, *map(float, figures), int(count)))
    return sorted(found, key=lambda standing: -standing.score)


@dataclass(frozen=True)
class _Arrays:
    """Battles as columns [n]; `who` and `question` are numbers of models and of questions."""

    who: np.ndarray
    question: np.ndarray
    won: np.ndarray
    weight: np.ndarray
    longer: np.ndarray


def _arrays(fought: Sequence[Battle], models: Sequence[str], style_control: bool) -> _Arrays:
    place = {model: number for number, model in enumerate(models)}
    asked = {uid: number for number, uid in enumerate(dict.fromkeys(b.uid for b in fought))}
    return _Arrays(
        who=np.array([place[battle.model] for battle in fought]),
        question=np.array([asked[battle.uid] for battle in fought]),
        won=np.array([battle.won for battle in fought]),
        weight=np.array([battle.weight for battle in fought], float),
        longer=np.array([battle.longer for battle in fought]) * style_control,
    )


def _resampled(questions: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each question is drawn, per resample."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = generator.integers(0, questions, questions)
        yield np.bincount(drawn, minlength=questions)


def _scores(arrays: _Arrays, weight: np.ndarray, models: int) -> np.ndarray:
    """100 x the fitted chance of each model against the baseline; NaN for one without battles.

    Bradley-Terry with the baseline's strength 0, so each model has one strength; with style
    control one more coefficient, of the length difference, is shared by all.
    """
    design = np.zeros((len(arrays.who), models + 1))
    design[np.arange(len(arrays.who)), arrays.who] = 1.0
    design[:, -1] = arrays.longer
    strengths = _logistic(design, arrays.won, weight)[:-1]
    scores = 100 * special.expit(strengths)
    scores[np.bincount(arrays.who, weight, models) == 0] = np.nan
    return scores


def _logistic(design: np.ndarray, won: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Coefficients of a weighted logistic regression with a slight ridge, by Newton's method."""
    ridge = RIDGE * weight.sum()
    found = np.zeros(design.shape[1])
    for _ in range(STEPS):
        chance = special.expit(design @ found)
        slope = design.T @ (weight * (chance - won)) + ridge * found
        curve = (design * (weight * chance * (1 - chance))[:, None]).T @ design
        step = np.linalg.solve(curve + ridge * np.eye(len(found)), slope)
        found -= np.clip(step, -2, 2)  # a full step from afar can overshoot
        if np.abs(step).max() < 1e-9:
            break
    return found
