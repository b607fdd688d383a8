"""The HTTP client against servers that behave badly: nothing lost, nothing paid twice."""

import email.utils
import importlib.util
import itertools
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.sample.http.calls import Limits, retry_after
from selfevo_jax.sample.http.client import HttpGenerator
from selfevo_jax.sample.http.endpoint import Endpoint
from selfevo_jax.sample.http.failures import RequestsFailed, ServerUnusable
from selfevo_jax.sample.http.secret import Secret
from selfevo_jax.sample.http.spending import Cap, CapReached, Price
from selfevo_jax.sample.http.wire import body_of, most_usage
from selfevo_jax.sample.protocol import LabelRequest, Request, SamplingParams, ScoreRequest

spec = importlib.util.spec_from_file_location(
    "faulty_server", Path(__file__).with_name("faulty_server.py")
)
faulty = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faulty)

FAST = faulty.FAST
# Shorter than what the faulty server calls slow, longer than anything else takes.
HASTY = replace(FAST, timeout=1.5)
CANARY = "sk-canary-0f3e9a7711d24c"


ASKED = ({"role": "user", "content": "2 + 2"},)
serve, asks, client, collect = faulty.serve, faulty.asks, faulty.client, faulty.collect


def test_a_thousand_requests_against_a_server_that_fails_three_times_in_ten(serve):
    """None lost, none wrong, none delivered (and so billed) twice; the bill is what was done."""
    server = serve(faulty.random_faults(1, 0.3))
    generator = client(server, limits=HASTY, price=Price(1.0, 2.0))
    found = collect(generator.generate(asks(1000)))
    assert found == {f"r{i}": f"answer to question {i} #0" for i in range(1000)}
    assert server.delivered == {f"question {i}": 1 for i in range(1000)}
    failed = sum(count for fault, count in server.faults.items() if fault)
    assert set(server.faults) == {"", *faulty.FAULTS} and 300 < failed < 600
    spending = generator.spending
    assert spending.spent.total == server.tokens == 9000 and spending.calls == 1000
    assert spending.uncertain.completion >= 8 * sum(server.lost.values())
    assert spending.money == spending.price.of(spending.spent + spending.uncertain)


def test_retry_after_is_honoured_by_all_threads(serve):
    server = serve(lambda number: "hold" if number == 0 else "")
    plain = faulty.Handler.answer

    class Holding(faulty.Handler):
        def answer(self, fault, reply):
            if fault == "hold":
                self.send(429, b"", {"Retry-After": "1"})
            else:
                plain(self, fault, reply)

    server.RequestHandlerClass = Holding
    limits = Limits(concurrency=4, backoff=0.001, longest_backoff=0.01)
    start = time.monotonic()
    assert len(collect(client(server, limits=limits).generate(asks(30)))) == 30
    assert 1.0 <= time.monotonic() - start < 5
    quiet = max(b - a for a, b in itertools.pairwise(sorted(server.times)))
    assert quiet > 0.8


def test_retry_after_in_seconds_and_as_a_date():
    now = time.time()
    later = email.utils.formatdate(now + 90, usegmt=True)
    wrong_clock = {
        "Date": email.utils.formatdate(now - 5000, usegmt=True),
        "Retry-After": email.utils.formatdate(now - 4970, usegmt=True),
    }
    assert retry_after({"Retry-After": "17"}) == 17
    assert 88 <= retry_after({"Retry-After": later}) <= 91
    assert retry_after(wrong_clock) == 30
    assert retry_after({"Retry-After": email.utils.formatdate(0, usegmt=True)}) == 0
    for odd in ("", "soon", "-3", "1e9", "Mon, 99 Foo 2020 00:00:00 GMT"):
        assert retry_after({"Retry-After": odd}) is None


def test_the_pace_is_kept(serve):
    server = serve()
    limits = Limits(concurrency=8, per_minute=1200)
    collect(client(server, limits=limits).generate(asks(12)))
    gaps = [b - a for a, b in itertools.pairwise(sorted(server.times))]
    assert sum(gaps) > 11 * 0.05 * 0.8


def test_never_more_calls_at_a_time_than_allowed_and_read_lazily(serve):
    server = serve(lambda number: "slow", slow=0.05)
    peak, now = [0], [0]

    def reply(body):
        with server.lock:
            now[0] += 1
            peak[0] = max(peak)
            peak.append(now[0])
        time.sleep(0.01)
        with server.lock:
            now[0] -= 1
        return faulty.good_reply(body)

    server.fault, server.reply = (lambda number: ""), reply
    read = []
    source = (read.append(r.id) or r for r in asks(100))
    stream = client(server, limits=Limits(concurrency=3)).generate(source)
    first = next(stream)
    assert first.id in {"r0", "r1", "r2"} and len(read) <= 3
    assert len(collect(stream)) == 99
    assert 1 < max(peak) <= 3


