"""The real steps of training and sampling, lowered for chips that are not here.

A `Case` names a model, a step, a slice and sizes. `programs` gives the jitted functions that
`learn` and `sample` run, with shapes and shardings in place of arrays: nothing is allocated.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from selfevo_jax.errors import UserError
from selfevo_jax.learn.batches import MicroBatch
from selfevo_jax.learn.logps import DEFAULT_CHUNK
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.optimizer import optimizer
from selfevo_jax.learn.step import Frozen, Numbers, Recipe, train_programs
from selfevo_jax.models.cache import init_cache
from selfevo_jax.models.config import REMATS, Compute, ModelConfig
from selfevo_jax.models.llama import abstract_params, unstack_layers
from selfevo_jax.models.lora import LoraConfig, init_lora
from selfevo_jax.models.presets import preset
from selfevo_jax.models.quantize import KINDS, quantize_base
from selfevo_jax.parallel.mesh import BATCH_AXES, batch_sharding, make_mesh
from selfevo_jax.parallel.rules import one_layer, shardings
from selfevo_jax.parallel.topologies import Topology, devices, topology
from selfevo_jax.sample import device
from selfevo_jax.sample.select import Rules

TRAIN_STEPS = ("sft_lora", "dpo_lora", "sft_full")
STEPS = (*TRAIN_STEPS, "prefill", "decode")
DTYPES = {"bf16": jnp.bfloat16, "bfloat16": jnp.bfloat16, "float32": jnp.float32}
_SLOTS, _PROMPT_ROWS = 4, 8


@dataclass(frozen=True)
class Case:
    """One step of one model on one slice.

    batch   training: rows of a batch; prefill: prompts; decode: answers at a time (all chips)
    micro   training: rows of a micro-batch (`batch` must be a multiple of it)
    seq     training: tokens of a row; sampling: tokens of a prompt and its answer
    quant   the base in few bits, nf4, int8 or fp8 (`models.quantize`)
    chunk   prefill: tokens of a prompt that are read at a time
    """

    preset: str
    step: str
    topology: str
    mesh: str = "1,-1,1"
    batch: int = 64
    micro: int | None = None
    seq: int = 2048
    dtype: str = "bf16"
    quant: str | None = None
    remat: str = "full"
    rank: int = 16
    chunk: int = 256

    def __post_init__(self) -> None:
        preset(self.preset)  # an unknown name is an error
        _one_of("step", self.step, STEPS)
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("remat", self.remat, REMATS)
        if self.quant is not None:
            _one_of("quant", self.quant, KINDS)
            if self.step == "sft_full":
                raise UserError("a quantised base cannot be trained: use sft_lora, or drop quant")
        for name in ("batch", "seq", "rank", "chunk", "rows"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be positive")
        if self.batch % self.rows:
            raise UserError(f"batch {self.batch} is not a multiple of the micro-batch {self.rows}")

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        return preset(self.preset)

    @property
    def slice(self) -> Topology:
        """Where it runs."""
        return topology(self.topology)

    @property
    def rows(self) -> int:
        """Rows that are computed together."""
        return self.batch if self.micro is None else self.micro

    @property
    def compute(self) -> Compute:
        """How the model is computed."""
        return Compute(DTYPES[self.dtype], self.remat)

    @property
    def tokens(self) -> int:
        """Tokens that one step works on."""
        return self.batch * {"decode": 1, "prefill": self.chunk}.get(self.step, self.seq)

    def on_mesh(self) -> Mesh:
        """The slice's chips as a mesh. Raises `UserError` when the rows cannot be split over it."""
        mesh = make_mesh(self.mesh, devices(self.slice))
        split = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        if self.rows % split:
            raise UserError(
                f"{self.rows} rows cannot be split over data x fsdp = {split} groups of chips: "
                f"use a multiple of {split}, or another mesh"
            )
        sequence = mesh.shape["sequence"]
        if sequence > 1 and self.step not in TRAIN_STEPS:
            raise UserError(f"mesh {self.mesh}: only training splits rows over a sequence axis")
        if self.seq % sequence:
            raise UserError(f"rows of {self.seq} tokens have no {sequence} equal parts")
        return mesh


