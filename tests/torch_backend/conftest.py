"""A tiny random model in a folder, read by both backends."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from selfevo_jax.evolve.tiny import random_model  # noqa: E402
from selfevo_jax.models.config import Compute, ModelConfig  # noqa: E402
from selfevo_jax.models.llama import init_params  # noqa: E402
from selfevo_jax.text.render import TokenExample, TokenSpan  # noqa: E402
from selfevo_jax.text.tokenizer import load_tokenizer  # noqa: E402
from selfevo_jax.torch_backend.model import Decoder  # noqa: E402
from selfevo_jax.weights.model_files import open_model  # noqa: E402

TINY = ModelConfig(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, max_position=128, tie_embeddings=True,
)  # fmt: skip


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny matrices are not worth waking other threads for."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture(scope="session")
def tiny_params():
    return init_params(TINY, jax.random.key(1))


@pytest.fixture
def decoder(tiny_params):
    return Decoder.from_tree(TINY, tiny_params, Compute())


def span(tokens, loss):
    return TokenSpan(tokens.astype(np.int32), np.full(len(tokens), loss))


@pytest.fixture(scope="session")
def pairs():
    """12 pairs of random tokens and lengths."""
    rng = np.random.default_rng(5)

    def some(low, high):
        return rng.integers(1, TINY.vocab_size, rng.integers(low, high))

    return [
        TokenExample(
            f"pair{i}",
            span(some(2, 14), False),
            (span(some(1, 12), True), span(some(1, 12), True)),
        )
        for i in range(12)
    ]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """The files of a random model with a tokenizer of bytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFEVO_CACHE", str(tmp_path_factory.mktemp("cache")))
        return open_model(random_model("random:tiny?seed=0"))


@pytest.fixture(scope="session")
def tokenizer(folder):
    return load_tokenizer(folder.path)
