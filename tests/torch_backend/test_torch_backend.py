"""The torch backend of a run against the JAX one: same hashes, embeddings, token statistics."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from selfevo_jax.config import load_config
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.backend import Backend, JaxBackend
from selfevo_jax.evolve.policy import Policy
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.training import Fitting, training_of
from selfevo_jax.records import Pair, Prompt, Sample
from selfevo_jax.sample.protocol import Request, SamplingParams
from selfevo_jax.torch_backend.backend import TorchBackend

CONFIG = f"{Path(__file__).parents[2] / 'configs' / 'quickstart.py'}:tiny"
ASKED = ({"role": "user", "content": "2 + 2"},)


@pytest.fixture
def backends(tmp_path, monkeypatch) -> list[Backend]:
    monkeypatch.setenv("SELFEVO_CACHE", str(tmp_path))
    progress = Progress(Console(file=io.StringIO()))
    return [kind(load_config(CONFIG, []), progress) for kind in (JaxBackend, TorchBackend)]


def test_a_run_sees_the_same_model(backends):
    policy = Policy("base", None)
    one, other = backends
    assert one.hash == other.hash and one.trainer_version != other.trainer_version
    texts = ["a duck", "another, longer text about ducks", ""]
    np.testing.assert_allclose(*(b.embedder(policy)(texts) for b in backends), atol=1e-5)
    prompt = Prompt.make(task="sums", messages=ASKED, answer="4")
    sample = Sample.make(
        prompt_id=prompt.id, parent_id=prompt.id, text="it is four", tokens=(), logps=(),
        finish="stop", seed=0, policy="base",
    )  # fmt: skip
    (wanted,), (found,) = (b.weigher(policy)([(sample, prompt)]) for b in backends)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, atol=1e-4, err_msg=name)
    cut = Sample.from_json(sample.to_json() | {"finish": "length"})
    for backend in backends:
        (short,) = backend.weigher(policy)([(cut, prompt)])
        for name, values in wanted.items():  # no end where the reply had none
            np.testing.assert_allclose(short[name], values[:-1], atol=1e-4, err_msg=name)


def test_what_is_there_twice_is_learned_once(backends, tmp_path):
    """Samples may say the same; ids are of contents."""
    pair = Pair.make(
        prompt_id="p", chosen_id="c", rejected_id="r", prompt=ASKED, chosen="4", rejected="5"
    )
    other = Pair.make(
        prompt_id="p", chosen_id="d", rejected_id="r", prompt=ASKED, chosen="four", rejected="5"
    )
    base = Policy("base", None)
    for number, backend in enumerate(backends):
        training = training_of(load_config(CONFIG, []))
        fitting = Fitting(training, base, base, tmp_path / str(number), tmp_path / "store")
        assert backend.fit([pair, other, pair], fitting, lambda *_: None)["examples"] == 2


def test_a_trained_adapter_speaks_in_both(backends, tmp_path):
    jax_backend, torch_backend = backends
    base = Policy("base", None)
    pairs = [
        Pair.make(
            prompt_id="p",
            chosen_id=f"c{i}",
            rejected_id="r",
            prompt=ASKED,
            chosen="4" * (i + 1),
            rejected="5",
        )
        for i in range(4)
    ]
    training = training_of(torch_backend.config, learn={"lr": 0.02})
    assert torch_backend.train_settings(training) != jax_backend.train_settings(training)
    said = []
    fitting = Fitting(training, base, base, tmp_path / "fit", tmp_path / "reference")
    counts = torch_backend.fit(pairs, fitting, lambda step, text: said.append(text))
    assert counts["examples"] == 4 and len(said) == counts["steps"]
    trained = Policy("trained", None, tmp_path / "fit" / "adapter")
    requests = [Request("r", ASKED, SamplingParams(8, temperature=0.0))]
    wanted, found = (next(iter(b.generator(trained).generate(requests))) for b in backends)
    plain = next(iter(torch_backend.generator(base).generate(requests)))
    assert found.tokens == wanted.tokens
    np.testing.assert_allclose(found.logps, wanted.logps, atol=1e-4)
    assert plain.logps != found.logps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["compute.quant=int8"], "compute.quant=int8.*use nf4"),
        (["compute.quant=fp8"], "compute.quant=fp8.*use nf4"),
        (["compute.quant=nf4", "torch.deepspeed=zero3"], "torch.deepspeed=zero2"),
    ],
)
def test_what_cannot_be_packed_is_said(settings, message):
    pytest.importorskip("deepspeed", reason="deepspeed is not installed")
    progress = Progress(Console(file=io.StringIO()))
    with pytest.raises(UserError, match=message):
        TorchBackend(load_config(CONFIG, settings), progress)
