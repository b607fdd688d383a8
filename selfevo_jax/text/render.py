"""Messages to tokens, with the tokens that a loss may look at.

The model's template is rendered once, as it is; what it wrote around the messages becomes control
tokens and what the messages say stays text (text/guard.py). A completion is everything from the
generation prompt up to and with the token that ends the assistant's turn: what the model has to
write by itself, no more. Ids are those of the whole rendered string wherever the prompt's tokens
are a prefix of them; where a token would straddle the border (a completion that begins with a
newline, say) the border is kept, because that is what sampling sees.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from selfevo_jax.errors import UserError
from selfevo_jax.text.chat import Message, check_messages
from selfevo_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenSpan:
    """tokens: int32 [n]. loss: bool [n], true where the token is a target."""

    tokens: np.ndarray
    loss: np.ndarray


@dataclass(frozen=True)
class TokenExample:
    """A prompt and its completions (1 for SFT; chosen, rejected for DPO), by record id."""

    id: str
    prompt: TokenSpan
    completions: tuple[TokenSpan, ...]


def render_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message] | str, prefix: str = ""
) -> list[int]:
    """Ids of the conversation up to where the assistant writes; `prefix` begins its answer.

    One string in place of messages is a text as it is: no template, and markup in it is text.
    """
    sealed = _sealed_prompt(tokenizer, messages) + prefix
    return _lead(tokenizer, messages) + tokenizer.encode_sealed(sealed)


def render_next(
    tokenizer: Tokenizer, messages: Sequence[Message] | str, prefix: str, texts: Sequence[str]
) -> list[list[int]]:
    """Ids of each text where it follows `render_prompt` of these messages and prefix."""
    sealed = _sealed_prompt(tokenizer, messages) + prefix
    prompt = tokenizer.encode_sealed(sealed)
    return [_continue(tokenizer, sealed, prompt, text) for text in texts]


def prompt_text(tokenizer: Tokenizer, messages: Sequence[Message] | str, prefix: str = "") -> str:
    """The same for people to read, control tokens in printed form."""
    lead = tokenizer.decode(_lead(tokenizer, messages), skip_special=False)
    return lead + tokenizer.guard.unseal(_sealed_prompt(tokenizer, messages) + prefix)


def render_example(
    tokenizer: Tokenizer,
    id: str,
    messages: Sequence[Message] | str,
    completions: Sequence[str],
    max_length: int,
    end: bool = True,
) -> TokenExample:
    """The prompt, and each completion with its end-of-turn token; all of a completion is loss.

    `messages` as in `render_prompt`; without `end` a completion is its text alone.
    Raises UserError naming the record when prompt + completion is longer than max_length tokens,
    when there is no completion, or when one leaves no token to learn.
    """
    if isinstance(completions, str) or not completions:
        raise UserError(f"record {id}: it has no completions; give a list of at least one text")
    if not isinstance(messages, str):
        check_messages(messages, f"record {id}")
    sealed, lead = _sealed_prompt(tokenizer, messages), _lead(tokenizer, messages)
    prompt = tokenizer.encode_sealed(sealed)
    spans = []
    for completion in completions:
        more, ended = (completion, True)
        if end:
            more, ended = _sealed_completion(tokenizer, id, messages, completion, sealed)
        ids = _continue(tokenizer, sealed, prompt, more)
        ids += [] if ended else tokenizer.eos_ids[:1]
        _check_targets(id, len(ids))
        _check_length(id, len(lead) + len(prompt) + len(ids), max_length)
        spans.append(_span(ids, True))
    return TokenExample(id, _span(lead + prompt, False), tuple(spans))


def render_conversation(
    tokenizer: Tokenizer, id: str, messages: Sequence[Message], max_length: int
) -> TokenExample:
    """A whole conversation with loss on every assistant turn: its content and end-of-turn token.

    The prompt is what comes before the first of them; the one completion is the rest, its `loss`
    false on the turns of others. Raises UserError as `render_example` does.
    """
    check_messages(messages, f"record {id}")
    pieces = _pieces(tokenizer, id, messages)
    _check_targets(id, sum(learned for _, learned in pieces))
    text, ids, loss = "", [], []
    for piece, learned in pieces:
        more = _continue(tokenizer, text, ids, piece) if text else tokenizer.encode_sealed(piece)
        text, ids = text + piece, ids + more
        loss += [learned] * len(more)
    lead = _lead(tokenizer, messages)
    tail = list(tokenizer.eos_ids[:1]) if tokenizer.chat is None else []
    ids, loss = lead + ids + tail, [False] * len(lead) + loss + [True] * len(tail)
    _check_targets(id, sum(loss))
    _check_length(id, len(ids), max_length)
    first = loss.index(True)
    tokens, targets = np.array(ids, np.int32), np.array(loss, np.bool_)
    prompt = TokenSpan(tokens[:first], targets[:first])
    return TokenExample(id, prompt, (TokenSpan(tokens[first:], targets[first:]),))


@dataclass(frozen=True)
class Fitted:
    """messages: ready to render. cut: how many tokens shorter the prompt became."""

    messages: tuple[dict[str, str], ...]
    cut: int


def fit_field(
    tokenizer: Tokenizer,
    id: str,
    messages: Sequence[Message],
    fields: Mapping[str, str],
    name: str,
    max_length: int,
    reserve: int = 0,
) -> Fitted:
    """Put `fields` into the `{name}` places of the messages, shortening the one field `name`.

    The end of that field is dropped until the prompt and `reserve` tokens for the answer fit in
    max_length; every other word of the prompt stays, its end above all. Raises UserError naming
    the record when the field is not used, or when the rest alone is too long.
    """
    if name not in fields or not any(f"{{{name}}}" in m["content"] for m in messages):
        raise UserError(f"record {id}: no message has a place {{{name}}} to shorten")
    room = max_length - reserve

    def filled(size: int) -> tuple[dict[str, str], ...]:
        return _filled(messages, {**fields, name: fields[name][:size]})

    def length(size: int) -> int:
        return len(render_prompt(tokenizer, filled(size)))

    whole = length(len(fields[name]))
    if whole <= room:
        return Fitted(filled(len(fields[name])), 0)
    if length(0) > room:
        raise UserError(
            f"record {id}: without any of its field {name!r} the prompt still has {length(0)} "
            f"tokens, and {room} fit (max_length {max_length} less {reserve} for the answer); "
            "raise max_length or shorten the prompt"
        )
    low, high = 0, len(fields[name])
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if length(middle) <= room else (low, middle)
    return Fitted(filled(low), whole - length(low))


def _filled(messages: Sequence[Message], fields: Mapping[str, str]) -> tuple[dict[str, str], ...]:
    # One pass, so that a `{name}` inside a field's own text is left alone.
    places = re.compile("|".join(re.escape(f"{{{name}}}") for name in fields))
    return tuple(
        {
            "role": message["role"],
            "content": places.sub(lambda m: fields[m.group()[1:-1]], message["content"]),
        }
        for message in messages
    )


def _sealed_prompt(tokenizer: Tokenizer, messages: Sequence[Message] | str) -> str:
    if isinstance(messages, str):
        return messages
    if tokenizer.chat is None:
        check_messages(messages)
        return "\n".join(message["content"] for message in messages)
    return _sealed(tokenizer, messages, add_generation_prompt=True)


def _lead(tokenizer: Tokenizer, messages: Sequence[Message] | str) -> list[int]:
    """The bos that plain text begins with; a template writes its own."""
    plain = tokenizer.chat is None or isinstance(messages, str)
    return [tokenizer.bos_id] if plain and tokenizer.add_bos else []


def _sealed(tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool) -> str:
    safe = [{**m, "content": tokenizer.guard.disarm(m["content"])} for m in messages]
    return tokenizer.guard.seal_rendered(tokenizer.chat.render(safe, add_generation_prompt))


def _sealed_completion(
    tokenizer: Tokenizer,
    id: str,
    messages: Sequence[Message] | str,
    completion: str,
    prompt: str,
) -> tuple[str, bool]:
    """What follows the sealed prompt, through the end-of-turn token; and whether there is one."""
    if not isinstance(completion, str):
        raise UserError(f"record {id}: a completion is not a text; give strings")
    if tokenizer.chat is None or isinstance(messages, str):
        return completion, False
    marks = _Marks()
    turn = {"role": "assistant", "content": marks.around(completion)}
    full = _sealed(tokenizer, [*messages, turn], add_generation_prompt=False)
    ((start, stop),) = marks.find(full, id)
    end, ended = _turn_end(tokenizer, full, stop)
    if not full.startswith(prompt) or len(prompt) > start:
        raise UserError(
            f"record {id}: the chat template writes an answer elsewhere than after its generation "
            "prompt, so no completion can be trained on; the conversation should end with a user"
        )
    return marks.removed(full[len(prompt) : end]), ended


def _turn_end(tokenizer: Tokenizer, sealed: str, stop: int) -> tuple[int, bool]:
    """Where a turn that says its last word at `stop` ends: after the control token that follows."""
    rest = sealed[stop:]
    gap = len(rest) - len(rest.lstrip())
    match = tokenizer.guard.surface_pattern.match(rest, gap)
    return (stop + match.end(), True) if match else (stop, False)


def _pieces(tokenizer: Tokenizer, id: str, messages: Sequence[Message]) -> list[tuple[str, bool]]:
    """The sealed conversation in order, cut into what is learned and what is not."""
    answers = [m["role"] == "assistant" for m in messages]
    if tokenizer.chat is None:
        texts = [m["content"] for m in messages]
        parts = [(text, a) for text, a in zip(texts, answers, strict=True)]
        joined = [piece for part in parts for piece in (part, ("\n", False))][:-1]
        return [piece for piece in joined if piece[0]]
    marks = _Marks()
    turns = [
        {**m, "content": marks.around(m["content"])} if answer else m
        for m, answer in zip(messages, answers, strict=True)
    ]
    sealed = _sealed(tokenizer, turns, add_generation_prompt=False)
    pieces, done = [], 0
    for start, stop in marks.find(sealed, id):
        # A space before the answer is the answer's: " Paris" is one token.
        start = len(sealed[:start].rstrip(" "))
        end, _ = _turn_end(tokenizer, sealed, stop)
        pieces += [(sealed[done:start], False), (sealed[start:end], True)]
        done = end
    pieces.append((sealed[done:], False))
    return [(marks.removed(text), learned) for text, learned in pieces if text]


class _Marks:
    """Random letters around the assistant's words, to find them again in a rendering."""

    def __init__(self) -> None:
        letters = "".join(secrets.choice(_LETTERS) for _ in range(48))
        self._open, self._close = letters[:24], letters[24:]
        self._count = 0

    def around(self, content: str) -> str:
        """Inside the outer whitespace, which many templates trim."""
        self._count += 1
        body = content.strip()
        left = content[: len(content) - len(content.lstrip())]
        right = content[len(left) + len(body) :]
        return left + self._open + body + self._close + right

    def find(self, text: str, id: str) -> list[tuple[int, int]]:
        """(start, stop) of each marked text, marks included. Raises UserError if one is lost."""
        opens = [match.start() for match in re.finditer(self._open, text)]
        closes = [match.end() for match in re.finditer(self._close, text)]
        if not len(opens) == len(closes) == self._count:
            raise UserError(
                f"record {id}: the chat template drops or repeats an assistant turn, so its tokens "
                "cannot be found; train on the last turn only"
            )
        return list(zip(opens, closes, strict=True))

    def removed(self, text: str) -> str:
        return text.replace(self._open, "").replace(self._close, "")


_LETTERS = "bcdfghjklmnpqrstvwxz"


def _continue(tokenizer: Tokenizer, text: str, ids: list[int], more: str) -> list[int]:
    """Ids of `more` where it follows `text`, whose ids are given."""
    whole = tokenizer.encode_sealed(text + more)
    if whole[: len(ids)] == ids:
        return whole[len(ids) :]
    # A token would straddle the border. After a newline no tokenizer adds a space of its own.
    line = tokenizer.encode_sealed("\n")
    after = tokenizer.encode_sealed("\n" + more)
    return after[len(line) :] if after[: len(line)] == line else tokenizer.encode_sealed(more)


def _span(ids: Sequence[int], loss: bool) -> TokenSpan:
    return TokenSpan(np.array(ids, np.int32), np.full(len(ids), loss, np.bool_))


def _check_targets(id: str, targets: int) -> None:
    if not targets:
        raise UserError(f"record {id}: it has no token to learn; give it an assistant's text")


def _check_length(id: str, length: int, max_length: int) -> None:
    if length > max_length:
        raise UserError(
            f"record {id}: it has {length} tokens, more than max_length {max_length}; raise "
            "max_length, drop the record, or declare the field that may be shortened"
        )
