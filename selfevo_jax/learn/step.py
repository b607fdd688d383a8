"""The jitted functions of a fit, over a mesh.

    reference_sums   log-prob sums of a micro-batch, no gradient
    accumulate       adds a micro-batch's share of the batch's loss, gradient and metrics
    evaluate         a batch's loss and metrics, no gradient and no dropout
    kl               KTO's estimate of the KL, from mismatched completions of the whole batch
    update           one optimiser step from the accumulated gradient

What is trained is one tree, what is frozen another: a LoRA tree beside the base, or the whole
parameters beside nothing. Each micro-batch is divided by the denominators of its whole batch,
so the sum over micro-batches (and over hosts) is exact.

Fits that differ in their data, learning rate or beta alone share their compiled functions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from selfevo_jax.learn.batches import MicroBatch
from selfevo_jax.learn.logps import DEFAULT_CHUNK, sequence_sums
from selfevo_jax.learn.losses import Objective, Sequences, loss_terms, metric_sums
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.lora import Adapter, LoraConfig, adapter
from selfevo_jax.parallel.mesh import batch_sharding
from selfevo_jax.parallel.rules import shardings


@dataclass(frozen=True)
class Recipe:
    """What a step computes. `lora` None trains all parameters."""

    config: ModelConfig
    objective: Objective
    lora: LoraConfig | None
    compute: Compute = Compute()
    chunk: int = DEFAULT_CHUNK

    def assemble(self, trainable: Any, frozen: Any) -> tuple[dict, Adapter | None]:
        """(parameters, adapter) for the model."""
        if self.lora is None:
            return trainable, None
        return frozen, adapter(trainable, self.lora, train=True)


@flax.struct.dataclass
class Frozen:
    """Log-prob sums [b, e, k] of the frozen policies; zeros where the objective uses none."""

    reference_bek: np.ndarray
    anchor_bek: np.ndarray


@flax.struct.dataclass
class Numbers:
    """What enters the loss beside data, and may change without compiling anew: KTO's estimate of
    the KL, and the objective's beta (float32 scalars)."""

    kl: np.ndarray
    beta: np.ndarray


@dataclass(frozen=True)
class Programs:
    """The jitted functions of one recipe, optimiser, mesh and placement of the trainable tree."""

    init: Callable
    zeros: Callable
    sums: Callable
    denominators: Callable
    accumulate: Callable
    measure: Callable
    update: Callable


def train_programs(
    recipe: Recipe, optimizer: optax.GradientTransformationExtraArgs, mesh: Mesh, like: Any
) -> Programs:
    """The same programs for equal arguments. `like`: the trainable tree (arrays or shapes), for
    the placement of its gradient; the objective's beta is an argument of the programs."""
    leaves, tree = jax.tree.flatten(like)
    shapes = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    any_beta = dataclasses.replace(
        recipe, objective=dataclasses.replace(recipe.objective, beta=1.0)
    )
    return _programs(any_beta, optimizer, mesh, tree, shapes)


@functools.lru_cache(maxsize=8)  # a fit needs one; what is compiled is held
def _programs(recipe, optimizer, mesh, tree, shapes) -> Programs:
    like = jax.tree.unflatten(tree, shapes)
    whole, placed = NamedSharding(mesh, P()), shardings(like, mesh)
    state = shardings(jax.eval_shape(optimizer.init, like), mesh)
    return Programs(
        init=jax.jit(optimizer.init, out_shardings=state),
        zeros=jax.jit(functools.partial(jax.tree.map, jnp.zeros_like), out_shardings=placed),
        sums=jax.jit(functools.partial(_sums, recipe), out_shardings=whole),
        denominators=jax.jit(
            functools.partial(_denominators, recipe.objective), out_shardings=whole
        ),
        accumulate=jax.jit(
            functools.partial(_accumulate, recipe), donate_argnums=0, out_shardings=(placed, whole)
        ),
        measure=jax.jit(functools.partial(_measure, recipe), out_shardings=whole),
        update=jax.jit(
            functools.partial(_update, optimizer),
            donate_argnums=(0, 1),
            out_shardings=(placed, state, whole),
        ),
    )


