"""Stop strings: where an answer's text ends, whatever the borders of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from selfevo_jax.text.tokenizer import Tokenizer


def cut_at_stop(
    tokenizer: Tokenizer, tokens: Sequence[int], fresh: int, stops: Sequence[str]
) -> tuple[str, int] | None:
    """(text before the first stop string, tokens wholly before it), or None without one.

    Only the last `fresh` tokens are new. The first token whose text completes any stop string
    decides, so that the answer does not depend on how many tokens are looked at together.
    """
    if not stops or not _first(tokenizer.decode(tokens), stops):
        return None
    for count in range(len(tokens) - fresh + 1, len(tokens) + 1):
        found = _first(tokenizer.decode(tokens[:count]), stops)
        if found:
            text = found[0]
            return text, _tokens_before(tokenizer, tokens[:count], text)
    return None


def _first(text: str, stops: Sequence[str]) -> tuple[str] | None:
    """The text before the earliest stop string, in a tuple (it may be empty)."""
    starts = [start for start in (text.find(stop) for stop in stops) if start >= 0]
    return (text[: min(starts)],) if starts else None


def _tokens_before(tokenizer: Tokenizer, tokens: Sequence[int], text: str) -> int:
    """The most tokens whose text does not go beyond `text`."""
    return next(
        count
        for count in range(len(tokens), -1, -1)
        if text.startswith(tokenizer.decode(tokens[:count]))
    )
