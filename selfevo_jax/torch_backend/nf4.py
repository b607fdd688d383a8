"""The frozen base in 4 bits, by bitsandbytes: what QLoRA trains an adapter on (Dettmers et al.,
2023, arXiv:2305.14314). As in `models/quantize.py`, only the layers' projections are packed.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from selfevo_jax.errors import UserError


def pack_projections(module: Any, dtype: torch.dtype) -> None:
    """Replaces the projections of all layers of a transformers decoder; products are in `dtype`.

    They are packed when the module is moved to its device. Raises UserError without bitsandbytes.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "compute.quant=nf4 with backend=torch needs the package bitsandbytes, which is not "
            "installed: pip install 'selfevo_jax[torch,nf4]'"
        )
    for layer in module.model.layers:
        for name, part in list(layer.named_modules()):
            if isinstance(part, torch.nn.Linear):
                place, _, last = name.rpartition(".")
                setattr(layer.get_submodule(place), last, _packed(part, dtype))
    module.is_loaded_in_4bit = True  # by which peft knows it


def _packed(linear: torch.nn.Linear, dtype: torch.dtype) -> torch.nn.Linear:
    from bitsandbytes.nn import Linear4bit, Params4bit

    packed = Linear4bit(
        linear.in_features, linear.out_features, bias=linear.bias is not None,
        compute_dtype=dtype, quant_type="nf4", device="meta",
    )  # fmt: skip
    packed.weight = Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
    packed.bias = linear.bias
    packed.support_avx512bf16_for_cpu = False  # a kernel that rounds to bfloat16, without gradient
    return packed
