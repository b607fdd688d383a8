"""Preference pairs from judged samples: which of two replies to one prompt is the better one."""

from collections.abc import Iterable

from selfevo_jax.records import Pair, Prompt, Sample, Verdict


def right_against_wrong(
    row: tuple[Iterable[tuple[Sample, Verdict]], Prompt], limit: int
) -> list[Pair]:
    """At most `limit` pairs of a right and a wrong sample of one prompt.

    Equal texts count once. Every text is used before any is used again; the order is that of the
    samples, so the same samples give the same pairs.
    """
    judged, prompt = row
    right, wrong = {}, {}
    for sample, verdict in judged:
        (right if verdict.correct else wrong).setdefault(sample.text, sample)
    good, bad = list(right.values()), list(wrong.values())
    number = min(limit, max(len(good), len(bad))) if good and bad else 0
    return [pair_of(prompt, good[i % len(good)], bad[i % len(bad)]) for i in range(number)]


def pair_of(prompt: Prompt, chosen: Sample, rejected: Sample) -> Pair:
    """The pair of two replies to a prompt."""
    return Pair.make(
        prompt_id=prompt.id,
        chosen_id=chosen.id,
        rejected_id=rejected.id,
        prompt=prompt.messages,
        chosen=chosen.text,
        rejected=rejected.text,
    )