def test_the_cap_is_never_passed_and_what_was_paid_is_kept(serve, tmp_path):
    server = serve()
    price = Price(100.0, 300.0)
    cap = Cap(tokens=1000)
    generator = client(server, cap=cap, cache=tmp_path / "c.db", price=price)
    found = {}
    with pytest.raises(CapReached, match="cap is reached"):
        for completion in generator.generate(asks(400)):
            found[completion.id] = completion.text
    assert server.tokens == generator.spending.spent.total <= 1000
    assert len(found) == server.tokens // 9 > 50
    again = client(server, cache=tmp_path / "c.db", price=price)
    assert len(collect(again.generate(asks(400)))) == 400
    assert set(server.delivered.values()) == {1}


def test_a_cap_in_money(serve):
    server = serve()
    generator = client(server, cap=Cap(money=0.1), price=Price(100.0, 300.0))
    with pytest.raises(CapReached):
        collect(generator.generate(asks(400)))
    assert 0.03 < generator.spending.money <= 0.1
    with pytest.raises(UserError, match="prices"):
        client(server, cap=Cap(money=0.1))


def test_the_dry_run_prices_the_job_and_sends_nothing(serve, tmp_path):
    server = serve()
    generator = client(server, cache=tmp_path / "c.db", price=Price(10.0, 20.0))
    collect(generator.generate(asks(3)))
    sent = len(server.bodies)
    estimate = generator.price(asks(10))
    assert (estimate.requests, estimate.cached) == (10, 3)
    assert estimate.completion_tokens == 7 * 8 and estimate.prompt_tokens == 7 * (3 + 4)
    assert estimate.money >= (7 * 5 * 10 + 7 * 4 * 20) / 1e6
    assert len(server.bodies) == sent


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"prefix": "Well"},
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]},
        {"messages": [{"role": "assistant", "content": "q"}]},
        {"sampling": SamplingParams(9)},
        {"sampling": SamplingParams(8, temperature=0.5)},
        {"sampling": SamplingParams(8, top_p=0.5)},
        {"sampling": SamplingParams(8, top_k=5)},
        {"sampling": SamplingParams(8, min_p=0.5)},
        {"sampling": SamplingParams(8, stop=("x",))},
        {"sampling": SamplingParams(8, stop_token_ids=(7,))},
        {"seed": 2**63},
    ],
)
def test_the_cache_knows_every_part_of_a_request(serve, tmp_path, change):
    server = serve()
    first = {"messages": [{"role": "user", "content": "q"}], "sampling": SamplingParams(8)}
    generator = client(server, cache=tmp_path / "c.db")
    for expected in (1, 1):
        collect(generator.generate([Request("a", **first)]))
        assert len(server.bodies) == expected
    collect(generator.generate([Request("a", **first | change)]))
    assert len(server.bodies) == 2


def test_the_cache_knows_model_endpoint_and_form(serve, tmp_path):
    one, two = serve(), serve()
    (request,) = asks(1)
    for server, settings in ((one, {}), (one, {"api": "completions"}), (two, {})):
        collect(client(server, cache=tmp_path / "c.db", **settings).generate([request]))
    other = HttpGenerator(Endpoint(one.url, "another"), limits=FAST, cache=tmp_path / "c.db")
    collect(other.generate([request]))
    assert (len(one.bodies), len(two.bodies)) == (3, 1)
    assert (tmp_path / "c.db").stat().st_mode & 0o777 == 0o600


def test_the_same_question_at_the_same_time_is_paid_once(serve):
    server = serve()
    (request,) = asks(1)
    twins = [Request(f"t{i}", request.messages, request.sampling, request.seed) for i in range(16)]
    limits = Limits(concurrency=20)
    plain = server.reply
    server.reply = lambda body: time.sleep(0.1) or plain(body)
    assert len(collect(client(server, limits=limits).generate(twins))) == 16
    assert len(server.bodies) == 1


def test_refusals_and_filtered_answers_are_not_cached(serve, tmp_path):
    server = serve()

    def reply(body):
        good = faulty.good_reply(body)
        (choice,) = good["choices"]
        if "question 0" in prompt(body):
            choice["message"] = {"content": None, "refusal": "I cannot help with that."}
        if "question 1" in prompt(body):
            choice["finish_reason"] = "content_filter"
        return good

    prompt, server.reply = faulty.prompt_of, reply
    for round_number in (1, 2):
        generator, found = client(server, cache=tmp_path / "c.db"), {}
        with pytest.raises(RequestsFailed, match="content_filter") as failure:
            for completion in generator.generate(asks(4)):
                found[completion.id] = completion.text
        assert set(failure.value.failed) == {"r1"} and set(found) == {"r0", "r2", "r3"}
        assert found["r0"] == "I cannot help with that."
        assert generator.spending.spent.total == 9 * (4 if round_number == 1 else 2)
    asked = [prompt(body)[-1] for body in server.bodies]
    assert sorted(asked) == ["0", "0", "1", "1", "2", "3"]


