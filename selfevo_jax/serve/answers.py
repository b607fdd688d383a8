"""What the engine found, in the shapes that OpenAI's clients read."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from selfevo_jax.sample.memory import TextScore
from selfevo_jax.sample.protocol import Completion
from selfevo_jax.serve.prompts import Plan, Prompt
from selfevo_jax.text.tokenizer import StreamDecoder, Tokenizer

Best = Sequence[tuple[int, float]]  # the likeliest (token, logp) in a place
Place = tuple[int, float | None, Best]  # token, its log-probability, the likeliest in its place


@dataclass
class Choice:
    """One sample of one prompt; `completion` is None where nothing was added to the prompt.

    `score` is that of the prompt, where it is echoed with log-probabilities.
    """

    index: int
    prompt: Prompt
    completion: Completion | None = None
    score: TextScore | None = None


@dataclass
class Head:
    """What every part of one answer repeats."""

    plan: Plan
    id: str = field(init=False)
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.id = f"{'chatcmpl' if self.plan.chat else 'cmpl'}-{secrets.token_hex(12)}"

    def body(self, choices: list[dict], *, part: bool = False, **more: Any) -> dict[str, Any]:
        """A whole reply, or one part of a stream."""
        kind = "text_completion"
        if self.plan.chat:
            kind = "chat.completion.chunk" if part else "chat.completion"
        start = {"id": self.id, "object": kind, "created": self.created}
        return start | {"model": self.plan.model.name, "choices": choices} | more


def usage(plan: Plan, choices: Sequence[Choice]) -> dict[str, int]:
    """Tokens: a prompt counts once for all of its samples."""
    prompt = sum(len(prompt.tokens) for prompt in plan.prompts)
    made = sum(len(choice.completion.tokens) for choice in choices if choice.completion)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def whole_choice(plan: Plan, choice: Choice) -> dict[str, Any]:
    """A finished choice of a reply that is not streamed."""
    tokenizer, done = plan.model.tokenizer, choice.completion
    text = done.text if done else ""
    tail = ending(plan, choice)
    if plan.chat:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": choice.index, "message": message} | tail
    if plan.echo:
        text = prompt_text(tokenizer, choice.prompt) + text
    return {"index": choice.index, "text": text} | tail


def ending(plan: Plan, choice: Choice) -> dict[str, Any]:
    """What a choice ends with: reason, log-probabilities, ids."""
    done = choice.completion
    found: dict[str, Any] = {"finish_reason": done.finish if done else "length", "logprobs": None}
    if plan.alternatives is not None:
        places = list(_places(choice))
        shape = _chat_logprobs if plan.chat else _plain_logprobs
        found["logprobs"] = shape(plan.model.tokenizer, places)
    if plan.token_ids:
        found["token_ids"] = list(done.tokens) if done else []
        found["prompt_token_ids"] = list(choice.prompt.tokens)
    return found


def prompt_text(tokenizer: Tokenizer, prompt: Prompt) -> str:
    """The prompt as it is echoed."""
    return prompt.text if prompt.text is not None else tokenizer.decode(prompt.tokens)


class Stream:
    """The text of one choice as it grows, never more than is certain.

    What could be the beginning of a stop string is held back, as is half a character.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self._decoder = StreamDecoder(tokenizer)
        self._stops, self._held, self._sent = stops, "", ""

    def push(self, tokens: Sequence[int]) -> str:
        """The text that these tokens make certain."""
        self._held += "".join(map(self._decoder.push, tokens))
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        return self._send(self._held[: len(self._held) - keep])

    def finish(self, text: str) -> str:
        """What is missing to the whole text."""
        return text[len(self._sent) :]

    def _send(self, text: str) -> str:
        self._held = self._held[len(text) :]
        self._sent += text
        return text


def _overlap(text: str, stop: str) -> int:
    """How many of the last characters of `text` could begin `stop`."""
    most = min(len(text), len(stop) - 1)
    return next((size for size in range(most, 0, -1) if text.endswith(stop[:size])), 0)


def _places(choice: Choice) -> Iterator[Place]:
    """The echo's places, then the answer's."""
    made, score = choice.completion, choice.score
    if score is not None:
        first, *others = choice.prompt.tokens
        yield first, None, ()  # nothing comes before it that could tell its probability
        yield from zip(others, score.logps, score.top, strict=True)
    if made is not None:
        best = made.top_logprobs or ((),) * len(made.tokens)
        yield from zip(made.tokens, made.logps, best, strict=True)


def _chat_logprobs(tokenizer: Tokenizer, places: Sequence[Place]) -> dict[str, Any]:
    return {
        "content": [
            _entry(tokenizer, token, logp)
            | {"top_logprobs": [_entry(tokenizer, other, value) for other, value in best]}
            for token, logp, best in places
        ],
        "refusal": None,
    }


def _entry(tokenizer: Tokenizer, token: int, logp: float) -> dict[str, Any]:
    text = tokenizer.decode([token], skip_special=False)
    return {"token": text, "logprob": logp, "bytes": list(text.encode())}


def _plain_logprobs(tokenizer: Tokenizer, places: Sequence[Place]) -> dict[str, Any]:
    texts = [tokenizer.decode([token], skip_special=False) for token, _, _ in places]
    return {
        "tokens": texts,
        "token_logprobs": [logp for _, logp, _ in places],
        "top_logprobs": [
            None if logp is None else _by_text(tokenizer, dict(best) | {token: logp})
            for token, logp, best in places
        ],
        "text_offset": _offsets(tokenizer, [token for token, _, _ in places]),
    }


def _by_text(tokenizer: Tokenizer, logps: Mapping[int, float]) -> dict[str, float]:
    """Log-probabilities by text; of tokens that print alike, the likeliest."""
    found: dict[str, float] = {}
    for token, logp in sorted(logps.items(), key=lambda pair: -pair[1]):
        found.setdefault(tokenizer.decode([token], skip_special=False), logp)
    return found


def _offsets(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[int]:
    """Where each token's text begins in the text of all."""
    decoder, offsets, length = StreamDecoder(tokenizer), [], 0
    for token in tokens:
        offsets.append(length)
        length += len(decoder.push(token))
    return offsets
