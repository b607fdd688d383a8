"""Requests as the bodies of OpenAI-style calls, and the replies as answers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.sample.http.endpoint import Endpoint
from selfevo_jax.sample.http.failures import CallFailed, Passing
from selfevo_jax.sample.http.usage import Usage
from selfevo_jax.sample.protocol import (
    Completion,
    LabelRequest,
    Labels,
    Messages,
    Request,
    SamplingParams,
    Score,
    ScoreRequest,
)

UNKNOWN_ID = -1  # of a token whose server does not tell ids
SEEDS = 2**63
TOLD_CHAT, TOLD_COMPLETIONS = 20, 5  # the most likeliest tokens that OpenAI's routes tell
# A token is at least one byte; templates add a little to every message, some a system message.
TOKENS_A_MESSAGE, TOKENS_A_PROMPT = 16, 64
FINISHES = {"stop": "stop", "length": "length"}


def body_of(endpoint: Endpoint, request: Request) -> dict[str, Any]:
    """The JSON body for one completion. Only what differs from a server's defaults is sent
    beyond the fields that all servers know. Raises UserError for what no server is asked."""
    sampling = request.sampling
    _refuse_unknown(sampling)
    body: dict[str, Any] = {
        "model": request.adapter or endpoint.model,
        endpoint.limit_field: sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": request.seed % SEEDS,
    } | _prompt(endpoint, request)
    extras = {
        "stop": list(sampling.stop),
        "top_k": sampling.top_k,
        "repetition_penalty": _other_than_one(sampling.repetition_penalty),
        "min_p": sampling.min_p,
        "stop_token_ids": list(sampling.stop_token_ids),
        "return_token_ids": endpoint.token_ids,
    }
    body |= {name: value for name, value in extras.items() if value}
    if endpoint.logprobs:
        body["logprobs"] = True if endpoint.api == "chat" else 0
    return body


def _other_than_one(penalty: float) -> float | None:
    return None if penalty == 1.0 else penalty


def _refuse_unknown(sampling: SamplingParams) -> None:
    plain = SamplingParams(sampling.max_new_tokens)
    for name in ("num_beams", "length_penalty", "top_logprobs", "details"):
        if (value := getattr(sampling, name)) != getattr(plain, name):
            raise UserError(f"{name}={value}: servers are not asked for it; leave it out")


def score_body(endpoint: Endpoint, request: ScoreRequest) -> dict[str, Any]:
    """The body that has a given text scored. Raises UserError where the server cannot."""
    if endpoint.api != "completions":
        raise UserError(
            f"{endpoint.base_url}: chat servers do not score given texts; use api='completions'"
        )
    if request.end:
        raise UserError(
            f"request {request.id!r}: a server scores texts, not the token that ends a turn; "
            "ask with end=False"
        )
    prompt = joined(request.messages) + request.completion
    return {
        "model": request.adapter or endpoint.model, "prompt": prompt, "max_tokens": 0,
        "echo": True, "logprobs": 0, "temperature": 0.0,
    } | ({"return_token_ids": True} if endpoint.token_ids else {})  # fmt: skip


def label_body(endpoint: Endpoint, request: LabelRequest) -> dict[str, Any]:
    """The body that has the next token's likeliest values told."""
    one = SamplingParams(1)
    place = Request(
        request.id, request.messages, one, prefix=request.prefix, adapter=request.adapter
    )
    body = body_of(replace(endpoint, token_ids=False), place)
    if endpoint.api == "chat":
        return body | {"logprobs": True, "top_logprobs": TOLD_CHAT}
    return body | {"logprobs": TOLD_COMPLETIONS}


def joined(messages: Messages | str) -> str:
    """The messages as plain text, for a model without a chat template."""
    if isinstance(messages, str):
        return messages
    return "\n".join(message["content"] for message in messages)


def most_usage(body: dict[str, Any], limit_field: str) -> Usage:
    """The most tokens that a call can be billed for, by its length in bytes."""
    sizes = [len(text) + TOKENS_A_MESSAGE for text in _contents(body)]
    size = sum(sizes) + TOKENS_A_PROMPT
    return Usage(size, body.get("n", 1) * body.get(limit_field, 0))


