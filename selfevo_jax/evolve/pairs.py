"""Preference pairs from judged samples: which of two replies to one prompt is the better one."""

from collections.abc import Iterable

from selfevo_jax.records import Pair, Prompt, Sample, Verdict

Judged = Iterable[tuple[Sample, Verdict]]


def right_against_wrong(row: tuple[Judged, Prompt], limit: int) -> list[Pair]:
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


def right_against_older_wrong(
    rows: Iterable[tuple[Judged, Prompt]], older: Judged, limit: int
) -> list[Pair]:
    """The same with right samples of `rows` and, of the same prompts, wrong ones of `older`."""
    wrong: dict[str, list[tuple[Sample, Verdict]]] = {}
    for sample, verdict in older:
        if not verdict.correct:
            wrong.setdefault(sample.prompt_id, []).append((sample, verdict))
    pairs = []
    for judged, prompt in rows:
        right = [(sample, verdict) for sample, verdict in judged if verdict.correct]
        pairs += right_against_wrong(([*right, *wrong.get(prompt.id, [])], prompt), limit)
    return pairs


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
