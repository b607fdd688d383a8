"""Which of two outputs is better? Asked in both orders, read from probabilities.

The judge's reply is forced up to the place of the verdict, and the verdict is the probability of
the two labels there, not a text that a candidate could have dictated. Protocols are prompt files:
`base` (LLMBar's way, Zeng et al. 2024, arXiv:2310.07641), `refeval` and `refmatch` (a reference
beside the outputs: Shi et al. 2026, arXiv:2602.16802), and `cot`, where the judge writes its
reasons first. A judge that gives no verdict fails: no coin is thrown, nothing counts as a tie.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from selfevo_jax.errors import UserError
from selfevo_jax.judge.asking import JudgeModel, Messages, read_verdicts
from selfevo_jax.judge.material import neutral_fields
from selfevo_jax.records import Record
from selfevo_jax.text.prompt_files import PromptFile, read_prompt

PROMPTS = Path(__file__).parent / "prompts"
PROTOCOLS = ("base", "refeval", "refmatch", "cot")
ORDERS = ("ab", "ba")  # the first output shown as (a), then as (b)
DIGITS = 6  # kept of a probability; further ones differ with the batch's shape
Call = Literal["first", "second", "tie", "failure"]
FIRST: Call = "first"
SECOND: Call = "second"
TIE: Call = "tie"
FAILURE: Call = "failure"


@dataclass(frozen=True)
class Contest:
    """Two outputs for one instruction, and the references there are (none: no reference)."""

    id: str
    instruction: str
    first: str
    second: str
    references: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Comparison(Record):
    """What a judge says of a contest.

    `ballots` has one object for every reference and order: {"reference", "order", "p", "mass",
    "reply", "failure"}; p is the probability that the first output is better, mass what both
    labels have of all that could follow. `p_first` is the mean p of the ballots that count.
    `verdict` is "first", "second", "tie" or "failure", and `failure` says why it failed. `cut`
    lists the letters that fields lost for want of room, `neutralised` the fields that were
    made harmless.
    """

    identity: ClassVar[tuple[str, ...]] = ("item_id", "judge", "prompt", "ballots")

    item_id: str
    judge: str
    protocol: str
    prompt: str
    ballots: tuple[Mapping[str, Any], ...]
    p_first: float | None
    verdict: Call
    failure: str | None
    margin: float
    cut: Mapping[str, int]
    neutralised: tuple[str, ...]


def protocol(name: str) -> PromptFile:
    """The prompt of a protocol, or of a file of one's own. Raises UserError for neither."""
    if name in PROTOCOLS:
        return read_prompt(PROMPTS / f"pairwise_{name}.txt")
    if not name.endswith(".txt"):
        raise UserError(f"protocol {name!r} must be one of {', '.join(PROTOCOLS)}, or FILE.txt")
    return read_prompt(Path(name))


@dataclass(frozen=True)
class PairwiseJudge:
    """Compares outputs with `prompt`, asking `model`.

    Outputs tie where the probability is within `margin` of one half. `window` contests are asked
    about together.
    """

    model: JudgeModel
    prompt: PromptFile
    margin: float = 0.0
    window: int = 64

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 0.5:
            raise UserError(f"margin {self.margin} must be at least 0 and below 0.5")
        if len(self.prompt.listed("labels")) != 2:
            raise UserError(f"prompt {self.prompt.name}: a pairwise judge needs two labels")

    def compare(self, contests: Iterable[Contest]) -> Iterator[Comparison]:
        """One comparison for every contest, in their order.

        Raises UserError for a contest without the reference that the prompt needs, or one that
        does not fit even without the fields that may be cut.
        """
        source = iter(contests)
        while window := list(islice(source, self.window)):
            yield from self._window(window)

    def _window(self, window: Sequence[Contest]) -> list[Comparison]:
        asked = [self._asked(contest) for contest in window]
        messages = {key: text for shown in asked for key, text in shown.messages.items()}
        found = read_verdicts(self.model, self.prompt, messages, _spoken)
        return [
            self._comparison(contest, shown, found)
            for contest, shown in zip(window, asked, strict=True)
        ]

    def _asked(self, contest: Contest) -> Shown:
        needed = "reference" in self.prompt.fields
        if needed and not contest.references:
            raise UserError(
                f"{contest.id}: protocol {self.prompt.name} needs a reference and there is none"
            )
        shown = Shown({}, Counter(), set())
        for number, reference in enumerate(contest.references if needed else (None,)):
            self._add(contest, number, reference, shown)
        return shown

    def _add(self, contest: Contest, number: int, reference: str | None, shown: Shown) -> None:
        """Both orders of one reference, with one cap, so that both orders see the same texts."""
        orders: dict[str, dict[str, str]] = {}
        for order in ORDERS:
            fields, changed = neutral_fields(_fields(contest, order, reference))
            orders[f"{contest.id}/{number}/{order}"] = fields
            shown.neutralised.update(_named(changed, order))
        cap = self.model.cap(self.prompt, contest.id, list(orders.values()))
        for key, fields in orders.items():
            shown.messages[key] = self.prompt.fill(fields, cap)
            for name, lost in self.prompt.lost(fields, cap).items():
                (field,) = _named([name], key[-2:])
                shown.cut[field] = max(shown.cut[field], lost)

    def _comparison(self, contest: Contest, shown: Shown, found: Mapping[str, Any]) -> Comparison:
        ballots = []
        for key in shown.messages:
            _, number, order = key.rsplit("/", 2)
            reading = found[key]
            p = reading.p
            if p is not None and order == "ba":
                p = 1.0 - p
            ballots.append(
                {"reference": int(number), "order": order}
                | {"p": _rounded(p), "mass": _rounded(reading.mass)}
                | {"reply": reading.reply, "failure": reading.failure}
            )
        verdict, p_first, failure = settled(ballots, self.margin)
        return Comparison.make(
            item_id=contest.id,
            judge=self.model.name,
            protocol=self.prompt.name,
            prompt=self.prompt.hash,
            ballots=tuple(ballots),
            p_first=p_first,
            verdict=verdict,
            failure=failure,
            margin=self.margin,
            cut=dict(sorted(shown.cut.items())),
            neutralised=tuple(sorted(shown.neutralised)),
        )


