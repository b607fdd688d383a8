"""`open_model`: one door to every kind of model file; `save_model`: the way out."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.typing import DTypeLike

from selfevo_jax.errors import UserError
from selfevo_jax.models.config import ModelConfig
from selfevo_jax.parallel.distributed import barrier, first, on_host, spread
from selfevo_jax.weights.assemble import TensorStore, load_tree
from selfevo_jax.weights.encoder_files import is_encoder
from selfevo_jax.weights.gguf_io import GgufFile
from selfevo_jax.weights.hf_config import config_to_json, read_config
from selfevo_jax.weights.names import Leaf, leaves
from selfevo_jax.weights.safetensors_io import (
    Outgoing,
    SafetensorsFolder,
    hand_over,
    weight_files,
    write_folder,
)
from selfevo_jax.weights.sources import resolve
from selfevo_jax.weights.storage import atomic_folder, files_sha256, known_sha256

_SHARD_BYTES = 5_000_000_000  # as transformers
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


@dataclass(frozen=True)
class ModelFiles:
    """A model on disk: a GGUF file, or a folder with config.json and safetensors."""

    path: Path
    config: ModelConfig
    store: TensorStore
    files: tuple[Path, ...]  # whose bytes decide the parameters

    @cached_property
    def hash(self) -> str:
        """SHA-256 in hex: of a GGUF's bytes, or over (name, SHA-256) of a folder's files."""
        if self.path.is_file():
            return known_sha256(self.path)
        return files_sha256(self.path, self.files)

    def load(
        self, shardings: Mapping[str, Any] | None = None, dtype: DTypeLike = jnp.float32
    ) -> dict[str, Any]:
        """Parameters as jax arrays, read shard by shard. See `assemble.load_tree`."""
        return load_tree(self.config, self.store, shardings, dtype)


def open_model(source: str | Path) -> ModelFiles:
    """Open a model from any source that `sources.resolve` knows; no weights are read yet.

    Raises UserError when the source, the config or a file's header is not right, and for a
    sentence encoder, which is opened by `encoder_files.open_encoder`.
    """
    path = resolve(source)
    if path.is_file():
        gguf = GgufFile(path)
        return ModelFiles(path, gguf.config, gguf, (path,))
    config_path = path / "config.json"
    if not config_path.is_file():
        raise _not_a_model(path)
    if is_encoder(path):
        raise UserError(
            f"{source} is a sentence encoder, which embeds text and writes none: bind it as "
            "--config.roles.encoder.model, and give a causal language model here"
        )
    config = read_config(config_path)
    store = SafetensorsFolder(path, tied=config.tie_embeddings)
    return ModelFiles(path, config, store, (config_path, *weight_files(path)))


def _not_a_model(folder: Path) -> UserError:
    if (folder / "adapter_config.json").is_file():
        return UserError(f"{folder} is an adapter, not a model: give its base model here")
    if ggufs := sorted(folder.glob("*.gguf")):
        return UserError(f"{folder} holds GGUF files: give the path of one, such as {ggufs[0]}")
    return UserError(f"{folder} is not a model folder: it has no config.json")


def outgoing(config: ModelConfig, params: Mapping[str, Any], naming: str = "hf") -> list[Outgoing]:
    """Every tensor of a file in its order, named as `naming` (hf or gguf) does."""
    flat = flatten_dict(dict(params))
    expected = {leaf.path: leaf.shape for leaf in leaves(config)}
    found = {path: value.shape for path, value in flat.items()}
    if found != expected:
        raise ValueError(f"parameters do not fit the config at {set(found) ^ set(expected)}")
    return [
        Outgoing(
            getattr(leaf, naming).format(layer=layer),
            leaf.file_shape,
            _taker(leaf, flat[leaf.path], layer),
        )
        for leaf in leaves(config)
        for layer in leaf.layers
    ]


def _taker(leaf: Leaf, value: Any, layer: int) -> Callable[[], np.ndarray]:
    """Fetches one layer when called, so the host never holds more than one tensor."""

    def take() -> np.ndarray:
        part = on_host(value[layer] if leaf.stacked else value)
        return part.T if leaf.transposed else part

    return take


def save_model(
    folder: Path | str,
    config: ModelConfig,
    params: Mapping[str, Any],
    dtype: DTypeLike = jnp.float32,
    *,
    tokenizer_files_from: Path | str | None = None,
    save_tokenizer: Callable[[Path], object] | None = None,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write a folder that `transformers.AutoModelForCausalLM` loads, whole or not at all.

    Weights are cast to `dtype` (float32, bfloat16 or float16) and split above `shard_bytes`.
    The tokenizer's files are copied from the folder `tokenizer_files_from`, or written by
    `save_tokenizer(folder)`. An older folder is replaced. Of parameters that are spread over hosts,
    all must call; they are gathered one tensor at a time, and host 0 writes. Raises UserError when
    the family's config.json cannot express `config` or the disk refuses.
    """
    kind = jnp.dtype(dtype)
    data = {**config_to_json(config), "torch_dtype": kind.name}
    tensors = outgoing(config, params)
    if spread(params) and not first():
        hand_over(tensors, kind, shard_bytes)
        barrier()
        return
    with atomic_folder(Path(folder)) as fresh:
        if tokenizer_files_from is not None:
            _copy_tokenizer(Path(tokenizer_files_from), fresh)
        if save_tokenizer is not None:
            save_tokenizer(fresh)
        (fresh / "config.json").write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        write_folder(fresh, tensors, kind, shard_bytes)
    if spread(params):
        barrier()


def _copy_tokenizer(source: Path, target: Path) -> None:
    found = [source / name for name in _TOKENIZER_FILES if (source / name).is_file()]
    if not found:
        raise UserError(f"{source}: holds no tokenizer files to copy")
    for path in found:
        shutil.copyfile(path, target / path.name)
