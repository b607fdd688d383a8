"""LoRA adapters in PEFT's format: adapter_config.json + adapter_model.safetensors.

Keys are `base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight` (A [r, in], B
[out, r]); a missing or unused key is an error, for PEFT itself would load it as identity.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from selfevo_jax.errors import UserError
from selfevo_jax.models.config import ModelConfig
from selfevo_jax.models.lora import LoraConfig
from selfevo_jax.parallel.distributed import agreed, on_host, spread
from selfevo_jax.weights.names import leaves, module_name
from selfevo_jax.weights.safetensors_io import Outgoing, read_file, write_file
from selfevo_jax.weights.storage import atomic_folder, sha256_of_file

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BASE_HASH, _LINEAGE = "base_sha256", "lineage"  # in the safetensors metadata; PEFT ignores it
_READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules"}
_HARMLESS = set(
    """task_type auto_mapping peft_version base_model_name_or_path revision inference_mode
    init_lora_weights megatron_core qalora_group_size ensure_weight_tying""".split()
)
_MODULES_OF_A_LAYER = 7
_PATTERNS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}


def _key(module: tuple[str, ...], layer: int, side: str) -> str:
    name = module_name(*module[1:])
    return f"base_model.model.model.layers.{layer}.{name}.lora_{side.upper()}.weight"


def _slice(stacked: np.ndarray, layer: int) -> np.ndarray:
    return stacked[layer].T


def save_peft(
    folder: Path | str,
    lora_tree: Mapping[str, Any],
    lora: LoraConfig,
    base_name: str,
    base_hash: str | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> None:
    """Write an adapter that `peft.PeftModel.from_pretrained` loads; equal input, equal bytes.

    `lora_tree` holds a [l, in, r] and b [l, r, out] per target. `base_name` is what PEFT shows
    as the base model; `base_hash` (`ModelFiles.hash`) lets `load_peft` refuse another base;
    `lineage`, plain JSON values, says where the adapter comes from.
    The folder is replaced as a whole. Of a tree that is spread over hosts, all must call, and host
    0 writes. Raises UserError when it cannot be written.
    """
    flat = {path: on_host(value) for path, value in flatten_dict(dict(lora_tree)).items()}

    def write() -> None:
        _write_adapter(Path(folder), flat, lora, base_name, base_hash, lineage)

    if spread(lora_tree):
        agreed(write)
    else:
        write()


def _write_adapter(
    folder: Path,
    flat: Mapping[tuple[str, ...], np.ndarray],
    lora: LoraConfig,
    base_name: str,
    base_hash: str | None,
    lineage: Mapping[str, Any] | None,
) -> None:
    outgoing = [
        Outgoing(
            _key(path[:-1], layer, path[-1]),
            (value.shape[2], value.shape[1]),
            lambda value=value, layer=layer: _slice(value, layer),
        )
        for path, value in flat.items()
        for layer in range(value.shape[0])
    ]
    metadata = {"format": "pt"} | ({_BASE_HASH: base_hash} if base_hash else {})
    if lineage:
        metadata[_LINEAGE] = json.dumps(lineage, sort_keys=True)
    dtype = np.dtype(next(iter(flat.values())).dtype)
    modules = sorted({path[-2] for path in flat})
    with atomic_folder(folder) as fresh:
        write_file(fresh / WEIGHTS, outgoing, dtype, metadata)
        text = json.dumps(_config_json(lora, modules, base_name), indent=2, sort_keys=True)
        (fresh / CONFIG).write_text(text + "\n", encoding="utf-8")


def _config_json(lora: LoraConfig, modules: list[str], base_name: str) -> dict[str, Any]:
    whole = float(lora.alpha).is_integer()
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if whole else lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


@dataclass(frozen=True)
class Origin:
    """What a PEFT folder says of itself; None where it says nothing.

    base       the name of its base model
    base_hash  `ModelFiles.hash` of the base
    lineage    as given to `save_peft`
    sha256     of its weights file
    """

    base: str | None
    base_hash: str | None
    lineage: dict[str, Any] | None
    sha256: str


def read_origin(folder: Path | str) -> Origin:
    """Where an adapter comes from. Raises UserError for a folder that is no adapter."""
    folder = Path(folder)
    data, path = _read_config(folder / CONFIG), folder / WEIGHTS
    metadata = read_file(path)[1]
    try:
        lineage = json.loads(metadata.get(_LINEAGE, "null"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its lineage is not valid JSON: {error}") from error
    base = data.get("base_model_name_or_path")
    return Origin(base, metadata.get(_BASE_HASH), lineage, sha256_of_file(path))


def _read_config(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): not an adapter?") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(data, dict) or data.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is not LORA; no other adapter is supported")
    _refuse_unsupported(path, data)
    return data


def _refuse_unsupported(path: Path, data: dict[str, Any]) -> None:
    """Every field beyond plain LoRA must be off (false, null, empty or 'none')."""
    for key, value in data.items():
        if key in _READ or key in _HARMLESS or value in (None, False, {}, [], "none"):
            continue
        pattern = _PATTERNS.get(key)
        if pattern and isinstance(value, dict):
            if all(entry == data.get(pattern) for entry in value.values()):
                continue
        raise UserError(f"{path}: {key} is {value!r}, which is not supported; it must be off")


def _positive(path: Path, data: dict[str, Any], key: str, kind: tuple[type, ...]) -> Any:
    value = data.get(key)
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < 1e9:
        raise UserError(f"{path}: {key} is {value!r}, not a positive number")
    return value


def _targets(modules: list[tuple[str, ...]]) -> str:
    """A regular expression over module paths: the default one where it says the same."""
    paths = ["/".join(module) for module in modules]
    usual = LoraConfig().targets
    everything = len(paths) == _MODULES_OF_A_LAYER
    return usual if everything else "|".join(sorted(paths))


def _lora_config(path: Path, data: dict[str, Any], modules: list[tuple[str, ...]]) -> LoraConfig:
    dropout = data.get("lora_dropout", 0.0)
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
        raise UserError(f"{path}: lora_dropout is {dropout!r}, not in [0, 1)")
    if not isinstance(data.get("use_rslora", False), bool):
        raise UserError(f"{path}: use_rslora is {data['use_rslora']!r}, not true or false")
    return LoraConfig(
        rank=_positive(path, data, "r", (int,)),
        alpha=float(_positive(path, data, "lora_alpha", (int, float))),
        dropout=float(dropout),
        rslora=data.get("use_rslora", False),
        targets=_targets(modules),
    )


def _kernels(config: ModelConfig) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Module path -> kernel shape [l, in, out]."""
    return {
        leaf.path[:-1]: leaf.shape
        for leaf in leaves(config)
        if leaf.stacked and leaf.path[-1] == "kernel"
    }