@dataclass(frozen=True)
class Shown:
    """The messages of a contest by "contest/reference/order", and what was done to its texts."""

    messages: dict[str, Messages]
    cut: Counter[str]
    neutralised: set[str]


def called(p: float | None, margin: float) -> Call:
    """What one probability of the first output says."""
    if p is None:
        return FAILURE
    if abs(p - 0.5) <= margin:
        return TIE
    return FIRST if p > 0.5 else SECOND


def settled(
    ballots: Sequence[Mapping[str, Any]], margin: float
) -> tuple[Call, float | None, str | None]:
    """(verdict, p of the first output, why it failed) of all ballots of a contest.

    Each reference votes with its mean over both orders; the output with more votes wins, equal
    votes tie. A reference one of whose orders failed has no vote, since the other order alone
    would carry the judge's liking for a place; where none has, the contest is a failure.
    """
    by_reference: dict[int, list[Mapping[str, Any]]] = {}
    for ballot in ballots:
        by_reference.setdefault(ballot["reference"], []).append(ballot)
    means = [
        round(sum(ballot["p"] for ballot in both) / len(both), DIGITS)
        for both in by_reference.values()
        if all(ballot["failure"] is None for ballot in both)
    ]
    if not means:
        return FAILURE, None, next(b["failure"] for b in ballots if b["failure"] is not None)
    votes = Counter(called(p, margin) for p in means)
    p_first = round(sum(means) / len(means), DIGITS)
    if votes[FIRST] == votes[SECOND]:
        return TIE, p_first, None
    return (FIRST if votes[FIRST] > votes[SECOND] else SECOND), p_first, None


def _fields(contest: Contest, order: str, reference: str | None) -> dict[str, str]:
    first, second = (f"output_{side}" for side in order)
    fields = {"instruction": contest.instruction, first: contest.first, second: contest.second}
    return fields if reference is None else fields | {"reference": reference}


def _named(fields: Iterable[str], order: str) -> list[str]:
    """Fields by what they hold, "first" and "second" in place of the side they are shown on."""
    first, second = (f"output_{side}" for side in order)
    names = {first: FIRST, second: SECOND}
    return [names.get(name, name) for name in fields]


def _spoken(reply: str, labels: Sequence[str]) -> str | None:
    """The label of a written verdict, "Output (a)"; None where there is none, or more than one."""
    said = {text.lower() for text in re.findall(r"output\s*\((\w+)\)", _last(reply), re.IGNORECASE)}
    named = [label for label in labels if label.lower() in said]
    return named[0] if len(said) == len(named) == 1 else None


def _last(reply: str) -> str:
    """What follows the last "Verdict:", or all of a reply that has none."""
    return re.split(r"verdict\W*:", reply, flags=re.IGNORECASE)[-1]


def _rounded(p: float | None) -> float | None:
    return None if p is None or not math.isfinite(p) else round(p, DIGITS)
