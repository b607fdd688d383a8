"""A base that bitsandbytes packs in 4 bits, against the one that JAX packs."""

import sys
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch

from selfevo_jax.errors import UserError
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.protocol import FitSettings
from selfevo_jax.learn.trainer import JaxTrainer
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.llama import init_params
from selfevo_jax.models.lora import LoraConfig
from selfevo_jax.models.quantize import quantize_base
from selfevo_jax.torch_backend.model import Decoder
from selfevo_jax.torch_backend.trainer import TorchTrainer

pytest.importorskip(
    "bitsandbytes", reason="bitsandbytes is not installed: pip install 'selfevo_jax[nf4]'"
)
SETTINGS = FitSettings(steps=20, batch_size=2, lr=1e-2, lora=LoraConfig(rank=4))


@pytest.fixture(scope="module")
def base(tiny) -> tuple[ModelConfig, dict]:
    """A model whose kernels have whole blocks of 64 inputs."""
    config = replace(tiny, hidden_size=64, intermediate_size=128, head_dim=16)
    return config, init_params(config, jax.random.key(2))


def test_twenty_steps_on_a_packed_base_are_those_of_jax(base, pairs, tmp_path):
    config, params = base
    decoder = Decoder.from_tree(config, params, Compute(), quant="nf4")
    layer = decoder.module.model.layers[1]
    assert layer.mlp.down_proj.weight.dtype == torch.uint8
    assert decoder.module.model.embed_tokens.weight.dtype == torch.float32
    found = TorchTrainer(decoder, base_hash="tiny").fit(
        pairs, Objective("dpo"), SETTINGS, tmp_path / "torch"
    )
    wanted = JaxTrainer(config, quantize_base(params, "nf4"), base_hash="tiny").fit(
        pairs, Objective("dpo"), SETTINGS, tmp_path / "jax"
    )
    losses = ([row["loss"] for row in fit.metrics] for fit in (found, wanted))
    np.testing.assert_allclose(*losses, atol=1e-4)
    assert found.metrics[-1]["loss"] < 0.6
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted.trained):
        mine = dict(jax.tree_util.tree_leaves_with_path(found.trained))[path]
        np.testing.assert_allclose(mine, leaf, atol=1e-3, err_msg=str(path))


def test_without_bitsandbytes_the_command_that_installs_it_is_named(base, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install 'selfevo_jax\[torch,nf4\]'"):
        Decoder.from_tree(*base, Compute(), quant="nf4")


def test_packed_kernels_are_not_trained(base, pairs, tmp_path):
    decoder = Decoder.from_tree(*base, Compute(), quant="nf4")
    with pytest.raises(UserError, match="stored as nf4"):
        TorchTrainer(decoder, base_hash="tiny").fit(
            pairs, Objective("sft"), replace(SETTINGS, lora=None), tmp_path
        )
