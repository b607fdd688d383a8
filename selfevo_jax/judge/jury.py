"""Several judges, one verdict: each has one vote, and who failed has none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from selfevo_jax.errors import UserError
from selfevo_jax.judge.pairwise import DIGITS, FAILURE, FIRST, SECOND, TIE, Comparison
from selfevo_jax.records import content_id


def jury(judges: Sequence[Iterable[Comparison]]) -> Iterator[Comparison]:
    """One comparison a contest out of those of all judges, who saw the same contests in one order.

    The output that more judges name wins, equal votes tie, and where all failed the jury fails.
    `p_first` is the mean over those who did not fail; `ballots` are all ballots, each with the
    number of its juror. Raises UserError when the judges saw different contests.
    """
    if len(judges) < 2:
        raise UserError(f"a jury has at least two judges, not {len(judges)}")
    for ballots in zip_longest(*judges):
        if len({None if c is None else c.item_id for c in ballots}) != 1:
            raise UserError("the judges of a jury saw different contests; judge the same with all")
        yield combined(ballots)


def combined(comparisons: Sequence[Comparison]) -> Comparison:
    """The jury's comparison of one contest."""
    counted = [c for c in comparisons if c.verdict != FAILURE]
    votes = Counter(c.verdict for c in counted)
    verdict, failure = TIE, None
    if not counted:
        verdict, failure = FAILURE, comparisons[0].failure
    elif votes[FIRST] != votes[SECOND]:
        verdict = FIRST if votes[FIRST] > votes[SECOND] else SECOND
    means = [c.p_first for c in counted if c.p_first is not None]
    cuts = Counter[str]()
    for comparison in comparisons:
        cuts |= Counter(comparison.cut)
    return Comparison.make(
        item_id=comparisons[0].item_id,
        judge="jury(" + ", ".join(c.judge for c in comparisons) + ")",
        protocol="+".join(dict.fromkeys(c.protocol for c in comparisons)),
        prompt=content_id(*[c.prompt for c in comparisons]),
        ballots=tuple(
            {**ballot, "juror": number}
            for number, comparison in enumerate(comparisons)
            for ballot in comparison.ballots
        ),
        p_first=round(sum(means) / len(means), DIGITS) if means else None,
        verdict=verdict,
        failure=failure,
        margin=max(c.margin for c in comparisons),
        cut=dict(sorted(cuts.items())),
        neutralised=tuple(sorted({name for c in comparisons for name in c.neutralised})),
    )
