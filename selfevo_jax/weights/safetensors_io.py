"""Reading and writing safetensors: one file or shards with an index, never a whole copy.

Files are memory-mapped from the offsets that our own header check allowed, read by slices,
and written tensor by tensor.
"""

import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from selfevo_jax.errors import UserError
from selfevo_jax.weights.assemble import Bounds
from selfevo_jax.weights.names import Leaf
from selfevo_jax.weights.safetensors_header import TensorEntry, read_header
from selfevo_jax.weights.storage import atomic_file

_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": jnp.dtype("bfloat16")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_BUFFER = re.compile(r".*\.rotary_emb\.inv_freq")  # old checkpoints saved a constant
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def _index_files(folder: Path) -> dict[str, str]:
    """Tensor name -> file name from the index, each file a plain name inside the folder."""
    path = folder / INDEX
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not a safetensors index ({error}); download it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path}: its weight_map is not an object with tensors")
    for name in weight_map.values():
        plain = isinstance(name, str) and re.fullmatch(r"[\w][\w.-]*\.safetensors", name)
        if not plain:
            raise UserError(f"{path}: {name!r} is not a safetensors file name in its folder")
        if not (folder / name).is_file():
            raise UserError(f"{path}: names {name}, which is not there; download it again")
    return weight_map


def _no_weights(folder: Path) -> UserError:
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLES)
    if pickles:
        return UserError(
            f"{folder}: holds only pickled weights ({pickles[0]}), which can run code and are "
            "never loaded; convert them where you trust them: AutoModelForCausalLM."
            "from_pretrained(FOLDER).save_pretrained(NEW_FOLDER) writes safetensors"
        )
    return UserError(f"{folder}: holds neither {SINGLE} nor {INDEX}")


def weight_files(folder: Path) -> list[Path]:
    """The files that decide the weights: the single file, or the index and its shards."""
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        shards = sorted({*_index_files(folder).values()})
        return [folder / INDEX, *(folder / name for name in shards)]
    raise _no_weights(folder)


class SafetensorsFolder:
    """The safetensors of a model folder as a `TensorStore`."""

    def __init__(self, folder: Path, tied: bool = False, unused: re.Pattern[str] = _BUFFER) -> None:
        """Check every header. `tied` drops a redundant lm_head, as transformers does; tensors
        whose whole name matches `unused` are left out."""
        self.label = str(folder)
        self._entries: dict[str, tuple[Path, TensorEntry]] = {}
        for path in weight_files(folder):
            if path.suffix == ".safetensors":
                self._add(path)
        if not (folder / SINGLE).is_file():
            self._check_index(folder)
        dropped = [name for name in self._entries if unused.fullmatch(name)]
        for name in [*dropped, *(["lm_head.weight"] if tied else [])]:
            self._entries.pop(name, None)

    def _add(self, path: Path) -> None:
        for name, entry in read_header(path).tensors.items():
            if name in self._entries:
                other = self._entries[name][0].name
                raise UserError(f"{path}: tensor {name!r} is also in {other}")
            self._entries[name] = (path, entry)

    def _check_index(self, folder: Path) -> None:
        index = _index_files(folder)
        for name in sorted({*index} ^ {*self._entries}):
            problem = "is in no shard" if name in index else "is not in the index"
            raise UserError(f"{folder / INDEX}: tensor {name!r} {problem}")
        for name, file in index.items():
            if self._entries[name][0].name != file:
                raise UserError(f"{folder / INDEX}: tensor {name!r} is not in {file}")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by tensor name, [out, in] for kernels."""
        return {name: entry.shape for name, (_, entry) in self._entries.items()}

    def name(self, leaf: Leaf, layer: int) -> str:
        """The Hugging Face name of a leaf's tensor."""
        return leaf.hf.format(layer=layer)

    def read(self, name: str, bounds: Bounds) -> np.ndarray:
        """A view into the mapped file; nothing is copied here."""
        path, entry = self._entries[name]
        # Mapped anew every time: a map that is kept keeps what was read of the file in memory.
        data = np.memmap(path, np.uint8, mode="r")
        whole = _as_array(data, entry, f"{path}: tensor {name!r}")
        return whole[tuple(slice(start, stop) for start, stop in bounds)]


def _as_array(data: np.ndarray, entry: TensorEntry, what: str) -> np.ndarray:
    if entry.dtype not in _DTYPES:
        raise UserError(f"{what} is {entry.dtype}; supported: {', '.join(_DTYPES)}")
    raw = data[entry.start : entry.start + entry.size]
    return raw.view(_DTYPES[entry.dtype]).reshape(entry.shape)


def read_file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """All tensors of a small file, as mapped arrays, and its metadata. Raises UserError."""
    header = read_header(path)
    data = np.memmap(path, np.uint8, mode="r") if header.tensors else np.zeros(0, np.uint8)
    arrays = {
        name: _as_array(data, entry, f"{path}: tensor {name!r}")
        for name, entry in header.tensors.items()
    }
    return arrays, header.metadata


@dataclass(frozen=True)
class Outgoing:
    """A tensor to be written; `value` is asked for when its turn comes, [out, in] for kernels."""

    name: str
    shape: tuple[int, ...]
    value: Callable[[], np.ndarray]


def write_file(
    path: Path, tensors: Iterable[Outgoing], dtype: np.dtype, metadata: Mapping[str, str]
) -> None:
    """Write one file, tensors sorted by name; the same input gives the same bytes.

    The layout is that of the safetensors library: compact JSON padded to 8 bytes with blanks.
    """
    ordered = _in_order(tensors)
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    at = 0
    for tensor in ordered:
        end = at + int(np.prod(tensor.shape)) * dtype.itemsize
        header[tensor.name] = {
            "dtype": _NAMES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in ordered:
            file.write(np.ascontiguousarray(tensor.value(), dtype).tobytes())


def _in_order(tensors: Iterable[Outgoing]) -> list[Outgoing]:
    return sorted(tensors, key=lambda tensor: tensor.name)


def _split(tensors: list[Outgoing], itemsize: int, limit: int) -> list[list[Outgoing]]:
    shards: list[list[Outgoing]] = [[]]
    room = limit
    for tensor in tensors:
        size = int(np.prod(tensor.shape)) * itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= size
    return shards


def hand_over(tensors: list[Outgoing], dtype: np.dtype, shard_bytes: int) -> None:
    """Asks for every tensor in the order of `write_folder`, and writes none.

    What a host does while host 0 writes tensors that all hosts must gather.
    """
    for shard in _split(tensors, dtype.itemsize, shard_bytes):
        for tensor in _in_order(shard):
            tensor.value()


def write_folder(folder: Path, tensors: list[Outgoing], dtype: np.dtype, shard_bytes: int) -> None:
    """Write the weights of a model: one file, or shards and then their index."""
    metadata = {"format": "pt"}
    shards = _split(tensors, dtype.itemsize, shard_bytes)
    if len(shards) == 1:
        write_file(folder / SINGLE, shards[0], dtype, metadata)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, shard, dtype, metadata)
        weight_map |= {tensor.name: file for tensor in shard}
    total = sum(int(np.prod(tensor.shape)) for tensor in tensors) * dtype.itemsize
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    with atomic_file(folder / INDEX) as temporary:
        temporary.write_text(json.dumps(index, indent=2))
