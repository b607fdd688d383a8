"""A transformers decoder from our own config and our own readers, and our forward pass over it.

transformers never sees a folder: its config is built from the fields that `weights.hf_config`
allows, and its weights are copied from what `weights` read and checked.

Axes: b row, t place, s key, m target, d model, v vocab.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax.traverse_util import flatten_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers.initialization import no_init_weights

from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.torch_backend.nf4 import pack_projections
from selfevo_jax.weights.assemble import check_tensors
from selfevo_jax.weights.hf_config import ARCHITECTURES, config_to_json
from selfevo_jax.weights.model_files import ModelFiles
from selfevo_jax.weights.names import Leaf, leaves

Reader = Callable[[Leaf, int], np.ndarray]  # (leaf, layer) -> tensor as files store it
Divide = Callable[[torch.nn.Parameter], None]  # leaves each process of a group its part


@dataclass(frozen=True)
class Layout:
    """Where every token stands, tensors [b, t]; see `models.attention.Layout`."""

    positions: Tensor
    segments: Tensor
    branches: Tensor


def visible(query: Layout, key: Layout, window: int | None = None) -> Tensor:
    """The boolean mask [b, t, s] of the rule in `models/attention.py`."""
    distance_bts = query.positions[:, :, None] - key.positions[:, None, :]
    same_bts = query.segments[:, :, None] == key.segments[:, None, :]
    branch_bts = (key.branches == 0)[:, None, :] | (
        query.branches[:, :, None] == key.branches[:, None, :]
    )
    seen_bts = (distance_bts >= 0) & same_bts & branch_bts & (key.segments != 0)[:, None, :]
    return seen_bts if window is None else seen_bts & (distance_bts < window)


class Decoder:
    """A causal language model on one device, in `compute.dtype`; `quant` "nf4" packs its layers.

    `remat` other than "none" recomputes every layer in the backward pass. With `divide` it lies in
    parts on several devices from the start: no process holds more than one whole tensor.
    """

    def __init__(
        self,
        config: ModelConfig,
        read: Reader,
        compute: Compute,
        device: str | None = None,
        quant: str | None = None,
        divide: Divide | None = None,
    ):
        self.divided = divide is not None
        self.config, self.compute, self.quant = config, compute, quant
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = getattr(torch, jnp.dtype(compute.dtype).name)
        self.module = _empty_module(config, self.dtype)
        self.module.requires_grad_(False)
        self._copy(read, divide)
        if quant is not None:
            pack_projections(self.module, self.dtype)
        self.module.to(self.device)
        if compute.remat != "none":
            _recompute_layers(self.module)

    @classmethod
    def from_files(
        cls,
        files: ModelFiles,
        compute: Compute,
        device: str | None = None,
        quant: str | None = None,
        divide: Divide | None = None,
    ) -> Decoder:
        """The model in safetensors or GGUF, read by our readers. Raises UserError."""
        check_tensors(files.config, files.store)

        def read(leaf: Leaf, layer: int) -> np.ndarray:
            bounds = tuple((0, size) for size in leaf.file_shape)
            return files.store.read(files.store.name(leaf, layer), bounds)

        return cls(files.config, read, compute, device, quant, divide)

    @classmethod
    def from_tree(
        cls,
        config: ModelConfig,
        params: Mapping[str, Any],
        compute: Compute,
        device: str | None = None,
        quant: str | None = None,
        divide: Divide | None = None,
    ) -> Decoder:
        """The model of a parameter tree, as `models.llama.init_params` makes it."""
        flat = flatten_dict(dict(params))

        def read(leaf: Leaf, layer: int) -> np.ndarray:
            part = np.asarray(flat[leaf.path][layer] if leaf.stacked else flat[leaf.path])
            return part.T if leaf.transposed else part

        return cls(config, read, compute, device, quant, divide)

    @torch.no_grad()
    def _copy(self, read: Reader, divide: Divide | None) -> None:
        for leaf in leaves(self.config):
            for layer in leaf.layers:
                target = self.base_parameter(leaf.hf.format(layer=layer))
                target.copy_(tensor(read(leaf, layer)))
                if divide is not None:
                    divide(target)

    def base_parameter(self, name: str) -> torch.nn.Parameter:
        """A parameter by its Hugging Face name, also where peft has wrapped its module."""
        place, _, kind = name.rpartition(".")
        module = self.module.get_submodule(place)
        if isinstance(module, BaseTunerLayer):
            module = module.get_base_layer()
        return getattr(module, kind)

    def hidden(
        self, tokens_bt: Tensor, query: Layout, key: Layout, cache: Any | None = None
    ) -> Tensor:
        """States after the final norm [b, t, d]; `key` places what the cache gives (or `query`)."""
        with self._rounding():
            found = self.module.model(
                input_ids=tokens_bt,
                attention_mask=self._masks(query, key),
                position_ids=query.positions,
                past_key_values=cache,
                use_cache=False,
            )
        return found.last_hidden_state

    def _rounding(self) -> torch.autocast:
        """Adapters are kept in float32; what they multiply is in `dtype`, as in JAX."""
        lower = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=lower)

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [..., v], soft-capped where the model is."""
        scores = self.module.lm_head(hidden).float()
        cap = self.config.final_softcap
        return scores if cap is None else cap * torch.tanh(scores / cap)

    def _masks(self, query: Layout, key: Layout) -> Tensor | dict[str, Tensor]:
        """Additive masks [b, 1, t, s]: one, or one per kind of layer where the family has kinds."""
        if self.config.family not in ("gemma2", "qwen2"):
            return self._mask(query, key, self.config.window)
        return {
            "full_attention": self._mask(query, key, None),
            "sliding_attention": self._mask(query, key, self.config.window),
        }

    def _mask(self, query: Layout, key: Layout, window: int | None) -> Tensor:
        # The least finite number, not minus infinity: a padding query sees nothing at all.
        hidden_bts = ~visible(query, key, window)
        least = torch.finfo(self.dtype).min
        return torch.zeros((), dtype=self.dtype, device=hidden_bts.device).masked_fill(
            hidden_bts, least
        )[:, None]


def tensor(array: np.ndarray) -> Tensor:
    """A torch tensor of a numpy array; bfloat16 goes over its bits."""
    array = np.ascontiguousarray(array)
    if array.dtype == jnp.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def numpy(value: Tensor) -> np.ndarray:
    """A numpy copy of a tensor; bfloat16 goes over its bits."""
    value = value.detach().cpu().contiguous()
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(jnp.bfloat16).copy()
    return value.numpy().copy()


def _recompute_layers(module: torch.nn.Module) -> None:
    name = "activation_checkpointing_enable"  # the newer of two names for one thing
    enable = getattr(module, name, None) or module.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _empty_module(config: ModelConfig, dtype: torch.dtype) -> torch.nn.Module:
    """transformers' class for this family, its weights not yet set."""
    fields = {**config_to_json(config), "use_cache": False}
    del fields["architectures"]
    kind = transformers.CONFIG_MAPPING[fields.pop("model_type")]
    # Gemma-2's soft cap on attention scores is only in the eager form.
    attention = "sdpa" if config.attn_softcap is None else "eager"
    described = kind(**fields, attn_implementation=attention)
    described.dtype = dtype
    with no_init_weights():
        module = getattr(transformers, ARCHITECTURES[config.family])(described)
    # Not `module.to`, which would round the rotary frequencies as well.
    for parameter in module.parameters():
        parameter.data = torch.empty_like(parameter.data, dtype=dtype)
    module.tie_weights()
    return module.eval()
