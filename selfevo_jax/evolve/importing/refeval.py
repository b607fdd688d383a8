"""RefEval's files: prompts, references, samples, judged pairs, preference data.

References and samples are aligned with a file of prompts by their row numbers; they are joined
here once, by `aligned`, and by ids ever after.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.importing.line import Line
from selfevo_jax.evolve.importing.shape import Shape, asked, kept, said
from selfevo_jax.evolve.pairs import pair_of
from selfevo_jax.records import Prompt, Record, Row, Sample
from selfevo_jax.text.chat import check_messages

TASK, POLICY, REFERENCE, JUDGE = "refeval", "policy", "reference", "judge"
FAILED = "dummy"  # what the published sampler writes where decoding failed


def prompts(line: Line) -> Iterator[Record]:
    """A question, and nothing else."""
    prompt = asked(TASK, line.text("prompt"))
    yield prompt
    yield from kept(prompt, line.rest())


def judged(line: Line) -> Iterator[Record]:
    """Candidates, and for every ordered pair of them the judge's reply with its log-probs."""
    prompt = asked(TASK, line.text("prompt"))
    pairs, replies = line.take("pairs", list), list(line.each("predictions"))
    if len(pairs) != len(replies):
        raise UserError(f"{line.place}: {len(pairs)} pairs but {len(replies)} predictions")
    texts = list(dict.fromkeys(text for pair in pairs for text in _two(pair, line.place)))
    samples = {text: said(prompt, text, POLICY, n) for n, text in enumerate(texts)}
    yield from (prompt, *samples.values())
    for (first, second), reply in zip(pairs, replies, strict=True):
        ids = {"first": samples[first].id, "second": samples[second].id}
        yield Row.make(source_id=prompt.id, values=ids | reply.rest())
    yield from kept(prompt, line.rest())


def _two(pair: Any, place: str) -> Sequence[str]:
    if not isinstance(pair, list) or [type(text) for text in pair] != [str, str]:
        raise UserError(f"{place}: each of 'pairs' must be two texts")
    return pair


def preferred(line: Line) -> Iterator[Record]:
    """A preference complete for training; scores and log-probs stay beside it."""
    chosen, rejected = (_conversation(line, side) for side in ("chosen", "rejected"))
    question = line.text("prompt")
    if chosen[:-1] != rejected[:-1] or chosen[-2]["content"] != question:
        raise UserError(f"{line.place}: chosen and rejected do not answer the row's prompt")
    prompt = Prompt.make(task=TASK, messages=tuple(chosen[:-1]), answer=None)
    good, bad = (said(prompt, side[-1]["content"], POLICY) for side in (chosen, rejected))
    if good.text == bad.text:
        raise UserError(f"{line.place}: chosen and rejected are the same text")
    pair = pair_of(prompt, good, bad)
    yield from (prompt, good, bad, pair)
    yield from kept(pair, line.rest())


def _conversation(line: Line, name: str) -> list[dict[str, str]]:
    messages = line.take(name, list)
    check_messages(messages, f"the field {name!r} of {line.place}")
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise UserError(f"{line.place}: the field {name!r} must end with an assistant's turn")
    return messages


def tokens(line: Line) -> Iterator[Record]:
    """Rows for the published MLE script cannot be read: they are ids of a tokenizer not named."""
    raise UserError(f"{line.place}: token ids of an unnamed tokenizer; give the file of texts")


def aligned(value: Any, prompt: Prompt, place: str) -> Iterator[Record]:
    """What stands in the row of a samples or references file that belongs to `prompt`."""
    yield prompt
    for draw, line in enumerate(Line({"replies": _several(value)}, place).each("replies")):
        text = line.text("text")
        rest = line.rest()
        if text == FAILED and rest.get("tokens") == [FAILED]:
            yield Row.make(source_id=prompt.id, values={"failed": draw})
            continue
        sample: Sample = said(prompt, text, POLICY if rest else REFERENCE, draw)
        yield sample
        yield from kept(sample, rest)


def nameless(value: Any) -> bool:
    """Whether a row is one of samples or references, which name no prompt."""
    return isinstance(value, list) or (isinstance(value, dict) and "text" in value)


def _several(value: Any) -> list[Any]:
    """One reply is written without its list."""
    return value if isinstance(value, list) else [value]


SHAPES = (
    Shape("prompts", frozenset({"prompt"}), prompts),
    Shape("judged pairs", frozenset({"prompt", "predictions", "pairs"}), judged),
    Shape("preferences", frozenset({"prompt", "chosen", "rejected"}), preferred),
    Shape("token ids", frozenset({"ids", "prompt_ids"}), tokens),
)
