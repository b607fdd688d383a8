"""One fit from its first step to its last: plan, frozen sums, steps, metrics, checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from selfevo_jax.errors import UserError
from selfevo_jax.learn.batches import Batches, MicroBatch, example_hash
from selfevo_jax.learn.checkpoints import Checkpoints
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.metrics import MetricsLog
from selfevo_jax.learn.optimizer import adamw, schedule
from selfevo_jax.learn.protocol import FitResult, FitSettings
from selfevo_jax.learn.reference import ReferenceSums, adapter_hash, tree_hash
from selfevo_jax.learn.step import Frozen, Recipe, Steps
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.lora import Adapter, adapter, init_lora
from selfevo_jax.parallel.mesh import BATCH_AXES
from selfevo_jax.parallel.rules import path_name, shardings
from selfevo_jax.text.render import TokenExample

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Base:
    """The frozen side of a fit: the model, its parameters on a mesh, and where they come from."""

    config: ModelConfig
    params: dict
    compute: Compute
    mesh: Mesh
    hash: str
    tokenizer_hash: str


class Fit:
    """What the steps of one fit share; arguments as in `Trainer.fit`."""

    def __init__(
        self,
        base: Base,
        examples: Sequence[TokenExample],
        objective: Objective,
        settings: FitSettings,
        folder: Path,
        start: dict | None,
        reference: Adapter | None,
        anchor: Adapter | None,
    ):
        self.base, self.objective, self.settings, self.folder = base, objective, settings, folder
        self.hashes = [example_hash(example) for example in examples]
        self.total = settings.total_steps(len(examples))
        self.batches = self._plan(examples)
        self.start = self._first(start)
        self.rate = schedule(settings.schedule, settings.lr, self.total, settings.warmup)
        optimizer = adamw(self.rate, weight_decay=settings.weight_decay, clip=settings.clip)
        recipe = Recipe(base.config, objective, settings.lora, base.compute)
        self.steps = Steps(recipe, optimizer, base.mesh, self.start)
        self.recipe = recipe
        self.policies = {"reference": reference, "anchor": anchor}
        self.at_reference = self._starts_at_reference(start, reference)
        self.key = jax.random.fold_in(jax.random.key(settings.seed), 1)

    def run(self, on_step: Callable[[Mapping[str, Any]], None] | None) -> FitResult:
        """Goes on from the newest checkpoint to the last step."""
        begun = time.monotonic()
        checkpoints = Checkpoints(self.folder / "checkpoints", self._identity())
        done, state = self._restore(checkpoints)
        metrics = MetricsLog(self.folder, done)
        try:
            self.frozen = self._frozen_sums() if done < self.total else {}
            state = self._train(done, state, checkpoints, metrics, on_step)
        finally:
            checkpoints.close()
            metrics.close()
        shift = self._shift(state["trainable"])
        tokens = sum(row["tokens"] for row in metrics.rows)
        seconds = time.monotonic() - begun
        return FitResult(
            state["trainable"], self.settings.lora, metrics.rows, self.total, tokens, seconds, shift
        )

    def _train(self, done, state, checkpoints, metrics, on_step):
        if done == 0:
            log.info("compiling the training step for rows of %d tokens", self.batches.shape.length)
        clock = time.monotonic()
        for step in range(done, self.total):
            state, sums = self._step(step, state)
            row = self._row(step, sums)
            self._refuse_non_finite(step, row)
            if step == 0:
                self._assert_start_is_reference(row)
            clock, seconds = time.monotonic(), time.monotonic() - clock
            metrics.add(
                row,
                {"step": step, "seconds": seconds, "tokens_per_second": row["tokens"] / seconds},
            )
            if on_step:
                on_step(row)
            if self._due(step + 1, checkpoints):
                log.info("saving the state after step %d", step + 1)
                metrics.sync()
                checkpoints.save(step + 1, state)
        return state

    def _step(self, step, state):
        micros = [(micro, self._others(micro)) for micro in self.batches.micro_batches(step)]
        grads, sums = self.steps.gradient(
            state["trainable"], self._untrained(), micros, jax.random.fold_in(self.key, step)
        )
        trainable, optimizer, norm = self.steps.update(
            state["trainable"], state["optimizer"], grads
        )
        sums["grad_norm"] = norm
        sums["places"] = len(micros) * micros[0][0].tokens_bt.size
        return {"trainable": trainable, "optimizer": optimizer}, jax.device_get(sums)

    def _row(self, step, sums) -> dict[str, Any]:
        """A step's metrics: sums over examples turned into means; nothing that a clock decides."""
        sums = {name: float(value) for name, value in sums.items()}
        loss, norm, places = (sums.pop(name) for name in ("loss", "grad_norm", "places"))
        examples, loss_tokens = sums.pop("examples"), sums.pop("loss_tokens")
        tokens = self.batches.tokens(step)
        return {
            "step": step,
            "epoch": step // self.batches.per_epoch,
            "loss": loss,
            "grad_norm": norm,
            "lr": float(self.rate(step)),
            **{name: value / examples for name, value in sums.items()},
            "examples": int(examples),
            "tokens": tokens,
            "loss_tokens": int(loss_tokens),
            "padding_share": 1 - tokens / places,
        }

    def _plan(self, examples) -> Batches:
        settings, mesh = self.settings, self.base.mesh
        shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        return Batches(
            examples,
            batch_size=settings.batch_size,
            steps=self.total,
            seed=settings.seed,
            rows=-(-settings.micro_rows // shards) * shards,
            row_length=settings.row_length,
            ld_alpha=self.objective.ld_alpha,
            row_cost=lambda length: _row_cost(self.base.config, length),
        )

    def _first(self, start: dict | None) -> dict:
        """The tree that training starts from."""
        if self.settings.lora is None:
            if start is not None:
                raise UserError(
                    "a fit of all parameters cannot start from an adapter: merge it first"
                )
            tree = self.base.params
        else:
            init = functools.partial(init_lora, self.base.config, self.settings.lora)
            key = jax.random.key(self.settings.seed)
            tree = init(key) if start is None else start
            _refuse_other_shape(tree, jax.eval_shape(init, key))
        return jax.device_put(tree, shardings(tree, self.base.mesh))

    def _starts_at_reference(self, start: dict | None, reference: Adapter | None) -> bool:
        """Whether the first step's policy is its reference exactly (a fresh `b` is zero)."""
        lora = self.settings.lora
        if start is None or reference is None or lora is None:
            return start is None and reference is None
        same = adapter_hash(adapter(start, lora)) == adapter_hash(reference)
        return same and not lora.dropout

    def _untrained(self) -> dict:
        return {} if self.settings.lora is None else self.base.params

    def _restore(self, checkpoints: Checkpoints):
        """(steps done, state) from the newest checkpoint, or the first state."""
        first = jax.tree.map(jnp.copy, self.start)  # steps use up the buffers they are given
        state = {"trainable": first, "optimizer": self.steps.init(first)}
        done = checkpoints.latest()
        if done is None:
            return 0, state
        log.info("going on after step %d", done)
        return done, checkpoints.restore(done, state)

    def _due(self, done: int, checkpoints: Checkpoints) -> bool:
        regular = done % self.settings.checkpoint_every == 0 or done == self.total
        return regular or checkpoints.preempted(done)

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a resume to be the same fit."""
        settings = dataclasses.asdict(self.settings)
        del settings["checkpoint_every"]
        data = hashlib.sha256("\n".join(self.hashes).encode()).hexdigest()
        return {
            "base": self.base.hash,
            "tokenizer": self.base.tokenizer_hash,
            "dtype": jnp.dtype(self.base.compute.dtype).name,
            "data": data,
            "start": self.base.hash if self.settings.lora is None else tree_hash(self.start),
            **{name: adapter_hash(policy) for name, policy in self.policies.items()},
            **{
                f"objective.{name}": value
                for name, value in dataclasses.asdict(self.objective).items()
            },
            **{f"learn.{name}": value for name, value in settings.items()},
        }

    def _frozen_sums(self) -> dict[str, np.ndarray]:
        """The tables of log-prob sums of the frozen policies that the objective uses."""
        needed = {
            "reference": self.objective.needs_reference,
            "anchor": self.objective.needs_anchor,
        }
        return {name: self._policy_sums(self.policies[name]) for name in needed if needed[name]}

    def _policy_sums(self, policy: Adapter | None) -> np.ndarray:
        """float32 [n, k], from the store or computed in the rows of the first epoch."""
        base = self.base
        dtype = jnp.dtype(base.compute.dtype).name
        weighting = f"ld_alpha={self.objective.ld_alpha!r}"
        key = (base.hash, adapter_hash(policy), base.tokenizer_hash, dtype, weighting)
        store = ReferenceSums(self.folder / "reference", key)
        missing = store.missing(self.hashes)
        if missing:
            log.info("computing reference log-probs of %d examples", len(missing))
        found = {}
        for step in range(min(self.total, self.batches.per_epoch)):
            if missing.isdisjoint(self.hashes[index] for index in self.batches.examples(step)):
                continue
            for micro in self.batches.micro_batches(step):
                found |= self._by_hash(micro, self.steps.sums(base.params, policy, micro))
        if found:
            store.add(list(found), np.stack(list(found.values())))
        return store.table(self.hashes)

    def _by_hash(self, micro: MicroBatch, sums_bek: np.ndarray) -> dict[str, np.ndarray]:
        filled = np.argwhere(micro.examples_be >= 0)
        return {self.hashes[micro.examples_be[b, e]]: sums_bek[b, e] for b, e in filled}

    def _others(self, micro: MicroBatch) -> Frozen:
        """The frozen policies' sums of a micro-batch, joined by example."""

        def sums(name: str) -> np.ndarray:
            if name not in self.frozen:
                return np.zeros_like(micro.counts_bek)
            rows = self.frozen[name][np.maximum(micro.examples_be, 0)]
            return np.where(micro.examples_be[..., None] >= 0, rows, 0).astype(np.float32)

        return Frozen(sums("reference"), sums("anchor"))

    def _refuse_non_finite(self, step: int, row: Mapping[str, Any]) -> None:
        if math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]):
            return
        path = self.folder / "not_finite.json"
        path.write_text(
            json.dumps({"step": step, "ids": self.batches.ids(step), "metrics": row}, indent=1)
        )
        raise UserError(
            f"loss {row['loss']} and gradient norm {row['grad_norm']} at step {step}: training "
            f"stopped; the batch's ids are in {path}. Lower learn.lr or look at these examples"
        )

    def _assert_start_is_reference(self, row: Mapping[str, Any]) -> None:
        """A fit that starts at its reference must see log-ratios of zero (DPO: a loss of log 2)."""
        if self.objective.needs_reference and self.at_reference:
            z = row["margin"] / self.objective.beta
            tolerance = 1e-3 if self.base.compute.dtype == jnp.float32 else 0.5
            assert abs(z) < tolerance, f"log-ratio {z} at step 0: policy and reference disagree"

    def _shift(self, trained: dict) -> float:
        """Largest change of a log-prob sum by the fit, over the first micro-batch."""
        micro = next(self.batches.micro_batches(0))
        before, after = (self._sums_of(tree, micro) for tree in (self.start, trained))
        shift = float(np.abs(after - before).max())
        if shift == 0:
            raise UserError(
                f"the fit in {self.folder} changed nothing: no log-prob differs from the start. "
                "Raise learn.lr or check that the data gives a gradient"
            )
        return shift

    def _sums_of(self, tree: dict, micro: MicroBatch) -> np.ndarray:
        if self.settings.lora is None:
            return self.steps.sums(tree, None, micro)
        return self.steps.sums(self.base.params, adapter(tree, self.settings.lora), micro)


def _refuse_other_shape(start: dict, wanted: dict) -> None:
    def shapes(tree: dict) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {path_name(path): leaf.shape for path, leaf in leaves}

    odd = sorted(set(shapes(start).items()) ^ set(shapes(wanted).items()))
    if odd:
        raise UserError(
            f"the adapter to start from does not have the shape that the settings ask for "
            f"({odd[0][0]} {odd[0][1]}): give its rank and targets in lora, or start afresh"
        )


def _row_cost(config: ModelConfig, length: int) -> float:
    """Work of a row, up to a factor: matrix products, and attention over all its places."""
    heads = config.num_heads * config.head_dim
    kernels = 2 * config.hidden_size * (heads + config.num_kv_heads * config.head_dim)
    kernels += 3 * config.hidden_size * config.intermediate_size
    return length * (kernels + 2 * length * heads)
