"""A random model with one token per byte, and room for a judge's prompt; rules as judges."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest

from selfevo_jax.evolve.tiny import END, PAD, TEMPLATE, byte_tokenizer
from selfevo_jax.models.config import ModelConfig
from selfevo_jax.models.llama import init_params
from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.text.tokenizer import Tokenizer, load_tokenizer
from selfevo_jax.weights.model_files import save_model


@dataclass(frozen=True)
class ByteModel:
    """A tiny model in an ordinary folder."""

    folder: Path
    config: ModelConfig
    params: dict
    tokenizer: Tokenizer

    def generator(self, max_length: int = 2048) -> JaxGenerator:
        return JaxGenerator(
            self.config, self.params, self.tokenizer,
            slots=4, max_length=max_length, prompt_rows=4, chunk=64, steps=8,
        )  # fmt: skip


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory) -> ByteModel:
    folder = tmp_path_factory.mktemp("byte") / "model"
    inner = byte_tokenizer()
    config = ModelConfig(
        vocab_size=inner.get_vocab_size(), hidden_size=32, intermediate_size=48, num_layers=1,
        num_heads=2, num_kv_heads=1, head_dim=16, max_position=4096, tie_embeddings=True,
    )  # fmt: skip
    params = init_params(config, jax.random.key(3))

    def save(fresh: Path) -> None:
        inner.save(str(fresh / "tokenizer.json"))
        settings = {"chat_template": TEMPLATE, "eos_token": END, "pad_token": PAD}
        (fresh / "tokenizer_config.json").write_text(json.dumps(settings))

    save_model(folder, config, params, save_tokenizer=save)
    return ByteModel(folder, config, params, load_tokenizer(folder))


@pytest.fixture(scope="session")
def rules():
    """The module of rule judges beside this file."""
    spec = importlib.util.spec_from_file_location("rules", Path(__file__).parent / "rules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
