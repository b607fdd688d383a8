"""Token choice against softmax, against transformers' logits warpers, and alone or in a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers.generation import logits_process as hf

from selfevo_jax.sample.select import Rules, next_tokens, row_keys

DRAWS = 20_000
_choose = jax.jit(next_tokens)


def rules(count, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> Rules:
    full = [np.full(count, value, np.float32) for value in (temperature, top_p, min_p)]
    return Rules(full[0], np.full(count, top_k, np.int32), full[1], full[2])


def keys(count, seed=0):
    seeds_b2 = np.zeros((count, 2), np.uint32)
    seeds_b2[:, 1] = seed
    return row_keys(jnp.asarray(seeds_b2), jnp.arange(count))


def warped(logits_v, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """Probabilities after transformers' warpers, in the order of its `generate`."""
    scores = torch.tensor(logits_v)[None]
    warpers = [hf.TemperatureLogitsWarper(float(temperature))]
    warpers += [hf.TopKLogitsWarper(top_k)] if top_k else []
    warpers += [hf.TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [hf.MinPLogitsWarper(min_p)] if min_p else []
    for warper in warpers:
        scores = warper(None, scores)
    return torch.softmax(scores.double(), -1)[0].numpy()


CASES = {
    "plain": dict(),
    "hot": dict(temperature=1.7),
    "cold": dict(temperature=0.3),
    "top_k": dict(temperature=0.8, top_k=7),
    "top_k_beyond_prefilter": dict(top_k=200),
    "top_p": dict(top_p=0.6),
    "top_p_tiny": dict(top_p=1e-6),
    "top_p_flat_beyond_prefilter": dict(temperature=4.0, top_p=0.95),
    "top_k_and_top_p": dict(top_k=20, top_p=0.7),
    "large_top_k_and_top_p": dict(temperature=4.0, top_k=300, top_p=0.8),
    "min_p": dict(min_p=0.1),
    "all": dict(temperature=1.3, top_k=40, top_p=0.9, min_p=0.05),
}


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_transformers_distribution(case):
    settings = CASES[case]
    logits_v = np.random.default_rng(3).normal(size=500).astype(np.float32) * 2
    expected = warped(logits_v, **settings)
    logits_bv = jnp.broadcast_to(logits_v, (DRAWS, 500))
    tokens, _ = _choose(logits_bv, rules(DRAWS, **settings), keys(DRAWS))
    counts = np.bincount(np.asarray(tokens), minlength=500)
    assert counts[expected == 0].sum() == 0, "a token was drawn that transformers cuts away"
    if (expected > 0).sum() == 1:
        assert counts[expected > 0] == DRAWS
        return
    often = expected * DRAWS >= 5
    seen, wanted = counts[often], expected[often] * DRAWS
    if not often.all():
        seen = np.append(seen, counts[~often].sum())
        wanted = np.append(wanted, expected[~often].sum() * DRAWS)
    keep = wanted > 0
    assert chisquare(seen[keep], wanted[keep] * seen.sum() / wanted.sum()).pvalue > 1e-3


def test_every_kept_token_can_be_drawn():
    """Of a flat row, exactly the tokens that transformers keeps come up."""
    logits_v = np.linspace(0, 0.4, 300).astype(np.float32)
    for settings in (dict(top_k=150), dict(top_p=0.5), dict(top_k=250, top_p=0.7)):
        expected = warped(logits_v, **settings) > 0
        logits_bv = jnp.broadcast_to(logits_v, (DRAWS, 300))
        tokens, _ = _choose(logits_bv, rules(DRAWS, **settings), keys(DRAWS))
        assert set(np.asarray(tokens)) == set(np.flatnonzero(expected)), settings


def test_logps_are_untempered_log_softmax_and_greedy_is_argmax():
    logits_bv = np.random.default_rng(0).normal(size=(64, 700)).astype(np.float32) * 3
    exact = torch.log_softmax(torch.tensor(logits_bv).double(), -1).numpy()
    for settings in (dict(temperature=0.0), dict(temperature=0.5, top_k=9, min_p=0.01)):
        tokens, logps = map(np.asarray, _choose(logits_bv, rules(64, **settings), keys(64)))
        np.testing.assert_allclose(logps, exact[np.arange(64), tokens], atol=1e-5)
        if settings["temperature"] == 0:
            np.testing.assert_array_equal(tokens, logits_bv.argmax(-1))


def test_a_row_does_not_feel_its_neighbours():
    """The same row beside flat rows that need the bisection, and beside greedy ones."""
    rng = np.random.default_rng(5)
    logits_bv = rng.normal(size=(8, 400)).astype(np.float32) * 3
    own = rules(8, temperature=0.9, top_k=30, top_p=0.8)
    tokens, logps = _choose(logits_bv, own, keys(8))
    for other in (dict(temperature=8.0, top_p=0.99), dict(temperature=0.0), dict()):
        mixed_bv, mixed = logits_bv.copy(), jax.tree.map(np.copy, own)
        mixed_bv[1::2] = rng.normal(size=(4, 400))
        for field, value in rules(4, **other).__dict__.items():
            getattr(mixed, field)[1::2] = value
        again, again_logps = _choose(mixed_bv, mixed, keys(8))
        np.testing.assert_array_equal(tokens[::2], again[::2])
        np.testing.assert_array_equal(logps[::2], again_logps[::2])


def test_seeds_and_token_index_change_the_draw():
    logits_bv = jnp.zeros((1, 5000))
    words = [(0, 0), (0, 1), (1, 0), (2**32 - 1, 7)]
    drawn = {
        int(
            _choose(logits_bv, rules(1), row_keys(jnp.array([word], jnp.uint32), jnp.array([i])))[
                0
            ][0]
        )
        for word in words
        for i in range(3)
    }
    assert len(drawn) == 12
