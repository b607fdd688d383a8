"""The page of an evaluation: its figures, and every question with prompt, reply and verdict.

One HTML file made as the page of a run is (see `report/page.py`): no network, nothing that a model
wrote is ever parsed as HTML. With another evaluation of the same questions, its replies stand
beside and what became right or wrong can be picked out.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from selfevo_jax.evaluate.results import Figure, TaskResult
from selfevo_jax.evaluate.running import Outcome
from selfevo_jax.report.page import rendered
from selfevo_jax.report.texts import shorten, within_budget

SCRIPTS = ("base.js", "shell.js", "browser.js", "evaluation.js")
PROMPT = 4_000  # characters of a prompt that are kept: its end is what matters
NOTE = (
    "Intervals are 95 %: Wilson's for shares, bootstrap for other scores, by clusters where "
    "questions share a passage. A reply without a recognisable answer counts as wrong."
)
FOOTER = "Made by selfevo eval. Nothing here is loaded from or sent to a network."
Pair = tuple[Outcome, Outcome | None]  # an outcome, and that of the evaluation to compare with


def eval_page(name: str, results: Sequence[TaskResult], pairs: Iterable[Pair]) -> str:
    """The HTML of an evaluation called `name`; `pairs` are its questions in order."""
    data = {
        "name": name,
        "note": NOTE,
        "notes": [note for result in results for note in _notes(result)],
        "figures": [_figure(figure) for result in results for figure in result.figures],
        "tasks": [result.task for result in results],
        "items": _items(pairs),
        "footer": FOOTER,
    }
    first = [figure for result in results for figure in result.figures[:1]]
    plain = "; ".join(f"{f.task}: {f.metric} {f.mean:.3f} (n {f.n})" for f in first)
    return rendered(data, SCRIPTS, plain)


def _notes(result: TaskResult) -> list[str]:
    told = {
        "prompts were too long for the model: not asked, they count as wrong": result.too_long,
        "questions were refused by the server: they count as wrong": result.refused,
        "questions could not be judged: they are left out of the figures": result.unjudged,
        "replies ended for want of room": range(result.cut),
    }
    return [f"{result.task}: {len(which)} {what}." for what, which in told.items() if which]


def _figure(figure: Figure) -> dict[str, Any]:
    return {
        "task": figure.task, "reading": figure.reading, "metric": figure.metric, "n": figure.n,
        "mean": figure.mean, "low": figure.interval.low, "high": figure.interval.high,
        "error": figure.error, "parsed": figure.parsed,
    }  # fmt: skip


def _items(pairs: Iterable[Pair]) -> dict[str, Any]:
    rows, total = within_budget((_item(*pair) for pair in pairs), _size)
    return {"rows": rows, "total": total}


def _item(outcome: Outcome, other: Outcome | None) -> dict[str, Any]:
    return {
        "task": outcome.task,
        "place": outcome.place,
        "prompt": outcome.prompt[-PROMPT:],
        "gold": shorten(outcome.target),
        "after": _reply(outcome),
        "before": None if other is None else _reply(other),
    }


def _size(row: Mapping[str, Any]) -> int:
    return len(row["prompt"]) + len(row["gold"]) + len(row["after"]["text"])


def _reply(outcome: Outcome) -> dict[str, Any]:
    """A question's replies by its first reading and score, as `evaluation.picked` has them."""
    reading = next(iter(outcome.readings.values()))
    scores: Mapping[str, float] = reading["scores"]
    if outcome.logps:
        told = zip(outcome.replies, outcome.logps, strict=True)
        text = "\n".join(f"{choice.strip()}: {logp}" for choice, logp in told)
    else:
        text = "\n\n---\n\n".join(outcome.replies)
    return {
        "text": shorten(text),
        "parsed": reading["parsed"][0],
        "lost": _lost(outcome, scores),
        "right": next(iter(scores.values()), 0.0) == 1.0,
        "scores": ", ".join(f"{metric} {value:.4g}" for metric, value in scores.items()),
    }


def _lost(outcome: Outcome, scores: Mapping[str, float]) -> str:
    """Why there is no verdict on a reply; nothing where there is one."""
    if outcome.too_long:
        return "too long for the model: not asked, counts as wrong"
    if outcome.refused:
        return shorten(f"refused by the server, counts as wrong: {outcome.refused}")
    return "" if scores else "could not be judged: left out of the figures"
