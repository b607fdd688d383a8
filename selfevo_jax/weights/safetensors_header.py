"""The header of a safetensors file, read with suspicion.

Everything is checked before anything is allocated: lengths, names, dtypes, and that the
tensors tile the data exactly. Format: https://github.com/huggingface/safetensors (Format).
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError

_MAX_HEADER = 100_000_000  # bytes; the reference implementation's limit
_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2}
_BYTES |= {"BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor; `start` counts bytes from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """The tensors of a file by name, and its free-text metadata."""

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def _fail(path: Path, problem: str) -> UserError:
    return UserError(f"{path}: broken safetensors file: {problem}; download or write it again")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} occurs twice")
    return found


def _read_json(path: Path) -> tuple[dict[str, Any], int, int]:
    """(header, where the data begin, size of the file)."""
    try:
        total = path.stat().st_size
        with open(path, "rb") as file:
            prefix = file.read(8)
            if len(prefix) < 8:
                raise _fail(path, f"it has {total} bytes, less than any header")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(_MAX_HEADER, total - 8):
                raise _fail(path, f"it claims a header of {length} bytes in {total} bytes")
            raw = file.read(length)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _fail(path, f"its header is not right: {error}") from error
    if not isinstance(header, dict):
        raise _fail(path, "its header is not a JSON object")
    return header, 8 + length, total


def _whole_numbers(value: Any, count: int | None = None) -> bool:
    if not isinstance(value, list) or (count is not None and len(value) != count):
        return False
    return all(type(item) is int and item >= 0 for item in value)


def _entry(path: Path, name: str, raw: Any, base: int) -> TensorEntry:
    if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
        raise _fail(path, f"tensor {name!r} lacks dtype, shape or data_offsets, or has more")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise _fail(path, f"tensor {name!r} has the unknown dtype {dtype!r}")
    if not _whole_numbers(shape) or not _whole_numbers(offsets, 2):
        raise _fail(path, f"tensor {name!r} has shape {shape!r} and offsets {offsets!r}")
    size = math.prod(shape) * _BYTES[dtype]
    if offsets[1] - offsets[0] != size:
        raise _fail(
            path,
            f"tensor {name!r} is {dtype} {shape}, {size} bytes, but its offsets are {offsets}",
        )
    return TensorEntry(dtype, tuple(shape), base + offsets[0], size)


def _check_tiling(path: Path, tensors: dict[str, TensorEntry], base: int, total: int) -> None:
    at = base
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start != at:
            kind = "overlaps the one before it" if entry.start < at else "leaves a gap before it"
            raise _fail(path, f"tensor {name!r} {kind}")
        at = entry.start + entry.size
    if at != total:
        problem = "it is truncated" if at > total else "foreign bytes follow the last tensor"
        raise _fail(path, f"its tensors end at byte {at}, the file at {total}: {problem}")


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header of a safetensors file.

    Raises UserError naming file and problem.
    """
    header, base, total = _read_json(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _fail(path, "its __metadata__ does not map text to text")
    tensors = {name: _entry(path, name, raw, base) for name, raw in header.items()}
    _check_tiling(path, tensors, base, total)
    return SafetensorsHeader(tensors, metadata)
