"""Where a fit's time goes: clocks that are told what passes, and a real fit."""

import gzip
import json
import time

import jax
import pytest

from selfevo_jax.learn import goodput as goodput_file
from selfevo_jax.learn.goodput import PARTS, Goodput, step_times, stragglers
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.trainer import FitSettings, JaxTrainer
from selfevo_jax.models.lora import LoraConfig
from selfevo_jax.report.costs import goodput


def lines_of(folder):
    return [json.loads(line) for line in (folder / "goodput.jsonl").read_text().splitlines()]


@pytest.fixture
def clock(monkeypatch):
    """Time that passes only when told to."""
    now = [100.0]
    monkeypatch.setattr(goodput_file.time, "monotonic", lambda: now[0])

    def passes(seconds):
        now[0] += seconds

    return passes


def test_every_moment_counts_once(clock, tmp_path):
    with Goodput(tmp_path, 3, 98.0) as spent:
        with spent.on("steps"):
            clock(5)
            with spent.on("data"):
                clock(1)
            clock(4)
            jax.monitoring.record_event_duration_secs(
                "/jax/core/compile/backend_compile_duration", 3.0
            )
        spent.step()
        spent.write()
        with spent.on("checkpoint"):
            clock(2)
    first, last = lines_of(tmp_path)
    none = dict.fromkeys(PARTS, 0.0)
    parts = {"steps": 6.0, "compile": 3.0, "data": 1.0, "idle": 2.0}
    assert first == none | parts | {"first": 3, "last": 4}
    assert last == none | {"checkpoint": 2.0, "first": 4, "last": 4}


def test_steps_that_were_done_again_are_no_goodput():
    """Ten steps to a save that a kill left half done, and again from step 6 to 12."""
    none = dict.fromkeys(PARTS, 0.0)
    found = goodput([
        none | {"first": 0, "last": 10, "steps": 10.0, "compile": 5.0},
        none | {"first": 6, "last": 12, "steps": 6.0, "idle": 3.0},
    ])  # fmt: skip
    assert (found["steps"], found["again"], found["seconds"]) == (12.0, 4.0, 24.0)
    assert found["share"] == 0.5
    assert goodput([]) == {}


def test_the_host_that_works_longest_itself_is_named():
    """Steps take equally long everywhere; who does not wait for the others holds them up."""
    hosts = [step_times([(1.0, own), (1.2, own), (0.9, own)]) for own in (0.05, 0.6, 0.1, 0.04)]
    assert hosts[1] == {"median": 1.0, "slowest": 1.2, "own": 0.6}
    assert stragglers(hosts) == [1]
    assert stragglers(hosts[2:]) == []


def test_a_real_fit_says_where_its_time_went(tmp_path, pairs, tiny, tiny_params):
    """All of it, on disk at each save; and a trace of the steps that were asked for."""
    trainer = JaxTrainer(tiny, tiny_params, base_hash="x")
    settings = FitSettings(
        steps=5, batch_size=4, lr=3e-3, row_length=64, lora=LoraConfig(rank=2), checkpoint_every=2,
        profile_steps=2,
    )  # fmt: skip
    began = time.monotonic()
    trainer.fit(pairs, Objective("dpo"), settings, tmp_path)
    whole = time.monotonic() - began
    lines = lines_of(tmp_path)
    assert [(line["first"], line["last"]) for line in lines] == [(0, 2), (2, 4), (4, 5), (5, 5)]
    found = goodput(lines)
    assert all(found[part] >= 0 for part in PARTS)
    assert found["again"] == 0
    assert min(found["steps"], found["reference"], found["checkpoint"]) > 0
    assert 0.5 * whole < found["seconds"] < whole
    (trace,) = tmp_path.glob("profile/plugins/profile/*/*.trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert names.count("PjitFunction(_update)") in (2, 4)  # JAX names a call once or twice
