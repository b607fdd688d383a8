"""What is trained, between our trees of stacked [in, out] arrays and torch's parameters per layer.

LoRA goes through peft: its modules hold A [r, in] and B [out, r] in float32.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import peft
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from peft.functional import delete_adapter
from peft.tuners.lora import LoraLayer
from torch.utils.hooks import RemovableHandle

from selfevo_jax.models.lora import Adapter
from selfevo_jax.torch_backend.model import Decoder, numpy, tensor
from selfevo_jax.weights.names import leaves, module_name

Path = tuple[str, ...]
DECAYED = ("kernel", "embedding", "a", "b")  # as learn/optimizer.py


@dataclass(frozen=True)
class Slot:
    """One torch parameter, and the part of our tree that it is. `layer` None: not stacked."""

    path: Path
    layer: int | None
    transposed: bool
    parameter: torch.nn.Parameter

    @property
    def name(self) -> str:
        """A name for files."""
        return "/".join(self.path) + ("" if self.layer is None else f"/{self.layer}")

    @property
    def decayed(self) -> bool:
        """Whether weight decay acts on it."""
        return self.path[-1] in DECAYED


@torch.no_grad()
def copy(parameter: torch.nn.Parameter, value: torch.Tensor) -> None:
    """Sets a parameter's values."""
    parameter.copy_(value)


def write_slots(
    slots: Iterable[Slot],
    tree: Mapping[str, Any],
    put: Callable[[torch.nn.Parameter, torch.Tensor], None] = copy,
) -> None:
    """Copies a tree into the parameters, each by `put`."""
    flat = {path: np.asarray(value) for path, value in flatten_dict(dict(tree)).items()}
    for slot in slots:
        value = flat[slot.path] if slot.layer is None else flat[slot.path][slot.layer]
        put(slot.parameter, tensor(value.T if slot.transposed else value))


def read_slots(
    slots: Iterable[Slot],
    get: Callable[[torch.nn.Parameter], torch.Tensor] = torch.nn.Parameter.detach,
) -> dict[str, Any]:
    """The parameters as a tree of numpy arrays, each by `get`."""
    parts: dict[Path, list[np.ndarray]] = {}
    whole: dict[Path, np.ndarray] = {}
    for slot in slots:
        value = numpy(get(slot.parameter))
        value = value.T if slot.transposed else value
        if slot.layer is None:
            whole[slot.path] = value
        else:
            parts.setdefault(slot.path, []).append(value)
    return unflatten_dict(whole | {path: np.stack(layers) for path, layers in parts.items()})


def base_slots(decoder: Decoder) -> list[Slot]:
    """All parameters of the base."""
    return [
        Slot(
            leaf.path, layer if leaf.stacked else None, leaf.transposed,
            decoder.base_parameter(leaf.hf.format(layer=layer)),
        )
        for leaf in leaves(decoder.config)
        for layer in leaf.layers
    ]  # fmt: skip


class Lora:
    """An adapter in a decoder, beside others; it acts only inside `acting` or `mixed`.

    `slots` are its parameters. `remove` takes it out again.
    """

    def __init__(self, decoder: Decoder, adapter: Adapter):
        self._module, self._name = decoder.module, f"adapter{next(_numbers)}"
        self._layers = decoder.config.num_layers
        outer = _acting(self._module)
        self.slots = self._inject(adapter)
        write_slots(self.slots, adapter.params)
        _act(self._module, outer)

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """This adapter alone inside the block, then again what acted before."""
        with _only(self._module, self._name):
            yield

    def hooks(self, rows_b11: torch.Tensor) -> Iterator[RemovableHandle]:
        """Until they are removed, this adapter adds its part to the rows that are set."""
        for layer in _layers(self._module):
            if self._name in layer.lora_A:
                yield layer.register_forward_hook(functools.partial(self._add, rows_b11))

    def _add(
        self, rows_b11: torch.Tensor, layer: LoraLayer, given: tuple, out_bto: torch.Tensor
    ) -> torch.Tensor:
        low, high = layer.lora_A[self._name], layer.lora_B[self._name]
        part_bto = high(low(given[0].to(low.weight.dtype))) * layer.scaling[self._name]
        return torch.where(rows_b11, (out_bto + part_bto).to(out_bto.dtype), out_bto)

    def remove(self) -> None:
        """Takes the adapter out; it must not be acting."""
        with warnings.catch_warnings():
            # peft warns that another one is now the active one; none acts but inside a block.
            warnings.filterwarnings("ignore", message="Adapter .* was active")
            delete_adapter(self._module, self._name, "lora_")

    def _inject(self, adapter: Adapter) -> list[Slot]:
        flat = flatten_dict(dict(adapter.params))
        modules = sorted({path[:-1] for path in flat})
        rank = next(value.shape[2] for path, value in flat.items() if path[-1] == "a")
        with warnings.catch_warnings():
            # peft warns of a second adapter in one model, which is meant here.
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            config = _peft_config(adapter, modules, rank)
            peft.inject_adapter_in_model(config, self._module, self._name)
        return [
            Slot(
                (*module, side), layer, True, _factor(self._module, module, layer, side, self._name)
            )
            for module in modules
            for side in "ab"
            for layer in range(self._layers)
        ]


