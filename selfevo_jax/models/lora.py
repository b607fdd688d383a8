"""LoRA as a second parameter tree beside a frozen base (Hu et al., 2021, arXiv:2106.09685).

For a target kernel W [in, out] the tree holds `a` [l, in, r] and `b` [l, r, out] at the same
path; the layer computes `x W + scaling * (x a) b`. Taking the adapter away gives the frozen
reference model, so no second copy of the base is ever needed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from selfevo_jax.errors import UserError
from selfevo_jax.models.config import ModelConfig
from selfevo_jax.models.llama import abstract_params
from selfevo_jax.models.quantize import refuse_quantized


@dataclass(frozen=True)
class LoraConfig:
    """What an adapter adds. `targets` is a regular expression over paths such as
    `layers/attn/q_proj`; `rslora` scales by alpha / sqrt(rank) (arXiv:2312.03732)."""

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    rslora: bool = False
    targets: str = r"layers/(attn|mlp)/.*_proj"

    @property
    def scaling(self) -> float:
        """The factor on the low-rank product."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


@flax.struct.dataclass
class Adapter:
    """A LoRA tree with what is needed to apply it.

    `mask_br`, when given, says which of the r columns act in which row of the batch.
    """

    params: dict
    scaling: float = flax.struct.field(pytree_node=False)
    dropout: float = flax.struct.field(pytree_node=False, default=0.0)
    mask_br: jax.Array | None = None


@flax.struct.dataclass
class AdapterStack:
    """Several adapters side by side: one LoRA tree whose columns belong to adapter `owner_r`.

    Every row of a batch takes one of them, or none, in the same two products.
    """

    params: dict
    owner_r: jax.Array

    def choose(self, choice_b: jax.Array) -> Adapter:
        """Adapter number `choice_b[b]` for row b; -1: none."""
        return Adapter(self.params, 1.0, mask_br=self.owner_r == choice_b[:, None])


def adapter(params: dict, lora: LoraConfig, *, train: bool = False) -> Adapter:
    """`params` ready for `forward`; dropout acts only in training."""
    return Adapter(params, lora.scaling, lora.dropout if train else 0.0)


def rescaled(
    params: dict | None, lora: LoraConfig | None, wanted: LoraConfig | None
) -> dict | None:
    """A LoRA tree that under `wanted` is the policy that it was under `lora`: a merged adapter has
    a scaling of its own. None (the base itself) stays None."""
    if params is None or lora is None or wanted is None or lora.scaling == wanted.scaling:
        return params
    ratio = lora.scaling / wanted.scaling

    def fold(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> jax.Array:
        return leaf * ratio if path[-1].key == "b" else leaf

    return jax.tree_util.tree_map_with_path(fold, params)


def target_shapes(config: ModelConfig, lora: LoraConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path -> kernel shape [l, in, out] of every module that `lora.targets` matches in full.

    Raises `UserError` when nothing matches.
    """
    kernels = {
        path[:-1]: leaf.shape
        for path, leaf in flatten_dict(abstract_params(config)).items()
        if path[0] == "layers" and path[-1] == "kernel"
    }
    chosen = {p: s for p, s in kernels.items() if re.fullmatch(lora.targets, "/".join(p))}
    if not chosen:
        known = ", ".join(sorted("/".join(path) for path in kernels))
        raise UserError(f"LoRA targets {lora.targets!r} match no module; there are: {known}")
    return chosen


def init_lora(config: ModelConfig, lora: LoraConfig, key: jax.Array) -> dict:
    """A float32 LoRA tree: `a` uniform in +-1/sqrt(in) (PEFT's default), `b` zero."""
    tree = {}
    for index, (path, (layers, width_in, width_out)) in enumerate(
        sorted(target_shapes(config, lora).items())
    ):
        bound = width_in**-0.5
        tree[path + ("a",)] = jax.random.uniform(
            jax.random.fold_in(key, index),
            (layers, width_in, lora.rank),
            minval=-bound,
            maxval=bound,
        )
        tree[path + ("b",)] = jnp.zeros((layers, lora.rank, width_out))
    return unflatten_dict(tree)


def stack_adapters(adapters: Sequence[Adapter]) -> AdapterStack:
    """The adapters in the order given, numbers 0, 1, ...; ranks and targets may differ."""
    trees = [flatten_dict(adapter.params) for adapter in adapters]
    ranks = [next(leaf.shape[2] for path, leaf in t.items() if path[-1] == "a") for t in trees]
    stacked = {}
    for path in {path for tree in trees for path in tree}:
        axis = 2 if path[-1] == "a" else 1
        like = next(tree[path] for tree in trees if path in tree)

        def columns(tree, adapter, rank, path=path, axis=axis, like=like):
            if path not in tree:
                return jnp.zeros((*like.shape[:axis], rank, *like.shape[axis + 1 :]), like.dtype)
            return tree[path] if axis == 2 else adapter.scaling * tree[path]

        parts = map(columns, trees, adapters, ranks)
        stacked[path] = jnp.concatenate(list(parts), axis=axis)
    owner_r = jnp.asarray(np.repeat(np.arange(len(ranks)), ranks))
    return AdapterStack(unflatten_dict(stacked), owner_r)


def merge_lora(params: dict, adapter: Adapter) -> dict:
    """A new base tree in which every target kernel is W + scaling * a b.

    Raises UserError for a quantised base, which would round the adapter away.
    """
    refuse_quantized(params, "merge an adapter into this base")
    merged = flatten_dict(params)
    lora = flatten_dict(adapter.params)
    for path in {path[:-1] for path in lora}:
        kernel_lio = merged[path + ("kernel",)]
        delta_lio = adapter.scaling * jnp.einsum(
            "lir,lro->lio", lora[path + ("a",)], lora[path + ("b",)], precision="highest"
        )
        merged[path + ("kernel",)] = (kernel_lio.astype(jnp.float32) + delta_lio).astype(
            kernel_lio.dtype
        )
    return unflatten_dict(merged)