@dataclass(frozen=True)
class Program:
    """One jitted function as a step calls it.

    `lower` and `trace` are those of `jax.jit`, applied to its arguments; it runs `times` times
    a step. `beside` are bytes a chip that stay in HBM meanwhile without being its arguments.
    """

    name: str
    function: Any
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    times: float
    beside: float
    unknown_trips: float

    def lower(self) -> Any:
        """The program as JAX hands it to the compiler."""
        return self.function.lower(*self.arguments, **self.options)

    def trace(self) -> Any:
        """The program before lowering; `.jaxpr` lists its operations."""
        return self.function.trace(*self.arguments, **self.options)


def programs(case: Case, mesh: Mesh) -> list[Program]:
    """Everything that one step of this case runs. Call inside `jax.set_mesh(mesh)`."""
    build: dict[str, Callable[[Case, Mesh], list[Program]]] = {
        "prefill": _prefill, "decode": _decode
    }  # fmt: skip
    return build.get(case.step, _train)(case, mesh)


def parameters(case: Case, mesh: Mesh) -> dict[str, Any]:
    """What stays in HBM from step to step, by role: trees of shapes with shardings."""
    if case.step not in TRAIN_STEPS:
        return {"params": _serving_params(case, mesh), **_caches(case, mesh)}
    if case.step == "sft_full":
        trainable, frozen = _placed(abstract_params(case.config), mesh), {}
    else:
        lora = LoraConfig(rank=case.rank)
        shapes = jax.eval_shape(lambda: init_lora(case.config, lora, jax.random.key(0)))
        trainable, frozen = _placed(shapes, mesh), _placed(_base(case), mesh)
    state = _placed(jax.eval_shape(optimizer("adamw").init, trainable), mesh)
    return {"trainable": trainable, "frozen": frozen, "optimizer": state}


