"""An OpenAI-style server that fails as often as it is told to, and remembers what it billed.

Answers are a function of the request alone, so a test can tell whether each one is right.
"""

from __future__ import annotations

import email.utils
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from selfevo_jax.sample.http.calls import Limits
from selfevo_jax.sample.http.client import HttpGenerator
from selfevo_jax.sample.http.endpoint import Endpoint
from selfevo_jax.sample.protocol import Request, SamplingParams

FAULTS = ("429", "429 date", "500", "503", "slow", "cut", "error in 200", "not json", "drop")
BILLED = ("slow", "cut", "not json")  # the work was done, the answer did not arrive


class FaultyServer(ThreadingHTTPServer):
    """`fault(number)` names what goes wrong with call `number` ("" for nothing)."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, fault: Callable[[int], str] = lambda number: "", slow: float = 2.0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault, self.slow = fault, slow
        self.lock = threading.Lock()
        self.bodies: list[dict] = []
        self.headers: list[dict] = []
        self.times: list[float] = []
        self.faults: Counter[str] = Counter()
        self.delivered: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.tokens = 0  # of answers that were delivered
        self.reply: Callable[[dict], dict] = good_reply
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


def random_faults(seed: int, share: float) -> Callable[[int], str]:
    def fault(number: int) -> str:
        rng = random.Random(f"{seed}/{number}")
        return rng.choice(FAULTS) if rng.random() < share else ""

    return fault


def prompt_of(body: dict) -> str:
    return body["prompt"] if "prompt" in body else body["messages"][-1]["content"]


def good_reply(body: dict) -> dict:
    count = body.get("n", 1)
    texts = [f"answer to {prompt_of(body)} #{index}" for index in range(count)]
    choices = [
        {"index": i, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        if "messages" in body
        else {"index": i, "finish_reason": "stop", "text": text}
        for i, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 5, "completion_tokens": 4 * count, "total_tokens": 5 + 4 * count}
    return {"id": "x", "object": "chat.completion", "choices": choices[::-1], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyServer

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            fault = server.fault(len(server.bodies))
            server.bodies.append(body)
            server.headers.append(dict(self.headers))
            server.times.append(time.monotonic())
            server.faults[fault] += 1
        whole = server.reply(body)
        reply = json.dumps(whole).encode()
        if fault in BILLED:
            with server.lock:
                server.lost[prompt_of(body)] += 1
        self.answer(fault, reply)
        if not fault:
            with server.lock:
                server.delivered[prompt_of(body)] += 1
                server.tokens += whole["usage"].get("total_tokens", 0)

    def answer(self, fault: str, reply: bytes) -> None:
        if fault == "429":
            self.send(429, b"slow down", {"Retry-After": "0"})
        elif fault == "429 date":
            self.send(429, b"", {"Retry-After": email.utils.formatdate(usegmt=True)})
        elif fault.isdigit():
            self.send(int(fault), b'{"error": {"message": "a fault"}}')
        elif fault == "slow":
            time.sleep(self.server.slow)
            self.close_connection = True
        elif fault == "cut":
            self.send(200, reply[: len(reply) // 2], {"Content-Length": str(len(reply))})
            self.close_connection = True
        elif fault == "error in 200":
            self.send(200, b'{"error": {"message": "overloaded", "type": "server_error"}}')
        elif fault == "not json":
            self.send(200, reply[:-7])
        elif fault == "drop":
            self.close_connection = True
        else:
            self.send(200, reply)

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


# ---- what the tests of the client share

FAST = Limits(concurrency=16, timeout=30, attempts=30, backoff=0.002, longest_backoff=0.02)


@pytest.fixture
def serve():
    """Starts faulty servers; stops them afterwards."""
    running = []

    def start(*arguments, **settings):
        running.append(FaultyServer(*arguments, **settings))
        return running[-1]

    yield start
    for server in running:
        server.stop()


def asks(count: int, **sampling) -> list[Request]:
    settings = SamplingParams(8, **sampling)
    return [
        Request(f"r{i}", [{"role": "user", "content": f"question {i}"}], settings, seed=i)
        for i in range(count)
    ]


def client(server, *, limits=FAST, cap=None, cache=None, samples_per_call=1, **endpoint):
    where = Endpoint(server.url, "m", **endpoint)
    return HttpGenerator(
        where, limits=limits, cap=cap, cache=cache, samples_per_call=samples_per_call
    )


def collect(completions) -> dict[str, str]:
    found = {}
    for completion in completions:
        assert completion.id not in found
        found[completion.id] = completion.text
    return found