def test_samples_of_one_prompt_share_a_call(serve, tmp_path):
    server = serve()
    messages = [{"role": "user", "content": "q"}]
    requests = [Request(f"s{i}", messages, SamplingParams(8), seed=i) for i in range(7)]
    generator = client(server, samples_per_call=3, cache=tmp_path / "c.db")
    found = collect(generator.generate(requests))
    assert sorted(body.get("n", 1) for body in server.bodies) == [1, 3, 3]
    assert [found[f"s{i}"][-1] for i in range(7)] == list("0120120")
    assert collect(generator.generate(requests)) == found and len(server.bodies) == 3


def test_log_probabilities_and_ids(serve):
    server = serve()

    def reply(body):
        good = faulty.good_reply(body)
        content = [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}]
        good["choices"][0] |= {"logprobs": {"content": content}, "token_ids": [3, 9]}
        return good

    server.reply = reply
    (found,) = client(server, logprobs=True, token_ids=True).generate(asks(1))
    assert (found.tokens, found.logps, found.prompt_tokens) == ((3, 9), (-0.5, -1.5), 5)
    assert server.bodies[0]["logprobs"] is True and server.bodies[0]["return_token_ids"] is True
    server.reply = faulty.good_reply
    (found,) = client(server).generate(asks(1))
    assert (found.tokens, found.logps) == ((-1,) * 4, ())


def test_scores_come_from_the_echo(serve):
    server = serve()

    def reply(body):
        assert (body["echo"], body["max_tokens"], body["prompt"]) == (True, 0, "question no way")
        logprobs = {
            "tokens": ["question", " ", "no", " way"], "text_offset": [0, 8, 9, 11],
            "token_logprobs": [None, -1.0, -2.0, -3.0],
        }  # fmt: skip
        choice = {"index": 0, "text": body["prompt"], "finish_reason": "length"}
        return {"choices": [choice | {"logprobs": logprobs}], "usage": {"prompt_tokens": 4}}

    server.reply = reply
    generator = client(server, api="completions")
    messages = [{"role": "user", "content": "question "}]
    (score,) = generator.score([ScoreRequest("a", messages, "no way", end=False)])
    assert score.logps == (-2.0, -3.0)
    with pytest.raises(RequestsFailed, match="no token begins"):
        list(generator.score([ScoreRequest("a", "q", "uestion no way", end=False)]))
    with pytest.raises(UserError, match="completions"):
        list(client(server).score([ScoreRequest("a", messages, "no way", end=False)]))


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_labels_come_from_the_likeliest_tokens(serve, tmp_path, api):
    server = serve()
    told = {"A": -0.25, "B": -1.75, " A": -4.0, "Ass": -6.0, "": -7.0, " ": -0.1}

    def reply(body):
        assert body["max_tokens"] == 1
        good = faulty.good_reply(body)
        content = [{"token": "A", "logprob": -0.25}]
        content[0]["top_logprobs"] = [{"token": t, "logprob": v} for t, v in told.items()]
        plain = {"top_logprobs": [told]}
        good["choices"][0]["logprobs"] = {"content": content} if api == "chat" else plain
        return good

    server.reply = reply
    generator = client(server, api=api, cache=tmp_path / "c.db", price=Price(1, 1))
    messages = [{"role": "user", "content": "Which?"}]
    labels = {"a": ("A", "B", "C"), "b": ("Assist", "B")}
    for _ in range(2):
        asked = [LabelRequest(name, messages, wanted) for name, wanted in labels.items()]
        found = {one.id: one.logps for one in generator.labels(asked)}
        assert found == {"a": (-0.25, -1.75, -math.inf), "b": (-6.0, -1.75)}
    assert len(server.bodies) in (1, 2)
    paid = generator.spending.spent.total
    with pytest.raises(RequestsFailed, match="no label") as failure:
        list(generator.labels([LabelRequest("a", messages, ("X", "Y"), prefix="I say ")]))
    assert set(failure.value.failed) == {"a"} and generator.spending.spent.total == paid + 9
    with pytest.raises(RequestsFailed, match="same token"):
        list(generator.labels([LabelRequest("a", messages, ("Bee", "Beo"))]))
    (yes,) = generator.labels([LabelRequest("a", messages, (" A", " no"))])
    assert yes.logps == (-4.0, -math.inf)  # the space that was told is not " no"


