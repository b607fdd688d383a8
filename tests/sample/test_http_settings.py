"""What a server may cost: by its settings, over all starts of a job, and in advance."""

import importlib.util
import math
import shutil
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from selfevo_jax.config import load_config
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.launch import open_backend
from selfevo_jax.evolve.policy import Policy, Role
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.sample.http.client import HttpGenerator, open_server
from selfevo_jax.sample.http.database import Database
from selfevo_jax.sample.http.endpoint import Endpoint
from selfevo_jax.sample.http.ledger import Ledger
from selfevo_jax.sample.http.pricing import DryRun, Estimate
from selfevo_jax.sample.http.settings import FILE, ServerSettings, server_settings
from selfevo_jax.sample.http.spending import Cap, CapReached
from selfevo_jax.sample.http.usage import Usage
from selfevo_jax.sample.protocol import LabelRequest, Request, SamplingParams, ScoreRequest

spec = importlib.util.spec_from_file_location(
    "faulty_server", Path(__file__).with_name("faulty_server.py")
)
faulty = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faulty)
serve, asks, client, collect = faulty.serve, faulty.asks, faulty.client, faulty.collect

ROOT = Path(__file__).parents[2]
A_REPLY = 9  # tokens that the faulty server bills for one: 5 of the prompt, 4 written


def opened(server, folder: Path, text: str) -> HttpGenerator:
    return open_server(Endpoint(server.url, "m"), server_settings(text), folder)


def spend(generator, requests) -> tuple[int, CapReached | None]:
    """How many answers came, and what ended it."""
    count = 0
    try:
        for _ in generator.generate(requests):
            count += 1
    except CapReached as error:
        return count, error
    return count, None


def test_one_text_has_all_settings():
    text = "per_minute=60, cap_tokens=1000000,cap_money=5,price_in=0.5,price_out=1.5,cache=a/b.db"
    assert server_settings(text) == ServerSettings(60.0, 1_000_000, 5.0, 0.5, 1.5, "a/b.db")
    assert server_settings("") == ServerSettings()
    assert ServerSettings().file(Path("job")) is None
    assert server_settings("cap_tokens=1").file(Path("job")) == Path("job") / FILE
    assert server_settings("cap_tokens=1").file(None) is None
    assert server_settings("cap_tokens=1,cache=x").file(Path("job")) == Path("x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cap_token=5", "did you mean cap_tokens"),
        ("cap_tokens", "as NAME=VALUE"),
        ("cap_tokens=", "as NAME=VALUE"),
        ("cap_tokens=1,cap_tokens=2", "once"),
        ("cap_tokens=many", "many"),
        ("cap_tokens=1.5", "1.5"),
        ("per_minute=-1", "at least 0"),
        ("price_in=nan", "at least 0"),
        ("cap_money=inf,price_in=1", "at least 0"),
        ("cap_money=5", "price_in and price_out"),
    ],
)
def test_a_setting_that_cannot_be_is_named(text, message):
    with pytest.raises(UserError, match=message):
        server_settings(text)


def test_a_job_that_starts_again_does_not_get_a_fresh_cap(serve, tmp_path):
    server = serve()
    first, error = spend(opened(server, tmp_path, "cap_tokens=1000"), asks(400))
    assert error is not None and first > 20 and server.tokens == A_REPLY * first <= 1000
    sent = len(server.bodies)
    again, error = spend(opened(server, tmp_path, "cap_tokens=1000"), asks(400))
    assert 0 < again <= first and len(server.bodies) == sent  # those of the cache, and no more
    for told in (f"{A_REPLY * first} tokens", str(tmp_path / FILE), "cap is 1000 tokens",
                 "raise cap_tokens"):  # fmt: skip
        assert told in str(error)
    more, error = spend(opened(server, tmp_path, "cap_tokens=2000"), asks(400))
    assert error is not None and first < more and 1000 < server.tokens <= 2000
    assert set(server.delivered.values()) == {1}


def test_a_cap_in_money_counts_over_starts_too(serve, tmp_path):
    server, settings = serve(), "cap_money=0.1,price_in=100,price_out=300"
    count, error = spend(opened(server, tmp_path, settings), asks(400))
    cost = count * (5 * 100 + 4 * 300) / 1e6
    assert error is not None and 0.03 < cost <= 0.1
    again, error = spend(opened(server, tmp_path, settings), asks(400))
    assert error is not None and again <= count == len(server.bodies)
    assert f"({cost:.4f} in money) are spent" in str(error)


