"""Whatever comes in, it gets a proper status, and the next request is answered."""

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfevo_jax.cli import main
from selfevo_jax.errors import UserError
from selfevo_jax.sample.http.secret import Secret
from selfevo_jax.sample.protocol import Request, SamplingParams
from selfevo_jax.serve.app import make_app
from selfevo_jax.serve.bounds import CHAT, COMPLETIONS, MOST_BYTES, Refused, checked, read_body
from selfevo_jax.serve.dispatch import Dispatcher, EngineFailed, ScoreTicket, Ticket
from selfevo_jax.serve.prompts import ServedModel
from selfevo_jax.serve.run import check_address
from selfevo_jax.serve.work import Work

MODEL = "m"
QUESTION = [{"role": "user", "content": "What is a duck?"}]
BASE = {
    "/v1/completions": {"model": MODEL, "prompt": "duck", "max_tokens": 2},
    "/v1/chat/completions": {"model": MODEL, "messages": QUESTION, "max_tokens": 2},
}
TABLES = {"/v1/completions": COMPLETIONS, "/v1/chat/completions": CHAT}
RAW = ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 5000, '"\\ud800"', "[" * 3000)


class Post:
    """Requests to the application in this process; the engine behind it is a real one."""

    def __init__(self, app) -> None:
        self._runner = asyncio.Runner()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")

    def __call__(self, method: str, path: str, **settings) -> httpx.Response:
        return self._runner.run(self._client.request(method, path, timeout=60, **settings))

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()


@pytest.fixture(scope="module")
def dispatcher(engine):
    running = Dispatcher(engine)
    yield running
    running.close()


@pytest.fixture(scope="module")
def served(local_model, engine) -> dict[str, ServedModel]:
    size = local_model.files.config.vocab_size
    return {MODEL: ServedModel(MODEL, None, local_model.tokenizer, size, engine.max_length)}


@pytest.fixture(scope="module")
def post(served, dispatcher):
    client = Post(make_app(served, dispatcher))
    yield client
    client.close()


# ---- the property

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, 10**30, 5e-324, 1e308, -1e-9, "", "a" * 999]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "x"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
near = {
    "n": st.integers(-2, 140), "best_of": st.integers(-1, 5), "max_tokens": st.integers(-2, 400),
    "max_completion_tokens": st.integers(-2, 400), "logprobs": st.integers(-2, 25) | st.booleans(),
    "top_logprobs": st.integers(-2, 25), "temperature": st.floats(-1, 3) | st.just(1e-30),
    "top_p": st.floats(-0.1, 1.1) | st.just(1e-30), "min_p": st.floats(-0.1, 1.1),
    "top_k": st.integers(-2, 500), "seed": st.integers(-(2**65), 2**65),
    "stop": st.lists(st.text(max_size=3), max_size=20) | st.text(max_size=3),
    "stop_token_ids": st.lists(st.integers(-1, 400), max_size=10),
    "prompt": st.lists(st.integers(-1, 300), max_size=8) | st.lists(st.text(max_size=9), max_size=4)
    | st.lists(st.lists(st.integers(0, 261), max_size=300), max_size=3) | st.text(max_size=300),
    "messages": st.lists(
        st.fixed_dictionaries(
            {"role": st.sampled_from(["system", "user", "assistant", "<|end|>"]),
             "content": st.text(max_size=300)}
        ), max_size=3,
    ),
}  # fmt: skip


@st.composite
def hostile(draw, path, field):
    """A good body with this field replaced, near its bounds or anyhow, and perhaps some others."""
    body = dict(BASE[path])
    others = st.sampled_from(sorted([*TABLES[path], "unknown"]))
    for name in dict.fromkeys([field, *draw(st.lists(others, max_size=3))]):
        body[name] = draw(near.get(name, plain) | plain)
    return body


def check_status(reply: httpx.Response, body) -> None:
    assert reply.status_code in (200, 400, 404), (reply.status_code, reply.text, body)
    if reply.status_code == 200 and reply.headers["content-type"] == "application/json":
        found = reply.json()
        prompt = body.get("prompt")
        several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
        assert len(found["choices"]) == (body.get("n") or 1) * (len(prompt) if several else 1)
        text = json.dumps(found, allow_nan=False)
        assert found["usage"]["completion_tokens"] <= 256 * len(found["choices"]), text
    elif reply.status_code != 200:
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}