_numbers = itertools.count()


@contextlib.contextmanager
def attached(decoder: Decoder, adapter: Adapter | None) -> Iterator[list[Slot]]:
    """The decoder with a LoRA adapter acting inside the block: its parameters, to be trained.

    None is the base alone. Blocks nest: an inner adapter acts alone, then the outer one again.
    """
    if adapter is None:
        with _only(decoder.module, None):
            yield []
        return
    lora = Lora(decoder, adapter)
    try:
        with lora.acting():
            yield lora.slots
    finally:
        lora.remove()


@contextlib.contextmanager
def mixed(
    decoder: Decoder, loras: Sequence[Lora], choice_b: Sequence[int] | np.ndarray
) -> Iterator[None]:
    """Inside the block adapter `loras[choice_b[b]]` acts on row b of a batch; -1: none does.

    peft's own mixed batches take each adapter's rows out of the batch: a product's shape, and
    its last bits, would follow from the other rows. Here each chosen adapter reads all rows.
    """
    with _only(decoder.module, None), contextlib.ExitStack() as hooks:
        for number, lora in enumerate(loras):
            rows_b11 = torch.tensor(np.equal(choice_b, number), device=decoder.device)
            if number in choice_b:
                for hook in lora.hooks(rows_b11[:, None, None]):
                    hooks.enter_context(hook)
        yield


@contextlib.contextmanager
def _only(module: torch.nn.Module, name: str | None) -> Iterator[None]:
    outer = _acting(module)
    _act(module, name)
    try:
        yield
    finally:
        _act(module, outer)


def _peft_config(adapter: Adapter, modules: list[Path], rank: int) -> peft.LoraConfig:
    names = "|".join(re.escape(module_name(*module[1:])) for module in modules)
    return peft.LoraConfig(
        r=rank,
        lora_alpha=adapter.scaling * rank,
        lora_dropout=adapter.dropout,
        target_modules=rf"model\.layers\.\d+\.({names})",
    )


def _factor(
    module: torch.nn.Module, path: Path, layer: int, side: str, name: str
) -> torch.nn.Parameter:
    """One of the two matrices, in float32: peft gives it the base's type, in which small steps
    would be lost."""
    place = f"model.layers.{layer}.{module_name(*path[1:])}.lora_{side.upper()}.{name}"
    return module.get_submodule(place).float().weight


def _layers(module: torch.nn.Module) -> list[LoraLayer]:
    return [part for part in module.modules() if isinstance(part, LoraLayer)]


def _acting(module: torch.nn.Module) -> str | None:
    """The adapter that acts now."""
    layers = [layer for layer in _layers(module) if not layer.disable_adapters]
    return layers[0].active_adapters[0] if layers else None


def _act(module: torch.nn.Module, name: str | None) -> None:
    """Lets adapter `name` act, and no other; None: no adapter."""
    for layer in _layers(module):
        layer.enable_adapters(name is not None)
        if name is not None:
            layer.set_adapter(name)