def test_each_model_of_a_file_has_its_own_count(serve, tmp_path):
    server, cache = serve(), tmp_path / "c.db"
    spend(client(server, cap=Cap(tokens=500), cache=cache), asks(400))
    other = HttpGenerator(Endpoint(server.url, "other"), cap=Cap(tokens=500), cache=cache)
    assert spend(other, asks(10)) == (10, None)


def test_what_a_killed_process_had_under_way_counts(tmp_path):
    """The server may have billed it, and nobody will ever know."""
    ledger = Ledger(Database(tmp_path / "c.db"), "m")
    assert ledger.set_aside(Usage(30, 10), lambda usage: usage.total <= 100)
    ledger.settle(Usage(30, 10), Usage(5, 4), certain=True)
    assert ledger.set_aside(Usage(30, 10), lambda usage: usage.total <= 100)  # and is killed
    after = Ledger(Database(tmp_path / "c.db"), "m")
    assert after.total() == Usage(35, 14)
    assert not after.set_aside(Usage(60, 0), lambda usage: usage.total <= 100)
    assert after.total() == Usage(35, 14)


def test_answers_that_were_lost_count_at_the_next_start(serve, tmp_path):
    server = serve(lambda number: "cut" if number < 4 else "")
    generator = client(server, cap=Cap(tokens=10_000), cache=tmp_path / "c.db")
    collect(generator.generate(asks(10)))
    spending = generator.spending
    assert spending.uncertain.completion == 4 * 8
    total = Ledger(Database(tmp_path / "c.db"), generator.endpoint.name).total()
    assert total == spending.spent + spending.uncertain