def _chosen_modules(
    folder: Path, arrays: dict[str, np.ndarray], config: ModelConfig, listed: Any
) -> list[tuple[str, ...]]:
    """The modules that the file holds in every layer, checked against its own list."""
    modules = [
        module
        for module in _kernels(config)
        if any(
            _key(module, layer, side) in arrays
            for layer in range(config.num_layers)
            for side in "ab"
        )
    ]
    needed = {
        _key(module, layer, side)
        for module in modules
        for layer in range(config.num_layers)
        for side in "ab"
    }
    if unused := sorted(arrays.keys() - needed):
        raise UserError(f"{folder / WEIGHTS}: {unused[0]!r} has no place in the base model")
    if missing := sorted(needed - arrays.keys()):
        raise UserError(f"{folder / WEIGHTS}: {missing[0]!r} is missing")
    if not modules:
        raise UserError(f"{folder / WEIGHTS}: holds no LoRA tensors")
    names = {module[-1] for module in modules}
    if isinstance(listed, list) and {str(name).split(".")[-1] for name in listed} != names:
        raise UserError(
            f"{folder / CONFIG}: target_modules are {listed}, the file holds {sorted(names)}"
        )
    return modules


def _stack(
    folder: Path, arrays: dict[str, np.ndarray], module: tuple[str, ...], side: str, shape: tuple
) -> jnp.ndarray:
    """One leaf [l, in, r] or [l, r, out]; `shape` is what its base kernel asks for."""
    names = [_key(module, layer, side) for layer in range(shape[0])]
    for name in names:
        if arrays[name].shape != shape[:0:-1]:
            raise UserError(
                f"{folder / WEIGHTS}: {name!r} has shape {list(arrays[name].shape)}, the base "
                f"model asks for {list(shape[:0:-1])}: is the adapter for another base?"
            )
    return jnp.asarray(np.stack([arrays[name].T for name in names]))


def load_peft(
    folder: Path | str, config: ModelConfig, expect_base_hash: str | None = None
) -> tuple[dict[str, Any], LoraConfig]:
    """Read a PEFT LoRA adapter for a base of `config`: (tree, LoraConfig).

    `expect_base_hash` is compared when the adapter recorded its base. Raises UserError for
    anything but plain LoRA, for missing or unused keys and for another base's shapes or hash.
    """
    folder = Path(folder)
    data = _read_config(folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder}: holds no {WEIGHTS}; adapter_model.bin is a pickle, never loaded"
        )
    arrays, metadata = read_file(folder / WEIGHTS)
    base = metadata.get(_BASE_HASH)
    if base and expect_base_hash and base != expect_base_hash:
        raise UserError(
            f"{folder}: the adapter was trained on the base with hash {base[:12]}, "
            f"not on this one ({expect_base_hash[:12]})"
        )
    modules = _chosen_modules(folder, arrays, config, data.get("target_modules"))
    lora = _lora_config(folder / CONFIG, data, modules)
    tree = {}
    for module in modules:
        layers, size_in, size_out = _kernels(config)[module]
        shape_a, shape_b = (layers, size_in, lora.rank), (layers, lora.rank, size_out)
        tree[(*module, "a")] = _stack(folder, arrays, module, "a", shape_a)
        tree[(*module, "b")] = _stack(folder, arrays, module, "b", shape_b)
    return unflatten_dict(tree), lora
