"""Requests of all kinds at once, many of them abandoned or wrong: no answer is wrong, no row lost.

The default run has 300 requests; `pytest -m slow` repeats it with 2,000.
"""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
import pytest

from selfevo_jax.sample.protocol import Request, SamplingParams
from selfevo_jax.serve.bounds import MOST_BYTES
from selfevo_jax.text.render import render_prompt

MODEL = "random:tiny?seed=0"
VARIANTS = 12
KINDS = {
    "whole": 30, "stream": 12, "score": 8, "abandon": 12, "leave a stream": 12, "half a body": 4,
    "too long": 6, "too big": 2, "malformed": 8, "unknown model": 3, "bad field": 5, "lookup": 3,
}  # fmt: skip


def body_of(variant: int) -> dict:
    """One of a few requests whose right answers are known."""
    content = "duck " * (variant % 5) + str(variant)
    return {
        "model": MODEL, "messages": [{"role": "user", "content": content}], "seed": variant,
        "max_tokens": 4 + 3 * variant, "temperature": 0.5 * (variant % 3), "n": 1 + variant % 2,
    }  # fmt: skip


@dataclass
class Storm:
    """What came of the requests."""

    server: object
    expected: dict[int, str]
    scores: dict[int, list[float]]
    seen: Counter = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def one(self, client: httpx.AsyncClient, number: int) -> None:
        rng = random.Random(number)
        kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
        act = getattr(self, kind.replace(" ", "_"))
        found = await act(client, rng.randrange(VARIANTS), rng)
        self.seen[kind, found] += 1

    def check(self, right: bool, what: str) -> None:
        if not right:
            self.wrong.append(what)

    async def post(self, client, body, path="/v1/chat/completions", **settings) -> httpx.Response:
        settings = settings or {"json": body}
        return await client.post(self.server.url + path, **settings)

    async def whole(self, client, variant, rng) -> int:
        reply = await self.post(client, body_of(variant))
        text = reply.json()["choices"][0]["message"]["content"] if reply.is_success else reply.text
        self.check(text == self.expected[variant], f"{variant}: {text!r}")
        return reply.status_code

    async def stream(self, client, variant, rng) -> int:
        text, body = "", body_of(variant) | {"stream": True}
        url = f"{self.server.url}/v1/chat/completions"
        async with client.stream("POST", url, json=body) as reply:
            async for line in reply.aiter_lines():
                if line.startswith("data: {"):
                    (choice,) = json.loads(line[6:])["choices"]
                    text += choice["delta"]["content"] if choice["index"] == 0 else ""
        self.check(text == self.expected[variant], f"stream {variant}: {text!r}")
        return reply.status_code

    async def score(self, client, variant, rng) -> int:
        body = score_body(variant)
        reply = await self.post(client, body, "/v1/completions")
        found = reply.json()["choices"][0]["logprobs"]["token_logprobs"]
        self.check(found == self.scores[variant], f"score {variant}")
        return reply.status_code

    async def abandon(self, client, variant, rng) -> str:
        """The whole answer is asked for, and the connection closed before it comes."""
        body = body_of(variant) | {"max_tokens": 200, "n": 4}
        try:
            await self.post(client, None, json=body, timeout=rng.uniform(0.01, 0.15))
        except httpx.TimeoutException:
            return "gone"
        return "answered"

    async def leave_a_stream(self, client, variant, rng) -> str:
        body = body_of(variant) | {"max_tokens": 200, "n": 4, "stream": True}
        url = f"{self.server.url}/v1/chat/completions"
        async with client.stream("POST", url, json=body) as reply:
            lines = reply.aiter_lines()
            for _ in range(rng.randrange(1, 12)):
                await anext(lines)
        return "gone"

    async def half_a_body(self, client, variant, rng) -> str:
        address = self.server.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(*address)
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900\r\n\r\n"
        )
        writer.write(head + b'{"model": "random')
        await writer.drain()
        await asyncio.sleep(rng.uniform(0, 0.1))
        writer.close()
        return "gone"

    async def too_long(self, client, variant, rng) -> int:
        messages = [{"role": "user", "content": "x" * rng.randrange(240, 20_000)}]
        return (await self.post(client, body_of(variant) | {"messages": messages})).status_code

    async def too_big(self, client, variant, rng) -> int:
        content = b"x" * (MOST_BYTES + rng.randrange(1, 99))
        try:
            return (await self.post(client, None, content=content)).status_code
        except httpx.TransportError:  # the answer came, and the end, while it was still sending
            return 413

    async def malformed(self, client, variant, rng) -> int:
        content = json.dumps(body_of(variant)).encode()
        content = content[: rng.randrange(len(content))] + rng.randbytes(rng.randrange(9))
        return (await self.post(client, None, content=content)).status_code

    async def unknown_model(self, client, variant, rng) -> int:
        return (await self.post(client, body_of(variant) | {"model": "gpt-9"})).status_code

    async def bad_field(self, client, variant, rng) -> int:
        wrong = rng.choice([{"n": 0}, {"temperature": -1}, {"seed": "a"}, {"tools": [1]}])
        return (await self.post(client, body_of(variant) | wrong)).status_code

    async def lookup(self, client, variant, rng) -> int:
        path = rng.choice(["/health", "/metrics", "/v1/models"])
        return (await client.get(self.server.url + path)).status_code