def test_two_jobs_at_a_time_do_not_pass_the_cap_together(serve, tmp_path):
    server, cache = serve(), tmp_path / "c.db"
    jobs = [client(server, cap=Cap(tokens=900), cache=cache) for _ in range(2)]
    halves = asks(300)[:150], asks(300)[150:]
    ends = []
    threads = [
        threading.Thread(target=lambda *both: ends.append(spend(*both)), args=both)
        for both in zip(jobs, halves, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(error is not None for _, error in ends)
    assert 500 < server.tokens <= 900


@pytest.mark.parametrize("value", [-5, "'many'", "NULL"])
def test_a_count_that_is_damaged_is_told_and_nothing_is_sent(serve, tmp_path, value):
    server = serve()
    assert spend(opened(server, tmp_path, "cap_tokens=1000"), asks(3))[0] == 3
    with sqlite3.connect(tmp_path / FILE) as connection:
        columns = ", ".join(f"{n} INTEGER" for n in ("prompt", "completion"))
        kept = connection.execute("SELECT model FROM spending").fetchone()
        connection.execute("DROP TABLE spending")
        lost = "uncertain_prompt INTEGER DEFAULT 0, uncertain_completion INTEGER DEFAULT 0"
        connection.execute(f"CREATE TABLE spending (model TEXT PRIMARY KEY, {columns}, {lost})")
        connection.execute(f"INSERT INTO spending VALUES (?, {value}, 0, 0, 0)", kept)
    with pytest.raises(UserError, match="can no longer be read.*move it away"):
        collect(opened(server, tmp_path, "cap_tokens=1000").generate(asks(4)))
    assert len(server.bodies) == 3


def test_the_pace_of_the_settings_is_kept(serve, tmp_path):
    server, start = serve(), time.monotonic()
    collect(opened(server, tmp_path, "per_minute=600").generate(asks(6)))
    assert time.monotonic() - start > 5 * 0.1 * 0.8


MESSAGES = ({"role": "user", "content": "x" * 400},)


def test_every_kind_of_request_has_a_price(serve, tmp_path):
    server = serve()
    generator = opened(server, tmp_path, "price_in=10,price_out=20,cache=" + str(tmp_path / "c"))
    labels = generator.price_labels([LabelRequest("a", MESSAGES, ("A", "B"))] * 3)
    assert (labels.requests, labels.prompt_tokens, labels.completion_tokens) == (3, 3 * 104, 3)
    assert labels.money >= 3 * (400 * 10 + 20) / 1e6
    plain = client(server, api="completions", price=generator.endpoint.price)
    scores = plain.price_scores([ScoreRequest("a", "x" * 396, "y" * 4, end=False)])
    assert (scores.prompt_tokens, scores.completion_tokens) == (100, 0)
    assert labels + scores == Estimate(4, 0, 412, 3, labels.money + scores.money)
    assert "4 requests, 0 of them cached; about 412 prompt tokens" in str(labels + scores)
    assert not server.bodies


def test_a_label_in_the_cache_costs_nothing(serve, tmp_path):
    server = serve()

    def reply(body):
        good = faulty.good_reply(body)
        told = [{"token": t, "logprob": -1.0} for t in "AB"]
        good["choices"][0]["logprobs"] = {"content": [told[0] | {"top_logprobs": told}]}
        return good

    server.reply, generator = reply, client(server, cache=tmp_path / "c.db")
    asked = [LabelRequest(name, MESSAGES, ("A", "B"), prefix=name) for name in "xy"]
    list(generator.labels(asked[:1]))
    found = generator.price_labels(asked)
    assert (found.requests, found.cached, found.completion_tokens) == (2, 1, 1)


def test_a_dry_run_asks_nobody_and_answers_at_full_length(serve):
    server = serve()
    dry = DryRun(client(server), answers=True)
    (reply,) = dry.generate([Request("a", MESSAGES, SamplingParams(8))])
    assert len(reply.text) == 4 * 8
    (labels,) = dry.labels([LabelRequest("a", MESSAGES, ("A", "B"))])
    assert labels.logps[0] < labels.logps[1] and math.isfinite(sum(labels.logps))
    assert dry.estimate.requests == 2 and dry.estimate.completion_tokens == 9
    silent = DryRun(client(server))
    assert list(silent.generate(asks(5))) == [] and silent.estimate.requests == 5
    assert not server.bodies


@pytest.fixture
def teacher(serve, tmp_path):
    """A server, and what makes the generator of a role on it in a run with some settings."""
    server = serve()

    def make(*changes: str, workdir: Path = tmp_path / "run"):
        own = [f"roles.teacher.{change}" for change in (f"model={server.url}#m", *changes)]
        config = load_config(f"{ROOT}/configs/refeval.py:tiny", [*own, "seed=3"])
        role = Role(**config.roles.teacher.to_dict())
        backend = open_backend(config, Progress(quiet=True), workdir)
        return backend.generator(Policy("teacher", backend.role_hash(role), role=role))

    return server, make


def test_a_role_has_the_same_settings(teacher, tmp_path):
    server, make = teacher
    place = tmp_path / "teacher.db"
    settings = (f"cache={place}", "cap_money=0.05", "price_in=100", "price_out=300")
    count, error = spend(make(*settings), asks(100))
    assert error is not None and count == len(server.bodies) > 5 and str(place) in str(error)
    assert spend(make(*settings), asks(100))[0] <= count == len(server.bodies)
    start = time.monotonic()
    collect(make("per_minute=600").generate(asks(6)))
    assert time.monotonic() - start > 5 * 0.1 * 0.8
    with pytest.raises(UserError, match=f"role with model={server.url}#m: cap_money=1.0 needs"):
        make("cap_money=1.0")


def test_a_run_takes_its_cap_along_to_a_new_machine(teacher, tmp_path, monkeypatch):
    """Nothing but the workdir is copied; the machine's cache folder is another."""
    server, make = teacher
    count, error = spend(make("cap_tokens=800"), asks(100))
    assert error is not None and 0 < count == len(server.bodies)
    assert str(tmp_path / "run" / "servers" / FILE) in str(error)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    monkeypatch.setenv("SELFEVO_CACHE", str(tmp_path / "new"))
    again, error = spend(make("cap_tokens=800", workdir=tmp_path / "copy"), asks(100))
    assert error is not None and again <= count == len(server.bodies)
    assert spend(make("cap_tokens=1600", workdir=tmp_path / "copy"), asks(100))[0] > count
    assert spend(make("cap_tokens=800", workdir=tmp_path / "other"), asks(9)) == (9, None)