def chip_bytes(tree: Any) -> float:
    """Bytes that one chip holds of a tree of shapes with shardings."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _train(case: Case, mesh: Mesh) -> list[Program]:
    held = parameters(case, mesh)
    trainable, frozen, state = (held[role] for role in ("trainable", "frozen", "optimizer"))
    objective = Objective("dpo" if case.step == "dpo_lora" else "sft")
    lora = None if case.step == "sft_full" else LoraConfig(rank=case.rank)
    recipe = Recipe(case.config, objective, lora, case.compute)
    run = train_programs(recipe, optimizer("adamw"), mesh, trainable)
    completions = 2 if objective.pairs else 1
    micro, frozen_sums = _micro_batch(case, mesh, completions)
    whole = NamedSharding(mesh, P())
    terms = jax.eval_shape(run.denominators, micro.counts_bek)
    denominators = jax.ShapeDtypeStruct(terms.shape, terms.dtype, sharding=whole)
    key = _shape(mesh, P(), (), jax.eval_shape(lambda: jax.random.key(0)).dtype)
    number = _shape(mesh, P(), (), jnp.float32)
    numbers = Numbers(number, number)
    inputs = (trainable, trainable, frozen, (micro, frozen_sums), denominators, numbers, key)
    chunks = math.ceil(case.seq / mesh.shape["sequence"] / DEFAULT_CHUNK)
    count = case.batch / case.rows
    return [
        Program("accumulate", run.accumulate, inputs, {}, count, chip_bytes(state), chunks),
        Program(
            "update",
            run.update,
            (trainable, state, trainable, number),
            {},
            1,
            chip_bytes(frozen),
            1,
        ),
    ]


def _prefill(case: Case, mesh: Mesh) -> list[Program]:
    held = parameters(case, mesh)
    m, whole = case.batch, functools.partial(_shape, mesh, P())
    part = device.Part(
        rows_m=whole((m,)), tokens_mt=whole((m, case.chunk)), start_m=whole((m,)),
        count_m=whole((m,)), adapter_m=whole((m,)),
    )  # fmt: skip
    inputs = (held["params"], None, held["prompts"], part)
    length = held["prompts"].layout.segments_bt.shape[1]
    options = {"config": case.config, "compute": case.compute, "span": length}
    beside = chip_bytes(held["rows"])
    return [Program("read_chunk", device.read_chunk, inputs, options, 1, beside, 1)]


def _decode(case: Case, mesh: Mesh) -> list[Program]:
    held = parameters(case, mesh)
    b, whole = case.batch, functools.partial(_shape, mesh, P())
    real = functools.partial(whole, (b,), jnp.float32)
    rows = device.Rows(
        token_b=whole((b,)), position_b=whole((b,)), count_b=whole((b,)), limit_b=whole((b,)),
        live_b=whole((b,), jnp.bool_), stops_be=whole((b, 2)), seeds_b2=whole((b, 2), jnp.uint32),
        rules=Rules(real(), whole((b,)), real(), real()),
        penalty_b=real(), adapter_b=whole((b,)),
    )  # fmt: skip
    options = {"config": case.config, "compute": case.compute, "steps": 8}
    inputs = (held["params"], None, held["rows"], rows)
    # The loop over tokens counts once: figures are those of one token for every row.
    return [Program("decode", device.decode, inputs, options, 1, chip_bytes(held["prompts"]), 1)]


def _base(case: Case) -> dict:
    """The shapes of a frozen base."""
    params = abstract_params(case.config, case.compute.dtype)
    if case.quant is None:
        return params
    return jax.eval_shape(lambda tree: quantize_base(tree, case.quant), params)


def _placed(tree: Any, mesh: Mesh) -> Any:
    return _with_shardings(tree, shardings(tree, mesh))


def _with_shardings(tree: Any, places: Any) -> Any:
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        tree,
        places,
    )


def _shape(mesh: Mesh, spec: P, shape: tuple[int, ...], dtype=jnp.int32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))


def _micro_batch(case: Case, mesh: Mesh, completions: int) -> tuple[MicroBatch, Frozen]:
    """Full rows of which every token is a target: the most that a row can cost."""
    split = functools.partial(_shape, mesh, batch_sharding(mesh).spec)
    rows, counts = (case.rows, case.seq), (case.rows, _SLOTS, completions)
    lists = ("tokens", "positions", "segments", "branches")
    targets = ("predict_from", "targets", "sequences")
    micro = MicroBatch(
        **{f"{name}_bt": split(rows) for name in lists},
        **{f"{name}_bm": split(rows) for name in targets},
        weights_bm=split(rows, jnp.float32),
        examples_be=split(counts[:2]),
        counts_bek=split(counts, jnp.float32),
    )
    return micro, Frozen(split(counts, jnp.float32), split(counts, jnp.float32))


def _serving_params(case: Case, mesh: Mesh) -> dict:
    """As `JaxGenerator` holds them: layers apart, each placed like its share of the stack."""
    base = _base(case)
    apart = jax.eval_shape(unstack_layers, base)
    places = shardings(base, mesh)
    places["layers"] = (one_layer(places["layers"]),) * case.config.num_layers
    return _with_shardings(apart, places)


def _caches(case: Case, mesh: Mesh) -> dict[str, Any]:
    """Both caches of the sampling engine; the one this step does not work on has its usual size."""
    groups = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    usual = math.ceil(_PROMPT_ROWS / groups) * groups
    prompts = case.batch if case.step == "prefill" else usual
    return {"rows": _cache(case, mesh, case.batch), "prompts": _cache(case, mesh, prompts)}


def _cache(case: Case, mesh: Mesh, rows: int) -> Any:
    split = "tensor" if case.config.num_kv_heads % mesh.shape["tensor"] == 0 else None
    make = functools.partial(init_cache, case.config, rows, case.seq, case.compute.dtype)
    return jax.tree.map(
        lambda leaf: _shape(
            mesh, P(BATCH_AXES, split) if leaf.ndim == 4 else P(BATCH_AXES), leaf.shape, leaf.dtype
        ),
        jax.eval_shape(make),
    )


def _one_of(name: str, value: str, known: Any) -> None:
    if value not in known:
        raise UserError(f"{name} {value!r} is unknown: use one of {', '.join(known)}")