def answers_well(post) -> None:
    reply = post("POST", "/v1/completions", json=BASE["/v1/completions"] | {"seed": 1})
    assert reply.status_code == 200 and reply.json()["usage"]["completion_tokens"] == 2


FIELDS = [(path, field) for path in BASE for field in (*TABLES[path], "unknown")]


@pytest.mark.parametrize(("path", "field"), FIELDS)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_comes_in_the_next_request_is_answered(post, dispatcher, path, field, data):
    body = data.draw(hostile(path, field))
    # Long answers are no property of bounds: what is asked for without a limit gets a short one.
    if body.get("max_tokens") is None or body.get("n") not in (None, 1, 2):
        body["max_completion_tokens" if "messages" in body else "max_tokens"] = 1
    content = json.dumps(body)
    reply = post("POST", path, content=content, headers={"Content-Type": "application/json"})
    check_status(reply, body)
    answers_well(post)
    assert dispatcher.alive and dispatcher.waiting == dispatcher.running == 0


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60) | st.sampled_from(RAW).map(str.encode))
def test_bodies_that_are_no_requests(post, content):
    reply = post("POST", "/v1/completions", content=content)
    assert reply.status_code == 400
    answers_well(post)


@pytest.mark.parametrize("path", BASE)
@pytest.mark.parametrize("raw", RAW)
def test_raw_values_in_every_field(post, path, raw):
    """Values that only text can spell, put in each field in turn."""
    for name in TABLES[path]:
        fields = {key: json.dumps(value) for key, value in BASE[path].items()} | {name: raw}
        content = "{" + ",".join(f'"{key}":{value}' for key, value in fields.items()) + "}"
        with pytest.raises(Refused):
            checked(read_body(content.encode()), TABLES[path])
    assert post("POST", path, content=content).status_code == 400
    answers_well(post)


def test_a_stream_that_was_left_before_its_first_event_is_no_work(served, dispatcher):
    """A cancelled generator that never began runs no `finally` of its own."""
    app, sent = make_app(served, dispatcher), []
    body = {"model": MODEL, "prompt": "duck", "n": 4, "max_tokens": 200, "stream": True}
    received = iter([
        {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False},
        {"type": "http.disconnect"},
    ])  # fmt: skip
    cancelled, cancel = [], Work.cancel

    async def receive():
        return next(received)

    async def send(message):
        sent.append(message["type"])
        await asyncio.Event().wait()  # nobody reads

    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"host", b"127.0.0.1")],
        "http_version": "1.1", "scheme": "http", "root_path": "", "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80), "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "cancel", lambda work: (cancelled.append(work), cancel(work)))
        asyncio.run(asyncio.wait_for(app(scope, receive, send), 30))
    assert sent == ["http.response.start"] and len(cancelled) == 1


# ---- single bounds, with the status each must have