class Steps:
    """The steps of one fit on one mesh; arguments as of `train_programs`."""

    def __init__(
        self,
        recipe: Recipe,
        optimizer: optax.GradientTransformationExtraArgs,
        mesh: Mesh,
        like: Any,
    ):
        self._mesh, self._recipe = mesh, recipe
        self._run = train_programs(recipe, optimizer, mesh, like)

    def init(self, trainable: Any) -> Any:
        """The optimiser's first state."""
        with jax.set_mesh(self._mesh):
            return self._run.init(trainable)

    def sums(self, params: dict, adapter: Adapter | None, batch: MicroBatch) -> np.ndarray:
        """Log-prob sums [b, e, k] of a micro-batch under a policy; dropout is off."""
        with jax.set_mesh(self._mesh):
            return np.asarray(self._run.sums(params, adapter, self._put(batch)))

    def gradient(
        self,
        trainable: Any,
        frozen: Any,
        batches: Sequence[tuple[MicroBatch, Frozen]],
        key: jax.Array,
        kl: float = 0.0,
    ) -> tuple[Any, dict[str, jax.Array]]:
        """The gradient of a whole batch's loss, and sums of its metrics (`loss` is final).

        `key` seeds dropout; micro-batch i uses `fold_in(key, i)`. `kl` is for KTO alone.
        """
        with jax.set_mesh(self._mesh):
            denominators = self._of_batch(batches)
            grads, totals = self._run.zeros(trainable), None
            for index, micro in enumerate(batches):
                grads, sums = self._run.accumulate(
                    grads,
                    trainable,
                    frozen,
                    self._put(micro),
                    denominators,
                    self._numbers(kl),
                    jax.random.fold_in(key, index),
                )
                totals = sums if totals is None else jax.tree.map(jnp.add, totals, sums)
            return grads, totals

    def evaluate(
        self, trainable: Any, frozen: Any, batches: Sequence[tuple[MicroBatch, Frozen]]
    ) -> dict[str, jax.Array]:
        """Sums of a whole batch's metrics (`loss` is final), dropout off, KTO's KL taken as 0."""
        with jax.set_mesh(self._mesh):
            denominators = self._of_batch(batches)
            rows = [
                self._run.measure(
                    trainable, frozen, self._put(micro), denominators, self._numbers(0.0)
                )
                for micro in batches
            ]
            return jax.tree.map(lambda *parts: sum(parts), *rows)

    def kl(
        self, trainable: Any, frozen: Any, batches: Sequence[tuple[MicroBatch, Frozen]]
    ) -> np.float32:
        """max(0, mean log-ratio to the reference) over a batch of mismatched completions."""
        params, lora = self._recipe.assemble(trainable, frozen)
        ratio = count = 0.0
        for micro, others in batches:
            filled = micro.counts_bek > 0
            sums_bek = self.sums(params, lora, micro)
            ratio += float(np.sum(np.where(filled, sums_bek - others.reference_bek, 0)))
            count += float(filled.sum())
        return np.float32(max(0.0, ratio / max(count, 1.0)))

    def _of_batch(self, batches) -> np.ndarray:
        """The denominators of the loss's terms over a whole batch."""
        return sum(np.asarray(self._run.denominators(batch.counts_bek)) for batch, _ in batches)

    def update(
        self, trainable: Any, state: Any, grads: Any, rate: float
    ) -> tuple[Any, Any, jax.Array]:
        """(trainable, optimiser state, gradient norm before clipping) after a step of learning rate
        `rate`; the trees that are given are used up."""
        with jax.set_mesh(self._mesh):
            return self._run.update(trainable, state, grads, np.float32(rate))

    def _numbers(self, kl: float) -> Numbers:
        return Numbers(np.float32(kl), np.float32(self._recipe.objective.beta))

    def _put(self, tree: Any) -> Any:
        """Host arrays as global device arrays, rows split; every host gives the rows it holds."""
        split = batch_sharding(self._mesh)
        return jax.tree.map(
            lambda array: jax.make_array_from_callback(array.shape, split, array.__getitem__), tree
        )


def _sums(recipe: Recipe, params, adapter, batch):
    return sequence_sums(
        recipe.config, params, adapter, batch, compute=recipe.compute, chunk=recipe.chunk
    )


def _denominators(objective: Objective, counts_bek):
    """The denominators of the loss's terms, which depend on token counts alone."""
    zeros = jnp.zeros_like(counts_bek)
    terms = loss_terms(objective, Sequences(zeros, counts_bek, zeros, zeros))
    return jnp.stack([term.denominator for term in terms])


def _loss(recipe: Recipe, trainable, frozen, batch, others: Frozen, denominators, numbers, key):
    params, lora = recipe.assemble(trainable, frozen)
    logps_bek = sequence_sums(
        recipe.config, params, lora, batch,
        compute=recipe.compute, dropout_key=key, train_head=recipe.lora is None, chunk=recipe.chunk,
    )  # fmt: skip
    sequences = Sequences(logps_bek, batch.counts_bek, others.reference_bek, others.anchor_bek)
    terms = loss_terms(recipe.objective, sequences, numbers.kl, numbers.beta)
    loss = sum(term.weight * term.numerator / denominators[i] for i, term in enumerate(terms))
    return loss, {"loss": loss, **metric_sums(recipe.objective, sequences, numbers.beta)}


def _measure(recipe: Recipe, trainable, frozen, micro, denominators, numbers):
    return _loss(recipe, trainable, frozen, *micro, denominators, numbers, None)[1]


def _accumulate(recipe: Recipe, grads, trainable, frozen, micro, denominators, numbers, key):
    loss = functools.partial(_loss, recipe)
    new, sums = jax.grad(loss, has_aux=True)(trainable, frozen, *micro, denominators, numbers, key)
    return jax.tree.map(jnp.add, grads, new), sums


def _update(optimizer: optax.GradientTransformationExtraArgs, trainable, state, grads, rate):
    updates, state = optimizer.update(grads, state, trainable, rate=rate)
    return optax.apply_updates(trainable, updates), state, optax.tree.norm(grads)
