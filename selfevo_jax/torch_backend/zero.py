"""`Zero`: an engine of several processes under DeepSpeed's ZeRO-2 or ZeRO-3.

Every process has its share of each micro-batch's rows. DeepSpeed averages gradients where our
losses are sums over all rows, so each process's part counts `size` times. Its own checkpoints,
which are pickles, are not used: tensors are gathered one by one and saved as those of one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed import utils as partitions
from torch import Tensor

from selfevo_jax.learn.batches import MicroBatch
from selfevo_jax.learn.step import Frozen
from selfevo_jax.torch_backend.engine import Cell
from selfevo_jax.torch_backend.forward import sequence_sums
from selfevo_jax.torch_backend.model import Decoder, Divide
from selfevo_jax.torch_backend.optimizer import Optimizer


def join_group(device: torch.device) -> None:
    """Joins the processes that the launcher started, over NCCL, or gloo without a GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        # DeepSpeed would compile a C++ extension for minutes at the first start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("gloo" if device.type == "cpu" else "nccl")


def make_zero(settings: Mapping[str, Any]) -> Callable[[Decoder, Optimizer], Zero]:
    """What makes a `Zero` from a decoder and an optimiser."""
    return partial(Zero, settings=settings)


def make_divide(settings: Mapping[str, Any]) -> Divide | None:
    """What gives each process its part of a parameter as it is loaded; None below ZeRO-3."""
    if settings["zero_optimization"]["stage"] != 3:
        return None
    config = {**settings, "train_micro_batch_size_per_gpu": 1}

    def divide(parameter: torch.nn.Parameter) -> None:
        deepspeed.zero.Init(torch.nn.ParameterList([parameter]), config_dict_or_path=config)

    return divide


class Zero:
    """See `Engine`. The group of processes is there already (`torch.distributed`)."""

    def __init__(self, decoder: Decoder, optimizer: Optimizer, settings: Mapping[str, Any]):
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._decoder, self._optimizer = decoder, optimizer
        self._stage = settings["zero_optimization"]["stage"]
        own = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": optimizer.clip or 0.0,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }
        self._engine = deepspeed.initialize(
            model=_Sums(decoder), optimizer=optimizer, config={**settings, **own}
        )[0]
        self._begin_moments()

    def _begin_moments(self) -> None:
        zero = self._engine.optimizer
        if self._stage == 3:
            self._optimizer.begin(zero.fp32_partitioned_groups_flat)
            return
        for of, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            self._optimizer.begin([flat])
            partitions.lazy_init_hp_params_optimizer_state(of, flat, self._optimizer.state)

    def forward(self, micro: MicroBatch) -> Tensor:
        """See `Engine.forward`."""
        return self._engine(micro)

    def backward(self, loss: Tensor, last: bool) -> None:
        """See `Engine.backward`."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss * self.size, scale_wrt_gas=False)

    def update(self, rate: float) -> float:
        """See `Engine.update`."""
        self._optimizer.lr = rate
        self._engine.step()
        self._optimizer.count += 1
        return float(self._engine.get_global_grad_norm())

    def share(self, micro: MicroBatch, frozen: Frozen) -> tuple[MicroBatch, Frozen]:
        """See `Engine.share`: equal parts, in order of rank."""
        rows = len(micro.tokens_bt) // self.size
        mine = slice(self.rank * rows, (self.rank + 1) * rows)

        def cut(part: Any) -> Any:
            arrays = {field.name: getattr(part, field.name) for field in fields(part)}
            return replace(
                part, **{n: a[mine] for n, a in arrays.items() if isinstance(a, np.ndarray)}
            )

        return cut(micro), cut(frozen)

    def gathered(self, sums_bek: Tensor) -> np.ndarray:
        """See `Engine.gathered`."""
        parts = [torch.empty_like(sums_bek) for _ in range(self.size)]
        dist.all_gather(parts, sums_bek.contiguous())
        return torch.cat(parts).cpu().numpy()

    def added(self, sums: dict[str, float]) -> dict[str, float]:
        """See `Engine.added`."""
        values = torch.tensor(list(sums.values()), dtype=torch.float64, device=self._decoder.device)
        dist.all_reduce(values)
        return dict(zip(sums, values.tolist(), strict=True))

    def same(self, number: int) -> int:
        """See `Engine.same`."""
        value = torch.tensor(int(number), device=self._decoder.device)
        dist.broadcast(value, 0)
        return int(value)

    def read(self, cell: Cell) -> Tensor:
        """See `Engine.read`."""
        if cell.moment is None:
            return partitions.safe_get_full_fp32_param(cell.parameter)
        return partitions.safe_get_full_optimizer_state(cell.parameter, cell.moment)

    def write(self, cell: Cell, value: Tensor) -> None:
        """See `Engine.write`."""
        value = value.to(self._decoder.device)
        if self._stage == 3:
            self._write_part(cell, value)
        elif cell.moment is None:
            partitions.safe_set_full_fp32_param(cell.parameter, value)
        else:
            partitions.safe_set_full_optimizer_state(cell.parameter, value, cell.moment)
        if cell.moment is None:
            self.lend(cell.parameter, value)

    def _write_part(self, cell: Cell, value: Tensor) -> None:
        """Sets this process's part; the last one is padded."""
        part = cell.parameter.ds_tensor.ds_numel
        padded = torch.nn.functional.pad(value.flatten(), (0, part * self.size - value.numel()))
        mine = padded.narrow(0, part * self.rank, part)
        if cell.moment is None:
            partitions.safe_set_local_fp32_param(cell.parameter, mine)
        else:
            partitions.safe_set_local_optimizer_state(cell.parameter, mine, cell.moment)

    def weights(self, parameter: torch.nn.Parameter) -> Tensor:
        """See `Engine.weights`."""
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    @torch.no_grad()
    def lend(self, parameter: torch.nn.Parameter, value: Tensor) -> None:
        """See `Engine.lend`."""
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.copy_(value)


class _Sums(torch.nn.Module):
    """The forward pass as a module, so that DeepSpeed's hooks see where it begins and ends."""

    def __init__(self, decoder: Decoder):
        super().__init__()
        self.module = decoder.module
        self._decoder = decoder

    def forward(self, micro: MicroBatch) -> Tensor:
        return sequence_sums(self._decoder, micro)
