"""One fit from its first step to its last: plan, frozen sums, steps, metrics, checkpoints."""

from __future__ import annotations

import contextlib
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
from selfevo_jax.learn.batches import Batches, MicroBatch
from selfevo_jax.learn.carried import Carried, gone_on_with, leave
from selfevo_jax.learn.checkpoints import Checkpoints, GatheredCheckpoints
from selfevo_jax.learn.goodput import Goodput, computing, machine
from selfevo_jax.learn.held_out import Course, split_by_prompt
from selfevo_jax.learn.joined import Joined, mismatched
from selfevo_jax.learn.losses import Objective, metric_means
from selfevo_jax.learn.metrics import MetricsLog
from selfevo_jax.learn.optimizer import optimizer, schedule
from selfevo_jax.learn.prefetch import prefetched
from selfevo_jax.learn.profile import Profile
from selfevo_jax.learn.protocol import FitResult, FitSettings
from selfevo_jax.learn.reference import adapter_hash, tree_hash
from selfevo_jax.learn.step import Recipe, Steps
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.flops import mfu, train_flops
from selfevo_jax.models.lora import Adapter, adapter, init_lora
from selfevo_jax.parallel import preemption
from selfevo_jax.parallel.distributed import Together, barrier, carried, first
from selfevo_jax.parallel.mesh import BATCH_AXES
from selfevo_jax.parallel.rules import path_name, shardings
from selfevo_jax.text.render import TokenExample
from selfevo_jax.weights.storage import atomic_file

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
        store: Path | None = None,
        carried: Carried | None = None,
    ):
        self.base, self.objective, self.settings, self.folder = base, objective, settings, folder
        self.store, self.carried = Path(store or folder / "reference"), carried
        chosen, held = split_by_prompt(examples, settings.eval_share, settings.seed)
        self.total = settings.total_steps(len(chosen))
        self.data = self._joined(chosen, settings.batch_size, self.total)
        self.held = self._joined(held, len(held), 1) if held else None
        others = mismatched(chosen) if objective.needs_kl else []
        self.others = self._joined(others, settings.batch_size, self.total) if others else None
        self.start = self._first(start)
        self.rate = schedule(settings.schedule, settings.lr, self.total, settings.warmup)
        chain = optimizer(
            settings.optimizer, weight_decay=settings.weight_decay, clip=settings.clip
        )
        recipe = Recipe(base.config, objective, settings.lora, base.compute)
        self.steps = Steps(recipe, chain, base.mesh, self.start)
        self.policies = {"reference": reference, "anchor": anchor}
        self.at_reference = self._starts_at_reference(start, reference)
        self.key = jax.random.fold_in(jax.random.key(settings.seed), 1)

    def run(self, on_step: Callable[[Mapping[str, Any]], None] | None) -> FitResult:
        """Goes on from the newest checkpoint to the last step."""
        begun = time.monotonic()
        checkpoints = self._checkpoints("checkpoints")
        self.best = self._checkpoints("best", keep=1) if self.held else None
        done, state = self._restore(checkpoints)
        self.begun_at = done
        self.metrics = MetricsLog(self.folder, done, writes=self._writes())
        self.course = Course(self.settings, self.metrics.rows)
        self.on_step = on_step
        try:
            if done < self.total and not self.course.stopped:
                with Goodput(self.folder, done, begun, writes=self._writes()) as self.goodput:
                    self._ask_frozen()
                    state = self._train(done, state, checkpoints)
            trained = self._result(state["trainable"])
            if self.carried:
                self._leave_optimizer(state["optimizer"], self.carried.after)
        finally:
            checkpoints.close()
            if self.best:
                self.best.close()
            self.metrics.close()
        return FitResult(
            trained=trained,
            lora=self.settings.lora,
            metrics=self.metrics.rows,
            steps=len(self.metrics.rows),
            tokens=sum(row["tokens"] for row in self.metrics.rows),
            seconds=time.monotonic() - begun,
            adapter_shift=self._shift(trained),
            best_step=self.course.best_step,
        )

    def _train(self, done, state, checkpoints):
        if done == 0:
            log.info(
                "compiling the training step for rows of %d tokens", self.data.batches.shape.length
            )
        traced = Profile(self.folder / "profile", self.settings.profile_steps)
        with (
            self.goodput.on("steps"),
            contextlib.closing(traced),
            prefetched(self._batch, done, self.total) as batches,
            preemption.waiting(),
        ):
            state = self._loop(done, state, checkpoints, traced, batches)
        self.goodput.compare_hosts()
        return state

    def _batch(self, step):
        """A step's micro-batches, and those of the mismatched examples where KTO asks for them."""
        return self.data.micro_batches(step), self.others and self.others.micro_batches(step)

    def _loop(self, done, state, checkpoints, traced, batches):
        """Steps run ahead of their metrics by one, so that the device never waits for the host;
        nothing is saved or measured before the metrics up to there are in and finite."""
        self.saved = time.monotonic()
        wishes = {"stop": Together(), "save": Together()}
        pending = None
        self.goodput.begin_steps()
        for step in range(done, self.total):
            traced.before_step(state)
            with self.goodput.on("steps" if computing(pending and pending[1]) else "data"):
                micros, others = next(batches)
            state, sums = self._step(step, state, micros, others)
            traced.after_step(state)
            if pending:
                self._report(*pending)
            pending = (step, sums)
            stop = wishes["stop"].granted(step + 1, preemption.noticed())
            late = wishes["save"].granted(step + 1, self._late())
            save, measure = stop or late or self._regular(step + 1), self._measured(step + 1)
            if not (save or measure):
                continue
            self._report(*pending, self._measure(state["trainable"]) if measure else {})
            pending = None
            if self.course.best_step == step + 1:
                self.best.save(step + 1, state["trainable"])
                self.best.wait()  # a kill after the save below must find it
            if save or self.course.stopped:
                self._save(step + 1, state, checkpoints)
            if stop:
                self._leave(checkpoints)
            if self.course.stopped:
                log.info("stopping early: the held-out loss was lowest after step %d",
                         self.course.best_step)  # fmt: skip
                break
        return state

    def _save(self, done, state, checkpoints):
        log.info("saving the state after step %d", done)
        with self.goodput.on("checkpoint"):
            self.metrics.sync()
            checkpoints.save(done, state)
        self.goodput.write()
        self.saved = time.monotonic()

    def _leave(self, checkpoints):
        """This run was told to stop, and all hosts have come to the same step."""
        with self.goodput.on("checkpoint"):
            checkpoints.wait()
            barrier()  # host 0 ends a save for all
        preemption.heard()
        raise preemption.Preempted(together=True)

    def _step(self, step, state, micros, others):
        trainable, frozen = state["trainable"], self._untrained()
        kl = self.steps.kl(trainable, frozen, others) if others else np.float32(0)
        grads, sums = self.steps.gradient(
            trainable, frozen, micros, jax.random.fold_in(self.key, step), kl
        )
        trainable, chain, norm = self.steps.update(
            trainable, state["optimizer"], grads, float(self.rate(step))
        )
        sums["grad_norm"] = norm
        sums["places"] = len(micros) * micros[0][0].tokens_bt.size
        return {"trainable": trainable, "optimizer": chain}, sums

    def _report(self, step, sums, measured=None):
        """Fetches a step's metrics, refuses what is not finite, and writes them down."""
        with self.goodput.waiting():
            sums = jax.device_get(sums)
        row = self._row(step, sums) | (measured or {})
        self._refuse_non_finite(step, row)
        if step == 0:
            self._assert_start_is_reference(row)
        self.course.add(row)
        seconds = self.goodput.step()
        flops = self._flops(step)
        speed = {"tokens_per_second": row["tokens"] / seconds, "flops": flops}
        share = mfu(flops, seconds, self._devices())
        if share is not None:
            speed["mfu"] = share
        if step == self.begun_at:
            speed["machine"] = machine(self.base.mesh, self._devices())
        self.metrics.add(row, {"step": step, "seconds": seconds, **speed})
        if self.on_step:
            self.on_step(row)

    def _devices(self) -> list[str]:
        """The kind of each device that computes."""
        return [device.device_kind for device in self.base.mesh.devices.flat]

    def _flops(self, step) -> float:
        """Multiplications and additions that a step's useful tokens ask for."""
        packed = [self.data.batches.packed[i] for i in self.data.batches.examples(step)]
        return sum(
            train_flops(self.base.config, one.length, len(one.targets), lora=self.settings.lora)
            for one in packed
        )

    def _row(self, step, sums) -> dict[str, Any]:
        """A step's metrics: sums over examples turned into means; nothing that a clock decides."""
        sums = {name: float(value) for name, value in sums.items()}
        norm, places = sums.pop("grad_norm"), sums.pop("places")
        tokens = self.data.batches.tokens(step)
        means = metric_means(sums)
        return {
            "step": step,
            "epoch": step // self.data.batches.per_epoch,
            "loss": means.pop("loss"),
            "grad_norm": norm,
            "lr": float(self.rate(step)),
            **means,
            "tokens": tokens,
            "padding_share": 1 - tokens / places,
        }

    def _measured(self, done: int) -> bool:
        return bool(self.held) and (done % self.settings.eval_every == 0 or done == self.total)

    def _measure(self, trainable) -> dict[str, float]:
        """Metrics of the held-out examples, dropout off, named eval_..."""
        with self.goodput.on("measure"):
            held = self.held.micro_batches(0)
            sums = jax.device_get(self.steps.evaluate(trainable, self._untrained(), held))
        means = metric_means({name: float(value) for name, value in sums.items()})
        return {f"eval_{name}": value for name, value in means.items()}

    def _result(self, last):
        """The parameters that the fit gives: the last, or the best by the held-out loss."""
        if self.settings.keep == "last":
            return last
        self.best.wait()
        return self.best.restore(self.course.best_step, self.start)

    def _checkpoints(self, name: str, keep: int = 2) -> Checkpoints:
        kind = GatheredCheckpoints if carried() else Checkpoints
        return kind(self.folder / name, self._identity(), keep=keep)

    def _writes(self) -> bool:
        """Whether this process is the one that writes the metrics."""
        return jax.process_index() == 0

    def _shards(self) -> int:
        """Parts that the rows of a micro-batch are split into."""
        return math.prod(self.base.mesh.shape[axis] for axis in BATCH_AXES)

    def _joined(self, examples, batch_size: int, steps: int) -> Joined:
        settings, shards = self.settings, self._shards()
        batches = Batches(
            examples,
            batch_size=batch_size,
            steps=steps,
            seed=settings.seed,
            rows=-(-settings.micro_rows // shards) * shards,
            row_length=settings.row_length,
            ld_alpha=self.objective.ld_alpha,
            row_cost=row_cost,
            parts=self.base.mesh.shape["sequence"],
        )
        return Joined(examples, batches)

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
            if self.carried and self.carried.before:
                state["optimizer"] = gone_on_with(self.carried.before, state["optimizer"])
            return 0, state
        log.info("going on after step %d", done)
        return done, checkpoints.restore(done, state)

    def _leave_optimizer(self, state, path: Path) -> None:
        """Writes the optimiser's last state for a fit that goes on from here."""
        leave(path, state)

    def _regular(self, done: int) -> bool:
        return done % self.settings.checkpoint_every == 0 or done == self.total

    def _late(self) -> bool:
        """Whether the last save is too long ago, by the clock of host 0."""
        return first() and time.monotonic() - self.saved > self.settings.checkpoint_seconds

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a resume to be the same fit."""
        hashes = self.data.hashes + (self.held.hashes if self.held else [])
        data = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
        return {
            "base": self.base.hash,
            "tokenizer": self.base.tokenizer_hash,
            "dtype": jnp.dtype(self.base.compute.dtype).name,
            "data": data,
            "start": self.base.hash if self.settings.lora is None else tree_hash(self.start),
            **{name: adapter_hash(policy) for name, policy in self.policies.items()},
            **(self.carried.identity() if self.carried else {}),
            **{
                f"objective.{name}": value
                for name, value in dataclasses.asdict(self.objective).items()
            },
            **{f"learn.{name}": value for name, value in self.settings.deciding().items()},
        }

    def _ask_frozen(self) -> None:
        """Gives every plan the log-prob sums of the frozen policies that the objective uses."""
        needed = {
            "reference": self.objective.needs_reference,
            "anchor": self.objective.needs_anchor,
        }
        base = self.base
        dtype = jnp.dtype(base.compute.dtype).name
        weighting = f"ld_alpha={self.objective.ld_alpha!r}"
        for name in (name for name in needed if needed[name]):
            policy = self.policies[name]
            key = (base.hash, adapter_hash(policy), base.tokenizer_hash, dtype, weighting)
            with self.goodput.on("reference"):
                for joined in filter(None, (self.data, self.held, self.others)):
                    joined.add_policy(name, policy, base.params, self.steps, self.store, key)

    def _refuse_non_finite(self, step: int, row: Mapping[str, Any]) -> None:
        if math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]):
            return
        path = self.folder / "not_finite.json"
        kept = {"step": step, "metrics": row, "examples": self.data.described(step)}
        with atomic_file(path) as unfinished:
            unfinished.write_text(json.dumps(kept, indent=1), encoding="utf-8")
        raise UserError(
            f"loss {row['loss']} and gradient norm {row['grad_norm']} at step {step}: training "
            f"stopped; the batch is in {path}. Lower learn.lr or look at these examples"
        )

    def _assert_start_is_reference(self, row: Mapping[str, Any]) -> None:
        """A fit that starts at its reference must see log-ratios of zero (DPO: a loss of log 2)."""
        if self.objective.needs_reference and self.at_reference and "margin" in row:
            z = row["margin"] / self.objective.beta
            tolerance = 1e-3 if self.base.compute.dtype == jnp.float32 else 0.5
            assert abs(z) < tolerance, f"log-ratio {z} at step 0: policy and reference disagree"

    def _shift(self, trained: dict) -> float:
        """Largest change of a log-prob sum by the fit, over the first micro-batch."""
        micro = next(self.data.batches.micro_batches(0))
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


def row_cost(length: int) -> float:
    """Work of a row, up to a factor. Attention looks at listed blocks, so it grows with the length
    alone; what a row costs besides (a pass over the kernels) is worth some 32 of its places."""
    return length + 32.0
