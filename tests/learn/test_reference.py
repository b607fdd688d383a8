"""Stored reference sums: found by policy and content, never used when either differs."""

import jax.numpy as jnp
import numpy as np

from selfevo_jax.learn.reference import ReferenceSums, adapter_hash
from selfevo_jax.models.lora import Adapter

NAMES = ["a" * 64, "b" * 64]
SUMS = np.array([[-1.5, -2.5], [-3.5, -4.5]], np.float32)


def test_sums_come_back_by_content(tmp_path):
    ReferenceSums(tmp_path, ("base", "none")).add(NAMES, SUMS)
    store = ReferenceSums(tmp_path, ("base", "none"))
    assert store.missing([*NAMES, "c" * 64]) == {"c" * 64}
    np.testing.assert_array_equal(store.table(NAMES[::-1]), SUMS[::-1])


def test_another_policy_finds_nothing(tmp_path):
    ReferenceSums(tmp_path, ("base", "none")).add(NAMES, SUMS)
    assert ReferenceSums(tmp_path, ("other", "none")).missing(NAMES) == set(NAMES)


def test_a_damaged_file_is_computed_again(tmp_path):
    ReferenceSums(tmp_path, ("base",)).add(NAMES, SUMS)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for damaged in (
        content[: len(content) // 2],
        b"",
        content.replace(b"\x00\x00\xc0\xbf", b"\x00\x00\xc1\xbf"),
    ):
        path.write_bytes(damaged)
        assert ReferenceSums(tmp_path, ("base",)).missing(NAMES) == set(NAMES)


def test_adapter_hash_sees_weights_and_scaling():
    tree = {"layers": {"attn": {"q_proj": {"a": jnp.ones((1, 2, 3))}}}}
    moved = {"layers": {"attn": {"k_proj": {"a": jnp.ones((1, 2, 3))}}}}
    adapters = [None, Adapter(tree, 1.0), Adapter(tree, 2.0), Adapter(moved, 1.0)]
    assert len({adapter_hash(a) for a in adapters}) == 4