def test_what_a_server_cannot_take_is_said(serve):
    server = serve()
    chat, plain = client(server), client(server, api="completions")
    for request in (Request("a", "text"), Request("a", (), tokens=(1, 2))):
        with pytest.raises(UserError, match="completions"):
            collect(chat.generate([request]))
    with pytest.raises(UserError, match="end=False"):
        list(plain.score([ScoreRequest("a", "text", " more")]))
    found = collect(plain.generate([Request("a", "text", prefix=" more")]))
    assert found == {"a": "answer to text more #0"}
    assert plain.price([Request("a", (), tokens=(1, 2))]).prompt_tokens == 2
    assert [body["prompt"] for body in server.bodies] == ["text more"]


@pytest.mark.parametrize("status", [301, 307, 401, 403, 404])
def test_hopeless_answers_end_the_job_at_once(serve, status):
    target = serve()
    server = serve(lambda number: str(status))
    plain = faulty.Handler.send

    class Redirecting(faulty.Handler):
        def send(self, status, content, headers=None):
            plain(self, status, content, (headers or {}) | {"Location": target.url})

    server.RequestHandlerClass = Redirecting
    with pytest.raises(ServerUnusable, match=str(status)):
        collect(client(server, key=Secret(CANARY)).generate(asks(500)))
    assert len(server.bodies) <= FAST.concurrency and not target.bodies


def test_one_bad_request_does_not_take_others_with_it(serve):
    server = serve()
    server.fault = lambda number: "400" if number % 5 == 0 else ""
    found = {}
    with pytest.raises(RequestsFailed, match="status 400") as failure:
        for completion in client(server).generate(asks(50)):
            found[completion.id] = completion.text
    assert len(failure.value.failed) == 10 and len(found) == 40
    assert len(server.bodies) == 50


def test_a_request_that_always_breaks_the_server_is_alone(serve):
    """While others are answered it is not the server that is dead."""
    server = serve()
    plain = faulty.Handler.answer

    class Breaking(faulty.Handler):
        def answer(self, fault, reply):
            plain(self, "500" if b"question 7 " in reply else "", reply)

    server.RequestHandlerClass = Breaking
    limits = Limits(concurrency=3, attempts=8, backoff=0.02, longest_backoff=0.1)
    found = {}
    with pytest.raises(RequestsFailed, match="in 8 attempts: .*status 500") as failure:
        for completion in client(server, limits=limits).generate(asks(200)):
            found[completion.id] = completion.text
    assert set(failure.value.failed) == {"r7"} and len(found) == 199


def test_a_dead_server_ends_the_job_and_names_itself(serve):
    server = serve(lambda number: "503")
    limits = Limits(concurrency=2, attempts=3, backoff=0.001, longest_backoff=0.01)
    with pytest.raises(ServerUnusable, match="3 attempts.*503"):
        collect(client(server, limits=limits).generate(asks(100)))
    assert len(server.bodies) <= 6


def test_closing_early_stops_waiting_and_keeps_what_was_paid(serve, tmp_path):
    server = serve(lambda number: "" if number == 0 else "503")
    limits = Limits(concurrency=4, attempts=50, backoff=30.0)
    stream = client(server, limits=limits, cache=tmp_path / "c.db").generate(asks(100))
    first, start = next(stream), time.monotonic()
    stream.close()
    assert time.monotonic() - start < 5
    sent = len(server.bodies)
    (request,) = [r for r in asks(100) if r.id == first.id]
    (kept,) = client(server, cache=tmp_path / "c.db").generate([request])
    assert kept == first and len(server.bodies) == sent


def test_the_most_a_call_can_cost_bounds_any_tokenizer():
    body = {"messages": [{"role": "user", "content": "日本 x"}], "max_tokens": 7, "n": 3}
    assert most_usage(body, "max_tokens").completion == 21
    assert most_usage(body, "max_tokens").prompt >= len("日本 x".encode()) + 16


@pytest.mark.parametrize("setting", [{"num_beams": 4}, {"top_logprobs": 3}, {"details": True}])
def test_what_no_server_is_asked_is_refused_not_dropped(setting):
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    sampling = SamplingParams(4, **{"temperature": 0.0} | setting)
    with pytest.raises(UserError, match=f"{next(iter(setting))}=.*leave it out"):
        body_of(endpoint, Request("r", ASKED, sampling, 0))


def test_a_penalty_is_sent_where_there_is_one():
    endpoint = Endpoint("http://127.0.0.1:1/v1", "m")
    assert "repetition_penalty" not in body_of(endpoint, Request("r", ASKED, SamplingParams(4), 0))
    sampling = SamplingParams(4, repetition_penalty=1.3)
    assert body_of(endpoint, Request("r", ASKED, sampling, 0))["repetition_penalty"] == 1.3