def score_body(variant: int) -> dict:
    prompt = [(7 * variant + 3 * i) % 250 for i in range(5 + 9 * variant)]
    return {"model": MODEL, "prompt": prompt, "echo": True, "max_tokens": 0, "logprobs": 1}


async def rage(storm: Storm, numbers: range, concurrency: int) -> None:
    limit = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=10)
    async with httpx.AsyncClient(timeout=120, limits=limits) as client:

        async def one(number):
            async with limit:
                await storm.one(client, number)

        await asyncio.gather(*(one(number) for number in numbers))


def right_answers(engine, tokenizer) -> dict[int, str]:
    """From the engine alone, one request at a time."""
    found = {}
    for variant in range(VARIANTS):
        body = body_of(variant)
        sampling = SamplingParams(body["max_tokens"], temperature=body["temperature"])
        tokens = tuple(render_prompt(tokenizer, body["messages"]))
        (one,) = engine.generate([Request("a", (), sampling, body["seed"], tokens=tokens)])
        found[variant] = one.text
    return found


def survive(server, engine, tokenizer, count: int) -> None:
    asked = [server.post("/v1/completions", score_body(v)).json() for v in range(VARIANTS)]
    scores = [reply["choices"][0]["logprobs"]["token_logprobs"] for reply in asked]
    storm = Storm(server, right_answers(engine, tokenizer), dict(enumerate(scores)))
    asyncio.run(rage(storm, range(100), 24))  # compiles, and fills what is kept
    assert server.idle()
    storm.seen.clear()
    start, sizes = time.monotonic(), [server.resident_mib()]
    for part in range(4):
        asyncio.run(rage(storm, range(100 + part * count // 4, 100 + (part + 1) * count // 4), 24))
        sizes.append(server.resident_mib())
    seconds = time.monotonic() - start
    assert storm.wrong == []
    right = {
        "whole": {200}, "stream": {200}, "score": {200}, "abandon": {"gone", "answered"},
        "leave a stream": {"gone"}, "half a body": {"gone"}, "too long": {400}, "too big": {413},
        "malformed": {400}, "unknown model": {404}, "bad field": {400}, "lookup": {200},
    }  # fmt: skip
    assert sum(storm.seen.values()) == count
    assert {pair for pair in storm.seen if pair[1] not in right[pair[0]]} == set()
    assert server.idle(), "a row or a place in the queue is lost"
    assert sizes[4] - sizes[2] < 20, f"memory goes on growing: {sizes} MiB"
    assert server.gauge("selfevo_cancelled_total") > count / 25
    shown = ", ".join(f"{size:.0f}" for size in sizes)
    print(f"{count} requests in {seconds:.1f} s; MiB before and after each quarter: {shown}")
    print(dict(storm.seen))


def test_three_hundred_requests(server, engine, local_model):
    survive(server, engine, local_model.tokenizer, 300)


@pytest.mark.slow
def test_two_thousand_requests(start_server, engine, local_model):
    survive(start_server(), engine, local_model.tokenizer, 2000)


@pytest.mark.parametrize("stream", [False, True])
def test_rows_of_those_who_left_are_free_at_once(server, stream):
    """A thousand long answers for four rows, abandoned: nobody waits for them to end."""
    slow = {"model": MODEL, "prompt": list("abcdefgh"), "max_tokens": 250, "temperature": 0.9}
    with contextlib.suppress(httpx.TimeoutException):
        many = slow | {"n": 128, "stream": stream}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=many, timeout=1) as reply:
            assert stream and reply.status_code == 200
            assert next(reply.iter_lines()).startswith("data: {")
    start = time.monotonic()
    assert server.idle(5), "rows are still taken"
    assert server.post("/v1/completions", slow | {"max_tokens": 1}).status_code == 200
    assert time.monotonic() - start < 5
