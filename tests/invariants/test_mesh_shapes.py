"""Loss and gradient of every family on eight devices, however they are split: as on one device."""

import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import PartitionSpec as P

from selfevo_jax.aot.hlo import traffic
from selfevo_jax.learn.batches import Batches
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.optimizer import optimizer
from selfevo_jax.learn.step import Frozen, Recipe, Steps
from selfevo_jax.models import context, decode_attention, splash
from selfevo_jax.models.attention import NO_WINDOW, Layout, attend, visible
from selfevo_jax.models.cache import init_cache
from selfevo_jax.models.llama import forward_cached, init_params
from selfevo_jax.models.lora import LoraConfig, init_lora
from selfevo_jax.models.presets import preset
from selfevo_jax.models.quantize import quantize_base
from selfevo_jax.parallel.mesh import BATCH_AXES, local_mesh, make_mesh
from selfevo_jax.parallel.rules import path_name, same_shares, shardings
from selfevo_jax.text.render import TokenExample, TokenSpan

FEW = ("2,2,2", "1,2,1,4")
MESHES = (*FEW, "1,8,1", "1,4,2", "1,2,4", "1,1,8", "8,1,1", "1,1,1,8", "2,1,2,2", "1,1,2,4")
FAMILIES = {"llama": "llama31_8b", "mistral": "mistral_7b", "qwen2": "qwen25_0b5",
            "gemma2": "gemma2_9b"}  # fmt: skip
LORA = LoraConfig(rank=4)
ROWS = 8


def small(family):
    """A published model with its peculiarities and few numbers; `tensor` 8 splits its kv heads."""
    config = preset(FAMILIES[family])
    return dataclasses.replace(
        config, vocab_size=96, hidden_size=32, intermediate_size=64, num_layers=2, num_heads=8,
        num_kv_heads=2, head_dim=8, max_position=128, window=config.window and 7,
    )  # fmt: skip


def pairs():
    rng = np.random.default_rng(3)

    def span(low, high, loss):
        tokens = rng.integers(1, 96, rng.integers(low, high)).astype(np.int32)
        return TokenSpan(tokens, np.full(len(tokens), loss))

    return [
        TokenExample(f"p{i}", span(9, 24, False), (span(3, 15, True), span(3, 15, True)))
        for i in range(16)
    ]


def some_noise(leaf):
    """Not zero, as a fresh `b` is; small, so that no loss saturates and magnifies rounding."""
    return leaf + 0.02 * np.random.default_rng(leaf.size).normal(size=leaf.shape).astype("f4")


def loss_and_gradient(config, mesh, params, lora):
    """A whole batch of DPO with an SFT term; `lora` None trains all parameters."""
    objective = Objective("dpo", beta=0.1, sft_weight=0.5)
    params = jax.device_put(params, shardings(params, mesh))
    tree = params
    if lora is not None:
        tree = jax.tree.map(some_noise, init_lora(config, lora, jax.random.key(2)))
        tree = jax.device_put(tree, shardings(tree, mesh))
    steps = Steps(
        Recipe(config, objective, lora),
        optimizer("adamw"), mesh, tree,
    )  # fmt: skip
    plan = Batches(pairs(), batch_size=16, steps=1, seed=0, rows=ROWS, row_length=64)
    micros = [
        (micro, Frozen(np.float32(-4.5) * micro.counts_bek, np.zeros_like(micro.counts_bek)))
        for micro in plan.micro_batches(0)
    ]
    frozen = {} if lora is None else params
    grads, sums = steps.gradient(tree, frozen, micros, jax.random.key(0))
    leaves = jax.tree_util.tree_flatten_with_path(jax.device_get(grads))[0]
    return float(sums["loss"]), {path_name(path): leaf for path, leaf in leaves}


eight_devices = pytest.mark.skipif(
    jax.device_count() < 8, reason="started by the tests below with eight devices"
)


