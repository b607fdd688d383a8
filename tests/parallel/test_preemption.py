"""SIGTERM: heard at once outside a fit; in a fit, after the step is saved."""

import json
import os
import signal
import time

import jax
import numpy as np
import pytest

from selfevo_jax.cli.interrupts import insistent_interrupts
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.trainer import FitSettings, JaxTrainer
from selfevo_jax.models.config import ModelConfig
from selfevo_jax.models.llama import init_params
from selfevo_jax.models.lora import LoraConfig
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.parallel.preemption import Preempted, heard, noticed, waiting
from selfevo_jax.text.render import TokenExample, TokenSpan

CONFIG = ModelConfig(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, max_position=128,
)  # fmt: skip
SETTINGS = dict(epochs=2, batch_size=4, lr=3e-3, row_length=64, lora=LoraConfig(rank=2))


def term() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)


@pytest.fixture(scope="module")
def trainer():
    params = init_params(CONFIG, jax.random.key(1))
    return JaxTrainer(CONFIG, params, base_hash="x", mesh=make_mesh("1,1,1", jax.devices()[:1]))


@pytest.fixture
def fit(trainer):
    """Fits 12 sequences in 6 steps into a folder; `at`: the step after which SIGTERM comes."""
    rng = np.random.default_rng(4)
    examples = [TokenExample(f"e{i}", span(rng, False), (span(rng, True),)) for i in range(12)]

    def run(folder, at=None, **settings):
        def on_step(row):
            if row["step"] == at:
                term()

        chosen = FitSettings(**(SETTINGS | dict(checkpoint_every=100) | settings))
        return trainer.fit(examples, Objective("sft"), chosen, folder, on_step=on_step)

    return run


def span(rng, loss):
    return TokenSpan(rng.integers(1, 96, 9).astype(np.int32), np.full(9, loss))


def saved(folder) -> list[int]:
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


def test_outside_a_fit_it_ends_the_command_at_once():
    began = time.monotonic()
    with pytest.raises(Preempted), insistent_interrupts():
        term()
        time.sleep(5)
    assert time.monotonic() - began < 4
    assert not noticed()


def test_once_heard_it_does_not_disturb_the_end():
    with insistent_interrupts():
        heard()
        term()
        time.sleep(1.5)  # it would be raised again after one second
    assert not noticed()


def test_where_work_waits_it_is_heard_at_the_end():
    done = []
    with pytest.raises(Preempted), insistent_interrupts():
        with waiting():
            term()
            done.append(noticed())
        done.append("not here")
    assert done == [True]


def test_a_fit_saves_and_goes_on_with_the_same_bits(fit, tmp_path):
    whole = fit(tmp_path / "whole")
    with pytest.raises(Preempted), insistent_interrupts():
        fit(tmp_path / "told", at=1)
    steps = saved(tmp_path / "told")
    assert steps and steps[-1] < 6  # saved where no regular save was due
    rows = (tmp_path / "told" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(steps[-1]))
    resumed = fit(tmp_path / "told")
    jax.tree.map(np.testing.assert_array_equal, resumed.trained, whole.trained)
    assert resumed.metrics == whole.metrics


def test_saves_come_at_least_so_often(fit, tmp_path):
    fit(tmp_path / "often", checkpoint_seconds=0.0)
    assert saved(tmp_path / "often") == [5, 6]  # of one a step, the last two are kept
    fit(tmp_path / "seldom", checkpoint_seconds=1e9)
    assert saved(tmp_path / "seldom") == [6]


def test_what_a_kill_left_half_saved_is_not_picked(fit, tmp_path):
    whole = fit(tmp_path, checkpoint_every=4)
    half = tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp-3"
    (half / "state").mkdir(parents=True)
    (half / "state" / "array_metadatas").write_bytes(b"half")
    again = fit(tmp_path, checkpoint_every=4)
    assert again.metrics == whole.metrics
    assert saved(tmp_path) == [4, 6]
