"""Attention of TPUs and NVIDIA cards against plain attention, on the CPU: values and gradients.

Splash attention runs interpreted; of cuDNN's, the same call on XLA, and its lowering for CUDA.
"""

import re
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused

from selfevo_jax.models import cudnn, splash
from selfevo_jax.models.attention import NO_WINDOW, Layout, attend, visible
from selfevo_jax.models.presets import preset
from selfevo_jax.parallel.mesh import AXES

LENGTH = 250  # not a multiple of the kernel's blocks


def packed_layout() -> Layout:
    """Two rows: two examples with a prompt and two completions each; one example, then padding."""
    positions, segments, branches = (np.zeros((2, LENGTH), np.int32) for _ in range(3))

    def put(row, start, segment, prompt, *completions):
        place = start
        for branch, size in enumerate((prompt, *completions)):
            first = prompt if branch else 0
            positions[row, place : place + size] = first + np.arange(size)
            segments[row, place : place + size] = segment
            branches[row, place : place + size] = branch
            place += size

    put(0, 0, 1, 50, 30, 41)
    put(0, 121, 2, 20, 60, 49)
    put(1, 0, 1, 70, 5, 37)  # the rest, more than a block, is padding
    return Layout(*map(jnp.asarray, (positions, segments, branches)))


def draw(head_dim: int, heads: int = 4, kv_heads: int = 2):
    keys = jax.random.split(jax.random.key(0), 4)
    query_btnh = jax.random.normal(keys[0], (2, LENGTH, heads, head_dim))
    key_bksh = jax.random.normal(keys[1], (2, kv_heads, LENGTH, head_dim))
    value_bksh = jax.random.normal(keys[2], (2, kv_heads, LENGTH, head_dim))
    return query_btnh, key_bksh, value_bksh, jax.random.normal(keys[3], query_btnh.shape)


@pytest.mark.parametrize(
    ("kernel", "off_its_platform", "head_dim", "window", "softcap"),
    [
        (splash.attend, {"interpret": True}, 100, NO_WINDOW, None),
        (splash.attend, {"interpret": True}, 64, 24, 5.0),
        (cudnn.attend, {"implementation": "xla"}, 64, NO_WINDOW, None),
        (cudnn.attend, {"implementation": "xla"}, 40, 24, None),
    ],
    ids=["splash", "splash, window and cap", "cudnn", "cudnn, window"],
)
def test_equals_plain_attention(kernel, off_its_platform, head_dim, window, softcap):
    layout = packed_layout()
    mask_bts = visible(layout, layout, window)
    *inputs, cotangent_btnh = draw(head_dim)
    seen_bt11 = (layout.segments_bt > 0)[:, :, None, None]

    def run(function, **options):
        def total(query, key, value):
            mixed = function(
                query, key, value, mask_bts, scale=head_dim**-0.5, softcap=softcap, **options
            )
            return jnp.sum(jnp.where(seen_bt11, mixed * cotangent_btnh, 0)), mixed

        (_, mixed), grads = jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(*inputs)
        assert all(jnp.isfinite(x).all() for x in (mixed, *grads))
        return jnp.where(seen_bt11, mixed, 0), *grads

    for ours, plain in zip(run(kernel, **off_its_platform), run(attend), strict=True):
        np.testing.assert_allclose(ours, plain, atol=2e-5, rtol=2e-5)


def test_a_part_of_the_queries():
    """As a chip of a sequence axis has them: the last third, which sees keys of the whole row."""
    layout = packed_layout()
    mask_bts = visible(layout, layout)[:1, 170:]
    query_btnh, key_bksh, value_bksh, _ = (x[:1] for x in draw(64))
    inputs = (query_btnh[:, 170:], key_bksh, value_bksh, mask_bts)
    ours = splash.attend_part(*inputs, scale=0.125, interpret=True)
    np.testing.assert_allclose(ours, attend(*inputs, scale=0.125), atol=2e-5, rtol=2e-5)


def test_the_mask_decides_what_is_seen():
    """A completion does not change when the other completion of its prompt does."""
    layout = packed_layout()
    query_btnh, key_bksh, value_bksh, _ = draw(64)
    mask_bts = visible(layout, layout)
    other = np.flatnonzero((layout.branches_bt[0] == 1) & (layout.segments_bt[0] == 1))
    mine = np.flatnonzero((layout.branches_bt[0] == 2) & (layout.segments_bt[0] == 1))
    run = jax.jit(lambda value: splash.attend(
        query_btnh, key_bksh, value, mask_bts, scale=0.125, interpret=True
    ))  # fmt: skip
    first, second = run(value_bksh), run(value_bksh.at[0, :, other].add(1.0))
    assert np.array_equal(first[0, mine], second[0, mine])
    assert not np.allclose(first[0, other], second[0, other])


def described(kind: str, platform: str):
    """As if the mesh in use were of one such chip, which is not here."""
    device = jax.sharding.AbstractDevice(kind, 1, platform)
    mesh = jax.sharding.AbstractMesh((1, 1, 1, 1), AXES, abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def test_only_tpus_are_served():
    assert not splash.serves(LENGTH, LENGTH)  # this machine's backend is the CPU
    with described("TPU v5 lite", "tpu"):
        assert splash.serves(LENGTH, LENGTH)
        assert not splash.serves(1, LENGTH)  # decoding
        assert not splash.serves(100, 100)  # shorter than a block


def test_cuda_runs_the_fused_kernel_forward_and_backward(monkeypatch):
    """What a card would be given: no product of ours, no scores of [heads, t, s]."""
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    layout = packed_layout()
    mask_bts = visible(layout, layout)
    inputs = [x.astype(jnp.bfloat16) for x in draw(64)[:3]]

    def total(*inputs):
        return jnp.sum(cudnn.attend(*inputs, mask_bts, scale=0.125).astype(jnp.float32))

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    text = gradient.trace(*inputs).lower(lowering_platforms=("cuda",)).as_text()
    assert set(re.findall(r"__cudnn\$fmha\w+", text)) == {
        "__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"
    }  # fmt: skip
    assert "dot_general" not in text


def test_cudnn_serves_what_its_kernel_has():
    config = preset("llama3_8b")
    assert not cudnn.serves(config, 2048, jnp.bfloat16)  # this machine's backend is the CPU
    with described("TPU v5 lite", "tpu"):
        assert not cudnn.serves(config, 2048, jnp.bfloat16)
    with described("AMD Instinct MI300X", "gpu"):  # a card, and none of NVIDIA's
        assert not cudnn.serves(config, 2048, jnp.bfloat16)
    with described("NVIDIA H200", "gpu"):
        assert cudnn.serves(config, 2048, jnp.bfloat16)
        assert not cudnn.serves(config, 2048, jnp.float32)
        assert not cudnn.serves(config, 127, jnp.bfloat16)
        assert not cudnn.serves(config, 1, jnp.bfloat16)
        assert not cudnn.serves(replace(config, attn_softcap=50.0), 2048, jnp.bfloat16)
        assert not cudnn.serves(replace(config, head_dim=256), 2048, jnp.bfloat16)


def test_a_card_older_than_the_kernel_is_not_served(monkeypatch):
    monkeypatch.setattr(cudnn, "platform", lambda: "gpu")
    for number, served in (("7.5", False), ("8.0", True), ("12.0", True)):
        card = SimpleNamespace(device_kind="a card", compute_capability=number)
        monkeypatch.setattr(jax, "local_devices", lambda card=card: [card])
        assert cudnn.serves(preset("llama3_8b"), 2048, jnp.bfloat16) == served