@eight_devices
@pytest.mark.parametrize("shapes", [FEW, MESHES], ids=["few", "all"])
@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_on_eight_devices(family, lora, shapes):
    config = small(family)
    params = init_params(config, jax.random.key(1))
    one = make_mesh("1,1,1", jax.devices()[:1])
    loss, gradient = loss_and_gradient(config, one, params, lora)
    largest = max(np.abs(leaf).max() for leaf in gradient.values())
    assert largest > 1e-2  # the comparison is not one of near-zeros
    for shape in shapes:
        found, leaves = loss_and_gradient(config, make_mesh(shape), params, lora)
        assert found == pytest.approx(loss, abs=1e-5), shape
        for name, leaf in gradient.items():
            message = f"{shape} {name}"
            np.testing.assert_allclose(leaves[name], leaf, atol=1e-5, err_msg=message)


@eight_devices
def test_8_bit_floats_on_eight_devices():
    """A row's scale is that of the whole row, however it is split. (Sums in another order may send
    a value to the other side of a rounding: gradients moved by up to 6e-6.)"""
    config = small("llama")
    params = init_params(config, jax.random.key(1))
    stored = quantize_base(params, "fp8")
    one = make_mesh("1,1,1", jax.devices()[:1])
    loss, gradient = loss_and_gradient(config, one, stored, LORA)
    for shape in FEW:
        mesh = make_mesh(shape)
        made = quantize_base(jax.device_put(params, shardings(params, mesh)), "fp8")
        for name, leaf in flatten_dict(jax.device_get(made["layers"])).items():
            jax.tree.map(np.testing.assert_array_equal, leaf, flatten_dict(stored["layers"])[name])
        for leaf, where in zip(
            jax.tree.leaves(made), jax.tree.leaves(shardings(stored, mesh)), strict=True
        ):
            assert leaf.sharding.is_equivalent_to(where, leaf.ndim), (shape, leaf.shape)
        found, leaves = loss_and_gradient(config, mesh, made, LORA)
        assert found == pytest.approx(loss, abs=1e-5), shape
        for name, leaf in gradient.items():
            np.testing.assert_allclose(leaves[name], leaf, atol=5e-5, err_msg=f"{shape} {name}")