WRONG = [
    ("n", 0), ("n", 129), ("n", True), ("n", 1.0), ("n", "1"), ("n", 5_000_000),
    ("max_tokens", -1), ("max_tokens", 0), ("max_tokens", 2**31), ("temperature", -0.1),
    ("temperature", 999_999), ("top_p", -1), ("top_p", 0), ("top_p", 1.01), ("top_k", -1),
    ("repetition_penalty", 0), ("repetition_penalty", -1.2), ("repetition_penalty", "1"),
    ("min_p", 2), ("stop", [""]), ("stop", ["x"] * 17), ("stop", "x" * 257), ("stop", [1]),
    ("stop_token_ids", [-1]), ("stop_token_ids", [10**6]), ("stop_token_ids", list(range(9))),
    ("seed", 2**64), ("seed", 0.5), ("stream", 1), ("stream_options", {"x": True}),
    ("frequency_penalty", 0.5), ("presence_penalty", -1), ("logit_bias", {"5": 100}),
    ("best_of", 3), ("tools", []), ("model", ""), ("model", 3), ("model", None),
    ("return_token_ids", 1), ("user", 5), ("chat_template", "{{ 1 }}"),
    ("chat_template_kwargs", {}), ("prompt_logprobs", -1),
]  # fmt: skip
WRONG_PLAIN = [
    ("logprobs", -1), ("logprobs", 21), ("logprobs", True), ("prompt", ""), ("prompt", []),
    ("prompt", [[]]), ("prompt", [261]), ("prompt", [-1]), ("prompt", [10**12]), ("prompt", None),
    ("prompt", [1, "a"]), ("prompt", ["a", 1]), ("prompt", ["a"] * 1025), ("prompt", "x" * 256),
    ("prompt", "\ud800"), ("prompt", {"a": 1}), ("suffix", "x"), ("echo", "yes"),
]  # fmt: skip
WRONG_CHAT = [
    ("logprobs", 1), ("top_logprobs", 1), ("top_logprobs", 21), ("messages", []),
    ("messages", "hi"), ("messages", [{"role": "user"}]), ("messages", [{"content": "x"}]),
    ("messages", [{"role": "root", "content": "x"}]), ("messages", [{"role": "user"}, 1]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": "http://x"}]}]),
    ("messages", [{"role": "user", "content": "x" * 300}]), ("continue_final_message", True),
    ("add_generation_prompt", False), ("response_format", {"type": "json_object"}),
    ("max_completion_tokens", 0),
]  # fmt: skip
CASES = [(path, *case) for path in BASE for case in WRONG]
CASES += [("/v1/completions", *case) for case in WRONG_PLAIN]
CASES += [("/v1/chat/completions", *case) for case in WRONG_CHAT]


def test_every_field_of_the_tables_has_a_value_out_of_bounds():
    wrong = {(path, field) for path, field, _ in CASES}
    assert {(path, field) for path in TABLES for field in TABLES[path]} <= wrong


@pytest.mark.parametrize(("path", "field", "value"), CASES)
def test_a_value_out_of_bounds_is_refused_by_name(post, path, field, value):
    body = json.dumps(BASE[path] | {field: value}).encode()
    reply = post("POST", path, content=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == field and len(reply.text) < 600


RIGHT = [
    {"n": 128, "max_tokens": 1}, {"temperature": 0}, {"temperature": 1e-30}, {"temperature": 100},
    {"top_p": 1e-30}, {"min_p": 1}, {"top_k": 2**31 - 1}, {"stop": ["x"] * 16}, {"stop": "x"},
    {"seed": -(2**63)}, {"seed": 2**64 - 1}, {"max_tokens": 2**31 - 1}, {"user": "me"},
    {"best_of": 2, "n": 2}, {"frequency_penalty": 0.0}, {"logit_bias": {}},
    {"stop_token_ids": [260]}, {"repetition_penalty": 1.3},
    {"n": None, "temperature": None, "stop": None},
]  # fmt: skip


@pytest.mark.parametrize("change", RIGHT, ids=str)
@pytest.mark.parametrize("path", BASE)
def test_values_on_the_bounds_are_served(post, path, change):
    reply = post("POST", path, json=BASE[path] | change)
    assert reply.status_code == 200, reply.text
    assert len(reply.json()["choices"]) == (change.get("n") or 1)


EDGES = [
    {"prompt": [5], "echo": True, "max_tokens": 0, "logprobs": 1},
    {"prompt": [5], "echo": True, "max_tokens": 0, "logprobs": 0},
    {"prompt": "duck", "echo": True, "max_tokens": 0},
    {"prompt": [3] * 256, "echo": True, "max_tokens": 0, "logprobs": 20},
    {"prompt": [3] * 255, "echo": True, "max_tokens": 9, "logprobs": 20},
    {"prompt": [[1, 2], [3]], "echo": True, "max_tokens": 0, "logprobs": 2, "n": 2},
    {"prompt": [[1, 2], [3]], "echo": True, "max_tokens": 0, "logprobs": 2, "stream": True},
]


@pytest.mark.parametrize("change", EDGES, ids=range(len(EDGES)))
def test_scoring_at_its_edges(post, change):
    reply = post("POST", "/v1/completions", json=BASE["/v1/completions"] | change)
    assert reply.status_code == 200, reply.text
    if "stream" not in change:
        several = 2 if isinstance(change["prompt"][0], list) else 1
        assert len(reply.json()["choices"]) == change.get("n", 1) * several
    answers_well(post)


def test_unknown_models_and_routes(post):
    for path in BASE:
        reply = post("POST", path, json=BASE[path] | {"model": "../../etc/passwd"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
        assert post("GET", path).status_code == 405
    for path in ("/", "/docs", "/openapi.json", "/v1/models/../../x", "/v1/load", "/score"):
        assert post("GET", path).status_code == 404


def test_bodies_that_are_too_long(post):
    assert post("POST", "/v1/completions", content=b" " * (MOST_BYTES + 1)).status_code == 413

    async def endless():
        for _ in range(MOST_BYTES // 65536 + 2):
            yield b" " * 65536

    assert post("POST", "/v1/completions", content=endless()).status_code == 413
    answers_well(post)


def test_a_full_queue_says_when_to_come_back(engine, served):
    """The dispatcher's thread is busy with a long answer, so what is queued stays queued."""
    full = Dispatcher(engine, most_waiting=3)
    client = Post(make_app(served, full))
    try:
        body = BASE["/v1/completions"] | {"n": 4}
        reply = client("POST", "/v1/completions", json=body)
        assert reply.status_code == 429 and int(reply.headers["Retry-After"]) >= 1
        assert reply.json()["error"]["type"] == "rate_limit_error"
        answers_well(client)
    finally:
        client.close()
        full.close()


def test_a_defect_of_the_engine_is_told_and_does_not_end_the_service(dispatcher, post):
    """Tickets that no request can become break the engine; those in it hear of it."""
    told = []
    dispatcher.submit([ScoreTicket((5,) * 300, 0, None, told.append)])
    answers_well(post)
    request = Request("a", (), SamplingParams(2), tokens=(5,) * 300)
    dispatcher.submit([Ticket(request, told.append)])
    answers_well(post)
    assert [type(news) for news in told] == [EngineFailed] * 2
    assert dispatcher.alive and dispatcher.waiting == dispatcher.running == 0


# ---- who may come in


def routes_and_statuses(post, headers) -> list[int]:
    paths = ("/v1/models", "/health", "/metrics", "/nowhere", "/v1/completions", "/docs")
    found = [post("GET", path, headers=headers).status_code for path in paths]
    return found + [
        post("POST", path, json=BASE[path], headers=headers).status_code for path in BASE
    ]


def test_the_key_guards_every_route(served, dispatcher):
    post = Post(make_app(served, dispatcher, Secret("sk-right")))
    for wrong in (
        "",
        "Bearer sk-wrong",
        "Bearer ",
        "sk-right",
        "bearer sk-right",
        "Bearer sk-right ",
        "Bearer sk-righté",
    ):
        headers = {"Authorization": wrong.encode()} if wrong else {}
        assert set(routes_and_statuses(post, headers)) <= {401}, wrong
    right = {"Authorization": "Bearer sk-right"}
    assert routes_and_statuses(post, right) == [200, 200, 200, 404, 405, 404, 200, 200]
    post.close()


def test_without_a_key_a_web_page_cannot_get_in_by_a_name_of_its_own(post):
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""):
        assert set(routes_and_statuses(post, {"Host": host})) == {403}
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000"):
        assert post("GET", "/health", headers={"Host": host}).status_code == 200


def stop(server) -> None:
    server.process.terminate()
    server.process.wait(20)


def test_it_does_not_bind_beyond_loopback_without_a_key():
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org", ""):
        with pytest.raises(UserError, match="key"):
            check_address(host, None)
        check_address(host, Secret("k"))
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_address(host, None)


def test_the_command_guards_its_key(start_server, capfd):
    """A whole process: the key works, and is neither in its arguments nor in what it prints."""
    key = "sk-canary-5b1d77"
    environment = {"SELFEVO_TEST_KEY": key}
    server = start_server("--key-env=SELFEVO_TEST_KEY", environment=environment, key=key)
    body = {"model": "random:tiny?seed=0", "prompt": "duck", "max_tokens": 2}
    assert server.post("/v1/completions", body).status_code == 200
    assert server.post("/v1/completions", body | {"n": -1}).status_code == 400
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    assert key not in Path(f"/proc/{server.process.pid}/cmdline").read_text()
    stop(server)
    assert key not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--host=0.0.0.0"], "without a key"),
        (["--adapter=x"], "NAME=DIR"),
        (["--adapter=x=a", "--adapter=x=b"], "taken"),
        (["--port=70000"], "port"),
        (["--key-env=NOT_SET_AT_ALL"], "NOT_SET_AT_ALL"),
    ],
)
def test_mistakes_on_the_command_line(options, message, capsys):
    assert main(["serve", "--model=random:tiny?seed=0", *options]) == 2
    assert message in capsys.readouterr().err


def test_metrics_and_health(post):
    answers_well(post)
    assert post("GET", "/health").json() == {"status": "ok"}
    text = post("GET", "/metrics").text
    assert 'selfevo_requests_total{route="completions",status="200"}' in text
    assert 'selfevo_tokens_total{kind="completion"}' in text
    assert "selfevo_running 0.0" in text
