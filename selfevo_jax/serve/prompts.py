"""What is served: models by name, and the checks of a request that need their tokenizer."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.sample.protocol import MAX_STOP_TOKENS, Request, SamplingParams
from selfevo_jax.serve.bounds import COLDEST, Refused
from selfevo_jax.text.render import render_prompt
from selfevo_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ServedModel:
    """The engine's base (`adapter` None) or one of its adapters, under the name requests use."""

    name: str
    adapter: str | None
    tokenizer: Tokenizer
    vocab_size: int
    max_length: int


@dataclass(frozen=True)
class Prompt:
    """A prompt's ids, and its text where one was given."""

    tokens: tuple[int, ...]
    text: str | None


@dataclass(frozen=True)
class Plan:
    """A request ready for the engine: its prompts, each wanted `n` times.

    `alternatives` is how many likeliest tokens are shown per place; None: no log-probabilities.
    """

    model: ServedModel
    prompts: tuple[Prompt, ...]
    n: int
    sampling: SamplingParams | None  # None: nothing is added to the prompts
    seed: int
    echo: bool
    alternatives: int | None
    token_ids: bool
    stream: bool
    stream_usage: bool
    chat: bool

    def request(self, index: int, sample: int) -> Request:
        """Sample `sample` of prompt `index`, under an id of its own."""
        seed = self.seed if index == sample == 0 else _other_seed(self.seed, index, sample)
        unique = f"{secrets.token_hex(8)}/{index}/{sample}"
        tokens, adapter = self.prompts[index].tokens, self.model.adapter
        return Request(unique, (), self.sampling, seed, tokens=tokens, adapter=adapter)

    @property
    def scored(self) -> bool:
        """Whether the prompts' own log-probabilities are wanted, which sampling does not give."""
        return self.alternatives is not None and self.echo


def plan(models: Mapping[str, ServedModel], found: Mapping[str, Any]) -> Plan:
    """The plan for checked fields. Raises `Refused`. Tokenises: not for the event loop."""
    model = models.get(found["model"])
    if model is None:
        raise Refused("no such model; see /v1/models", "model", 404, "model_not_found")
    chat = "messages" in found
    prompts = (_chat(model, found),) if chat else tuple(_plain(model, p) for p in found["prompt"])
    limit = found["max_tokens"] if found["max_tokens"] is not None else _default_limit(found)
    least_room = 0 if limit == 0 else 1
    for prompt in prompts:
        if len(prompt.tokens) + least_room > model.max_length:
            raise Refused(
                f"the prompt has {len(prompt.tokens)} tokens and the model's context "
                f"{model.max_length}, the answer included",
                "messages" if chat else "prompt",
                code="context_length_exceeded",
            )
    return Plan(
        model=model,
        prompts=prompts,
        n=found["n"],
        sampling=_sampling(model, found, limit) if limit != 0 else None,
        seed=secrets.randbits(63) if found["seed"] is None else found["seed"],
        echo=bool(found.get("echo")),
        alternatives=_alternatives(found),
        token_ids=found["return_token_ids"],
        stream=found["stream"],
        stream_usage=found["stream_options"],
        chat=chat,
    )


def _default_limit(found: Mapping[str, Any]) -> int | None:
    """Completions have 16 tokens unless asked otherwise, chats what room there is (None)."""
    return found["max_completion_tokens"] if "messages" in found else 16


def _sampling(model: ServedModel, found: Mapping[str, Any], limit: int | None) -> SamplingParams:
    ids = found["stop_token_ids"]
    if any(i >= model.vocab_size for i in ids):
        raise Refused("stop_token_ids are not all in the vocabulary", "stop_token_ids")
    if len(ids) + len(model.tokenizer.eos_ids) > MAX_STOP_TOKENS:
        raise Refused("too many stop_token_ids beside the model's own", "stop_token_ids")
    heat = found["temperature"]
    return SamplingParams(
        max_new_tokens=min(limit or model.max_length, model.max_length),
        temperature=heat if heat >= COLDEST else 0.0,
        top_k=found["top_k"],
        top_p=found["top_p"],
        min_p=found["min_p"],
        repetition_penalty=found["repetition_penalty"],
        stop=found["stop"],
        stop_token_ids=ids,
        top_logprobs=_alternatives(found) or 0,
    )


def _alternatives(found: Mapping[str, Any]) -> int | None:
    if "top_logprobs" not in found:
        return found["logprobs"]
    return found["top_logprobs"] if found["logprobs"] else None


def _plain(model: ServedModel, value: str | tuple[int, ...]) -> Prompt:
    """Text begins with bos where the model's plain texts do; ids are taken as they are."""
    if isinstance(value, str):
        start = [model.tokenizer.bos_id] if model.tokenizer.add_bos else []
        prompt = Prompt((*start, *model.tokenizer.encode(value)), value)
    else:
        prompt = Prompt(value, None)
    if not prompt.tokens:
        raise Refused("a prompt has no tokens", "prompt")
    if max(prompt.tokens) >= model.vocab_size:
        raise Refused(f"token ids must be below {model.vocab_size}", "prompt")
    return prompt


def _chat(model: ServedModel, found: Mapping[str, Any]) -> Prompt:
    messages, prefix = found["messages"], ""
    if found["continue_final_message"]:
        messages, prefix = messages[:-1], messages[-1]["content"]
    try:
        tokens = render_prompt(model.tokenizer, messages, prefix)
    except UserError as error:
        raise Refused(str(error), "messages") from error
    if not tokens:
        raise Refused("the messages have no tokens", "messages")
    return Prompt(tuple(tokens), None)


def _other_seed(seed: int, index: int, sample: int) -> int:
    """The seed of another sample of the same request: unrelated, but always the same."""
    digest = hashlib.blake2b(f"{seed}/{index}/{sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