@eight_devices
def test_sampling_takes_over_what_training_holds():
    """Under the sampling mesh of a mesh with a sequence axis, every chip has the same share."""
    training = make_mesh("1,2,2,2")
    params = init_params(small("gemma2"), jax.random.key(1))
    ours = jax.device_put(params, shardings(params, local_mesh(training)))
    again = same_shares(ours, training)
    kernel = again["layers"]["attn"]["q_proj"]["kernel"]
    assert (
        kernel.sharding.mesh == training
        and kernel.addressable_shards[0].data.size * 8 == kernel.size
    )
    for mine, whole in zip(jax.tree.leaves(again), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(mine, whole)
    for mine, before in zip(jax.tree.leaves(again), jax.tree.leaves(ours), strict=True):
        assert addresses(mine) == addresses(before)


def packed_rows(count, length):
    """Rows of two prompts with two completions each, and padding; no two rows alike."""
    rng = np.random.default_rng(5)
    places = np.zeros((3, count, length), np.int32)  # positions, segments, branches
    for row in range(count):
        column = 0
        for segment in (1, 2):
            prompt, *completions = rng.integers(20, 45, 3)
            for branch, size in enumerate((prompt, *completions)):
                first = prompt if branch else 0
                inside = slice(column, column + size)
                places[0, row, inside] = first + np.arange(size)
                places[1:, row, inside] = [[segment], [branch]]
                column += size
    return Layout(*map(jax.numpy.asarray, places))


@eight_devices
@pytest.mark.parametrize("window", [NO_WINDOW, 24])
def test_splash_on_every_chip(window):
    """In `shard_map`, each chip with its rows, heads and queries: values and gradients."""
    layout, length = packed_rows(4, 256), 256
    mask_bts = visible(layout, layout, window)
    used_bt11 = (layout.segments_bt > 0)[:, :, None, None]
    draw = np.random.default_rng(6).normal
    inputs = [draw(size=size).astype("f4") for size in (
        (4, length, 4, 64), (4, 2, length, 64), (4, 2, length, 64)
    )]  # fmt: skip

    def run(function):
        def total(*inputs):
            mixed = jax.numpy.where(used_bt11, function(*inputs, mask_bts, scale=0.125), 0)
            return (mixed**2).sum(), mixed

        (_, mixed), slopes = jax.jit(jax.value_and_grad(total, (0, 1, 2), has_aux=True))(*inputs)
        return mixed, *slopes

    plain = run(attend)
    for shape in FEW:
        with jax.set_mesh(make_mesh(shape)):
            split = run(functools.partial(splash.attend, interpret=True))
        for ours, theirs in zip(split, plain, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5, err_msg=shape)


@eight_devices
def test_decode_attention_on_every_chip():
    """In `shard_map`, each chip with its rows and heads, or all heads where these are too few."""
    draw = np.random.default_rng(7).normal
    query_b1nh, key_b1kh, value_b1kh = (draw(size=(8, 1, n, 16)).astype("f4") for n in (4, 2, 2))
    kept = draw(size=(8, 2, 16, 256)).astype("f4"), draw(size=(8, 2, 256, 16)).astype("f4")
    slots_b1 = np.random.default_rng(8).integers(0, 256, (8, 1)).astype("i4")
    mask_b1s = (np.arange(256) <= slots_b1)[:, None]
    inputs = (query_b1nh, kept, slots_b1, key_b1kh, value_b1kh, mask_b1s)
    run = jax.jit(functools.partial(decode_attention.attend, scale=0.25, interpret=True))
    plain = run(*inputs)
    for shape in ("1,4,2", "2,1,4", "2,2,2"):
        with jax.set_mesh(make_mesh(shape)):
            split = run(*inputs)
        for ours, theirs in zip(jax.tree.leaves(split), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-6, err_msg=shape)


@eight_devices
def test_one_token_leaves_the_weights_where_they_are(monkeypatch):
    """Off a CPU activations are exchanged in the place of weights: the same values, less moved."""
    config = small("gemma2")
    params = init_params(config, jax.random.key(4))
    tokens_b1 = np.random.default_rng(9).integers(1, 96, (8, 1))
    slots_b1 = np.full((8, 1), 3, np.int32)
    layout = Layout(slots_b1, np.ones_like(slots_b1), np.zeros_like(slots_b1))
    cache = jax.tree.map(some_noise, init_cache(config, 8, 16))
    cache = cache.replace(layout=Layout.plain(np.arange(16) < np.full((8, 1), 3)))
    mesh, sent, hidden = make_mesh("1,4,2"), {}, {}
    for platform in ("cpu", "cuda"):
        monkeypatch.setattr(context, "platform", lambda name=platform: name)
        step = jax.jit(lambda params, cache: forward_cached(
            config, params, tokens_b1, layout, cache, slots_b1
        )[0])  # fmt: skip
        with jax.set_mesh(mesh):
            rows = jax.device_put(cache, jax.NamedSharding(mesh, P(BATCH_AXES)))
            compiled = step.lower(jax.device_put(params, shardings(params, mesh)), rows).compile()
            hidden[platform] = compiled(jax.device_put(params, shardings(params, mesh)), rows)
        sent[platform] = traffic(compiled.as_text()).collective_bytes
    np.testing.assert_allclose(hidden["cuda"], hidden["cpu"], atol=1e-5)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params["layers"]))
    assert sent["cpu"] > 3 / 8 * weights > 2 * sent["cuda"]


def addresses(array):
    return {shard.device: shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}


def on_eight_devices(root, *tests):
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    names = [f"{Path(__file__)}::{test}" for test in tests]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *names],
        cwd=root, env=os.environ | {"XLA_FLAGS": flags}, capture_output=True, text=True,
    )  # fmt: skip
    wanted = f"{len(tests)} passed"
    assert done.returncode == 0 and wanted in done.stdout, done.stdout + done.stderr


def test_mesh_shapes_agree(request):
    """The family with the most peculiarities, LoRA, every axis once; the rest is slow."""
    on_eight_devices(
        request.config.rootpath,
        "test_on_eight_devices[gemma2-lora-few]",
        "test_sampling_takes_over_what_training_holds",
        "test_splash_on_every_chip[24]",
        "test_decode_attention_on_every_chip",
        "test_one_token_leaves_the_weights_where_they_are",
        "test_8_bit_floats_on_eight_devices",
    )


@pytest.mark.slow
def test_splash_without_a_window(request):
    on_eight_devices(request.config.rootpath, f"test_splash_on_every_chip[{NO_WINDOW}]")


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_mesh_shapes_agree_for_every_family(request, family, lora):
    on_eight_devices(request.config.rootpath, f"test_on_eight_devices[{family}-{lora}-all]")
