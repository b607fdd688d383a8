"""Our side of `gpu.py`: the trainer's own steps and the engine, on JAX's first device. A second
argument is `compute.quant`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import gpu
import jax
import jax.numpy as jnp
import numpy as np

from selfevo_jax.evolve.tiny import random_model
from selfevo_jax.learn.batches import Batches
from selfevo_jax.learn.fit import row_cost
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.optimizer import optimizer
from selfevo_jax.learn.step import Frozen, Recipe, Steps
from selfevo_jax.models.config import Compute
from selfevo_jax.models.llama import init_params
from selfevo_jax.models.lora import LoraConfig, init_lora
from selfevo_jax.models.presets import preset
from selfevo_jax.models.quantize import quantize_base
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.sample.protocol import Request, SamplingParams
from selfevo_jax.text.render import TokenExample, TokenSpan
from selfevo_jax.text.tokenizer import load_tokenizer

SIZES = gpu.PRESETS[sys.argv[1]]
CONFIG, DTYPE = preset(SIZES.model), jnp.dtype(SIZES.dtype)
DEVICE = jax.local_devices()[0]
PARAMS = jax.jit(lambda key: init_params(CONFIG, key, DTYPE))(jax.random.key(0))
if sys.argv[2:]:
    PARAMS = quantize_base(PARAMS, *sys.argv[2:])


def timed(run: Callable[[], object]) -> float:
    """Seconds until what `run` gives is there."""
    clock = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - clock


def rates(_: str) -> None:
    """A large product, and a copy in memory (bytes read and written)."""
    side, count = SIZES.matmul, SIZES.copied // 4
    left, right = (jnp.ones((side, side), DTYPE) for _ in range(2))
    product, copy = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
    values = jnp.zeros(count, jnp.float32)
    jax.block_until_ready((product(left, right), copy(values)))
    gpu.answer(device=DEVICE.device_kind)
    while gpu.my_turn():
        matmul, copied = timed(lambda: product(left, right)), timed(lambda: copy(values))
        gpu.answer(matmul_flops=2 * side**3 / matmul, copy_bytes=8 * count / copied)


def train(objective: str) -> None:
    """Optimiser steps on packed rows, reference sums given."""
    rows = gpu.examples(SIZES, CONFIG.vocab_size, 2 if objective == "dpo" else 1)

    def span(ids: list[int], loss: bool) -> TokenSpan:
        return TokenSpan(np.array(ids, np.int32), np.full(len(ids), loss))

    data = [
        TokenExample(str(i), span(prompt, False), tuple(span(c, True) for c in completions))
        for i, (prompt, *completions) in enumerate(rows)
    ]
    remat = "full" if SIZES.dtype == "bfloat16" else "none"
    lora = LoraConfig(rank=gpu.RANK)
    trained = init_lora(CONFIG, lora, jax.random.key(0))
    recipe = Recipe(CONFIG, Objective(objective), lora, Compute(DTYPE, remat))
    steps = Steps(recipe, optimizer("adamw"),
                  make_mesh("1,1,1", [DEVICE]), trained)  # fmt: skip
    plan = Batches(data, batch_size=SIZES.rows, steps=1, seed=0, rows=SIZES.micro,
                   row_cost=row_cost)  # fmt: skip
    micros = [
        (micro, Frozen(*[np.zeros_like(micro.counts_bek)] * 2)) for micro in plan.micro_batches(0)
    ]
    state = steps.init(trained)

    def step() -> jax.Array:
        nonlocal trained, state
        grads, _ = steps.gradient(trained, PARAMS, micros, jax.random.key(0))
        trained, state, norm = steps.update(trained, state, grads, 1e-5)
        return norm

    for _ in range(2):  # what the second is given has been placed by the first: compiled again
        jax.block_until_ready(step())
    gpu.answer()
    while gpu.my_turn():
        gpu.answer(seconds=timed(step))


def generator(batch: int, length: int) -> Callable[[int, int], float]:
    """Seconds of (tokens of each prompt, new tokens), `batch` prompts at a time."""
    engine = JaxGenerator(
        CONFIG, PARAMS, load_tokenizer(random_model("random:tiny?seed=0")), slots=batch,
        max_length=length, compute=Compute(DTYPE), prompt_rows=min(batch, 8), steps=16,
    )  # fmt: skip
    rng = np.random.default_rng(1)

    def run(context: int, new: int) -> float:
        prompts = rng.integers(5, CONFIG.vocab_size, (batch, context)).tolist()
        sampling = SamplingParams(new, temperature=1.0)
        requests = [
            Request(str(i), (), sampling, seed=i, tokens=tuple(ids))
            for i, ids in enumerate(prompts)
        ]
        return timed(lambda: [done.tokens for done in engine.generate(requests)])

    return run


def prefill(_: str) -> None:
    """Reading prompts, and one token of each."""
    count, length = SIZES.read
    run = generator(count, length + 1)
    run(length, 1)
    gpu.answer()
    while gpu.my_turn():
        gpu.answer(seconds=run(length, 1))


def decode(batch: str) -> None:
    """A longer answer's seconds less those of a shorter one."""
    short, long = SIZES.steps
    run = generator(int(batch), SIZES.context + long)
    run(SIZES.context, long)
    gpu.answer()
    while gpu.my_turn():
        shorter = run(SIZES.context, short)
        gpu.answer(seconds=run(SIZES.context, long) - shorter)


if __name__ == "__main__":
    gpu.serve({
        "rates": rates, "sft": lambda _: train("sft"), "dpo": lambda _: train("dpo"),
        "prefill": prefill, "decode": decode,
    })  # fmt: skip