def about_prompt_tokens(body: dict[str, Any]) -> int:
    """A fair guess at the prompt's tokens: four bytes each."""
    if isinstance(body.get("prompt"), list):
        return len(body["prompt"])
    return sum(-(-len(text) // 4) + 4 * ("messages" in body) for text in _contents(body))


def read_reply(content: bytes, count: int) -> tuple[list[dict], Usage | None]:
    """The choices in order of their index, and the server's bill.

    Raises `Passing` for a reply that is cut off, malformed or an error inside a 200.
    """
    try:
        reply = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Passing("the reply is not JSON, perhaps cut off", billed=True) from error
    if not isinstance(reply, dict):
        raise Passing("the reply is not an object", billed=True)
    if reply.get("error"):
        raise reply_error(reply["error"])
    try:
        choices = sorted(reply["choices"], key=lambda choice: choice["index"])
        if [choice["index"] for choice in choices] != list(range(count)):
            raise Passing(f"the reply has {len(choices)} choices instead of {count}", billed=True)
        used = reply.get("usage")
        usage = used and Usage(int(used["prompt_tokens"]), int(used.get("completion_tokens") or 0))
    except (KeyError, TypeError, ValueError) as error:
        raise Passing("the reply does not have the expected fields", billed=True) from error
    return choices, usage or None


def reply_error(error: Any) -> CallFailed:
    """An error object that came with status 200, as the failure it stands for."""
    code = error.get("code") if isinstance(error, dict) else None
    text = f"the server replied with an error: {str(error)[:300]}"
    final = isinstance(code, int) and 400 <= code < 500 and code not in (408, 409, 425, 429)
    return CallFailed(text) if final else Passing(text)


def answer_of(
    endpoint: Endpoint, choice: dict[str, Any], usage: Usage | None
) -> dict[str, Any] | CallFailed:
    """What is kept of a choice (and cached): the fields of a `Completion`, and `refused`.

    A failure when the server filtered or did not finish it. Raises `Passing` when malformed.
    """
    reason = choice.get("finish_reason")
    if reason not in FINISHES:
        return CallFailed(f"the answer ended with finish_reason {str(reason)[:80]!r}")
    try:
        message = choice["message"] if endpoint.api == "chat" else {"content": choice["text"]}
        refusal = message.get("refusal")
        text = refusal or message["content"] or ""
        logps = _logps(endpoint, choice.get("logprobs"))
        ids = choice.get("token_ids")
        tokens = ids or [UNKNOWN_ID] * (len(logps) or (usage.completion if usage else 0))
        if not isinstance(text, str) or not all(isinstance(i, int) for i in tokens):
            raise TypeError
        if logps and len(logps) != len(tokens):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Passing("a choice does not have the expected fields", billed=True) from error
    return {
        "text": text, "tokens": list(tokens), "logps": logps, "finish": FINISHES[reason],
        "prompt_tokens": usage.prompt if usage else 0, "refused": bool(refusal),
    }  # fmt: skip


def completion_of(request_id: str, answer: dict[str, Any]) -> Completion:
    """A kept answer as a `Completion`."""
    return Completion(
        request_id,
        answer["text"],
        tuple(answer["tokens"]),
        tuple(answer["logps"]),
        answer["finish"],
        answer["prompt_tokens"],
    )


def score_of(request: ScoreRequest, choice: dict[str, Any]) -> Score:
    """The completion's part of an echoed prompt. Raises `CallFailed` when it cannot be told."""
    start = len(joined(request.messages))
    try:
        found = choice["logprobs"]
        offsets, values = found["text_offset"], found["token_logprobs"]
        ids = choice.get("prompt_token_ids") or [UNKNOWN_ID] * len(offsets)
        first = next((i for i, offset in enumerate(offsets) if offset >= start), len(offsets))
        logps = _numbers(values[first:])
        if not len(offsets) == len(values) == len(ids):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise Passing("the reply has no log-probabilities of the prompt", billed=True) from error
    if first == len(offsets) or offsets[first] != start:
        raise CallFailed("no token begins where the completion does; its score cannot be told")
    return Score(request.id, tuple(logps), tuple(ids[first:]))


def labels_of(endpoint: Endpoint, request: LabelRequest, choice: dict[str, Any]) -> Labels:
    """The labels among the likeliest tokens; -inf for one that is not there.

    A label's first token is the longest of the told texts that it begins with. Raises `Passing`
    for a malformed reply, `CallFailed` when no label is there or two begin alike.
    """
    try:
        if endpoint.api == "chat":
            best = choice["logprobs"]["content"][0]["top_logprobs"]
            told = {entry["token"]: float(entry["logprob"]) for entry in best}
        else:
            told = {k: float(v) for k, v in choice["logprobs"]["top_logprobs"][0].items()}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Passing("the reply does not tell the likeliest tokens", billed=True) from error
    # A space alone stands for no label, though every label behind a space begins with it.
    words = [text for text in told if text.strip()]
    found = [
        max((text for text in words if label.startswith(text)), key=len, default=None)
        for label in request.labels
    ]
    seen = [text for text in found if text is not None]
    if not seen or len(set(seen)) < len(seen):
        reason = "two labels begin with the same token" if seen else "no label is among them"
        raise CallFailed(f"the server told the {len(told)} likeliest tokens, and {reason}")
    return Labels(request.id, tuple(-math.inf if text is None else told[text] for text in found))


def _contents(body: dict[str, Any]) -> list[bytes | list[int]]:
    """The texts of a body, by their bytes (or ids)."""
    if "messages" in body:
        return [message["content"].encode() for message in body["messages"]]
    prompt = body["prompt"]
    return [prompt if isinstance(prompt, list) else prompt.encode()]


def _prompt(endpoint: Endpoint, request: Request) -> dict[str, Any]:
    messages, prefix = request.messages, request.prefix
    if endpoint.api == "completions":
        ids = request.tokens
        return {"prompt": joined(messages) + prefix if ids is None else list(ids)}
    if isinstance(messages, str) or request.tokens is not None:
        raise UserError(
            f"{endpoint.base_url}: a chat server takes no plain text to go on with; use "
            "api='completions', or ask in messages"
        )
    listed = [dict(message) for message in messages]
    if not prefix:
        return {"messages": listed}
    # vLLM's and SGLang's way of beginning the answer; other servers refuse it in words.
    listed.append({"role": "assistant", "content": prefix})
    return {"messages": listed, "continue_final_message": True, "add_generation_prompt": False}


def _logps(endpoint: Endpoint, found: Any) -> list[float]:
    if not endpoint.logprobs:
        return []
    if endpoint.api == "chat":
        return _numbers([entry["logprob"] for entry in found["content"]])
    return _numbers(found["token_logprobs"])


def _numbers(values: Sequence[Any]) -> list[float]:
    numbers = [float(value) for value in values]
    if not all(map(math.isfinite, numbers)):
        raise ValueError("a log-probability is not finite")
    return numbers
