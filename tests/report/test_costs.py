"""What a real training notes of itself: operations at every step, and the machine at its start."""

import json

import jax
import numpy as np
import pytest

from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.protocol import FitSettings
from selfevo_jax.learn.trainer import JaxTrainer
from selfevo_jax.models.config import ModelConfig
from selfevo_jax.models.flops import train_flops
from selfevo_jax.models.llama import init_params
from selfevo_jax.models.lora import LoraConfig
from selfevo_jax.report.folder import RunFolder
from selfevo_jax.report.page import page_data
from selfevo_jax.report.summary import summarise
from selfevo_jax.text.render import TokenExample, TokenSpan

TINY = ModelConfig(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, max_position=128, tie_embeddings=True,
)  # fmt: skip
LORA = LoraConfig(rank=2)


def span(tokens, loss):
    return TokenSpan(np.asarray(tokens, np.int32), np.full(len(tokens), loss))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run whose only training has two steps, each on an example of 7 tokens, 3 of a reply."""
    workdir = tmp_path_factory.mktemp("run")
    examples = [
        TokenExample(str(n), span([1, 2, 3, 4], False), (span([5, 6, 7 + n], True),))
        for n in range(2)
    ]
    settings = FitSettings(steps=2, batch_size=1, lr=1e-2, row_length=16, lora=LORA)
    trainer = JaxTrainer(TINY, init_params(TINY, jax.random.key(0)), base_hash="x")
    trainer.fit(examples, Objective("sft"), settings, workdir / "round_01/x.train")
    return workdir


def test_every_step_notes_its_operations(fitted):
    expected = train_flops(TINY, 6, 3, lora=LORA)  # the last token is only predicted
    lines = (fitted / "round_01/x.train/timings.jsonl").read_text().splitlines()
    assert [json.loads(line)["flops"] for line in lines] == [expected] * 2
    (training,) = summarise(fitted)["trainings"]
    assert (training["stage"], training["flops"]) == ("x.train", 2 * expected)
    assert training["goodput"]["seconds"] > 0


def test_the_first_step_notes_what_it_ran_on(fitted):
    summary = summarise(fitted)
    (machine,) = summary["machines"]
    assert (machine["device"], machine["devices"]) == (jax.devices()[0].device_kind, 1)
    assert machine["stages"] == ["round_01/x.train"] and machine["os"]
    environment = dict(page_data(RunFolder(fitted), summary)["environment"])
    assert environment["machine.mesh.data"] == environment["machine.hosts"] == "1"
    assert environment.get("machine.XLA_FLAGS") == machine.get("XLA_FLAGS")
