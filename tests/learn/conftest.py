"""A tiny decoder and token examples without any text."""

import jax
import numpy as np
import pytest

from selfevo_jax.models.config import ModelConfig
from selfevo_jax.models.llama import init_params
from selfevo_jax.text.render import TokenExample, TokenSpan

TINY = ModelConfig(
    vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=8, max_position=128, tie_embeddings=True,
)  # fmt: skip


def span(tokens, loss):
    tokens = np.asarray(tokens, np.int32)
    return TokenSpan(tokens, np.broadcast_to(np.asarray(loss, np.bool_), tokens.shape).copy())


def example(id, prompt, *completions):
    """A `TokenExample` with loss on its completions alone."""
    return TokenExample(id, span(prompt, False), tuple(span(c, True) for c in completions))


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture(scope="session")
def tiny_params():
    return init_params(TINY, jax.random.key(1))


@pytest.fixture(scope="session")
def make_example():
    return example


@pytest.fixture(scope="session")
def make_span():
    return span


@pytest.fixture(scope="session")
def pairs():
    """12 pairs of random tokens and lengths."""
    rng = np.random.default_rng(5)

    def some(low, high):
        return rng.integers(1, TINY.vocab_size, rng.integers(low, high))

    return [example(f"pair{i}", some(2, 14), some(1, 12), some(1, 12)) for i in range(12)]
