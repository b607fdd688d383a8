"""The real SmolLM2 against transformers on the same float32 weights, over 20 real texts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from selfevo_jax.models.attention import Layout
from selfevo_jax.models.llama import forward, logits
from selfevo_jax.weights import gguf_io

TEXTS = 20
MAX_TOKENS = 96


@pytest.fixture(scope="module")
def rows(smollm2, smollm2_reference, shared_data, torch_logits):
    """Per text of GSM8K: tokens [1, t] and the reference's logits [1, t, v]."""
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [" ".join(map(str, json.loads(line).values())) for line in lines[:TEXTS]]
    metadata = gguf_io.read_metadata(smollm2.path)
    vocab = {token: index for index, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    digits, split = pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, split])
    tokens = [np.array([tokenizer.encode(text).ids[:MAX_TOKENS]]) for text in texts]
    assert len(tokens) == TEXTS and min(row.shape[1] for row in tokens) > 20
    return [(row, torch_logits(smollm2_reference, row)) for row in tokens]


@pytest.fixture(scope="module")
def compute(smollm2):
    """(params, tokens [1, t]) -> logits [1, t, v], compiled once for all lengths."""
    layout = Layout.plain(jnp.ones((1, MAX_TOKENS), bool))

    @jax.jit
    def run(params, tokens_bt):
        hidden_btd = forward(smollm2.config, params, tokens_bt, layout)
        return logits(smollm2.config, params, hidden_btd)

    def padded(params, tokens_1t):
        size = tokens_1t.shape[1]  # what stands behind a text cannot reach it
        filled = np.pad(tokens_1t, ((0, 0), (0, MAX_TOKENS - size)))
        return np.asarray(run(params, filled))[:, :size]

    return padded


def nll(logits_tv, tokens_t):
    """Mean negative log-likelihood of the text in nats."""
    shifted = logits_tv[:-1] - logits_tv[:-1].max(-1, keepdims=True)
    logps = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.take_along_axis(logps, tokens_t[1:, None], 1).mean()


def test_logits_equal_transformers_on_real_texts(smollm2, rows, compute):
    params = smollm2.load()
    losses = []
    for tokens_1t, expected_1tv in rows:
        got_1tv = compute(params, tokens_1t)
        assert np.abs(got_1tv - expected_1tv).max() < 2e-3
        np.testing.assert_array_equal(got_1tv.argmax(-1), expected_1tv.argmax(-1))
        losses.append(nll(got_1tv[0], tokens_1t[0]))
    assert np.exp(np.mean(losses)) < 30  # real language, not merely agreement


def test_forgetting_the_permutation_is_seen(smollm2, rows, compute, monkeypatch):
    """The silent mistake: q and k left in interleaved order read far worse."""
    monkeypatch.setattr(gguf_io, "half_split_rows", lambda rows, heads: np.arange(rows))
    tokens_1t, expected_1tv = rows[0]
    got_1tv = compute(smollm2.load(), tokens_1t)
    assert np.abs(got_1tv - expected_1tv).max() > 1
    assert nll(got_1tv[0], tokens_1t[0]) > nll(expected_1tv[0], tokens_1t[0]) + 1
