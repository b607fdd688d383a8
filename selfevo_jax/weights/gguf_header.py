"""The header of a GGUF file, read with suspicion.

Every count and length is compared with the bytes that are left before anything is allocated
for it (`gguf.GGUFReader` trusts them: it loops over forged counts and returns short slices).
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from selfevo_jax.errors import UserError

_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?"}
_SCALARS |= {10: "<u8", 11: "<i8", 12: "<f8"}
_DTYPES = {code: np.dtype(text) for code, text in _SCALARS.items()}
_STRING, _ARRAY = 8, 9
_MAX_DIMS = 4  # GGML_MAX_DIMS
_MAX_DEPTH = 4  # arrays in arrays


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies. `shape` is in numpy order: rows first, the quantised axis last."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int  # bytes from the beginning of the file
    size: int  # bytes


@dataclass(frozen=True)
class GgufHeader:
    """Metadata as plain Python values, and the tensors by name."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


class _Cursor:
    """Reads little-endian values and never past the end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def fail(self, problem: str) -> UserError:
        return UserError(f"{self.path}: broken GGUF header at byte {self.at}: {problem}")

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int, what: str) -> bytes:
        if size > self.left:
            raise self.fail(f"{what} of {size} bytes, but {self.left} are left; download it again")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str, what: str) -> int:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def string(self, what: str) -> str:
        raw = self.take(self.number("Q", f"length of {what}"), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8") from error

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self._array(what, depth)
        if kind not in _DTYPES:
            raise self.fail(f"{what} has the unknown value type {kind}")
        return self._scalars(_DTYPES[kind], 1, what)[0]

    def _scalars(self, dtype: np.dtype, count: int, what: str) -> list:
        values = np.frombuffer(self.take(dtype.itemsize * count, what), dtype)
        if dtype == np.float32:  # 1e-5, not 9.999999747378752e-06: the same float32
            return [float(str(value)) for value in values]
        return values.tolist()

    def _array(self, what: str, depth: int) -> list:
        kind, count = self.number("I", what), self.number("Q", what)
        if depth >= _MAX_DEPTH:
            raise self.fail(f"{what} nests arrays more than {_MAX_DEPTH} deep")
        if kind in _DTYPES:
            return self._scalars(_DTYPES[kind], count, what)
        least = 8 if kind == _STRING else 12
        if count * least > self.left:
            raise self.fail(f"{what} claims {count} elements, more than the file can hold")
        return [self.value(kind, what, depth + 1) for _ in range(count)]


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.string("a metadata key")
        if key in metadata:
            raise cursor.fail(f"metadata key {key!r} occurs twice")
        metadata[key] = cursor.value(cursor.number("I", f"type of {key!r}"), repr(key))
    return metadata


def _tensor_bytes(cursor: _Cursor, name: str, dims: list[int], kind: GGMLQuantizationType) -> int:
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if dims[0] % block:
        raise cursor.fail(f"tensor {name!r}: rows of {dims[0]} are no whole {kind.name} blocks")
    return math.prod(dims) // block * block_bytes


def _read_tensor(cursor: _Cursor) -> GgufTensor:
    """A tensor whose `start` still counts from the data section."""
    name = cursor.string("a tensor name")
    count = cursor.number("I", f"rank of {name!r}")
    if not 1 <= count <= _MAX_DIMS:
        raise cursor.fail(f"tensor {name!r} has {count} dimensions")
    dims = [cursor.number("Q", f"dimensions of {name!r}") for _ in range(count)]
    code, start = cursor.number("I", f"type of {name!r}"), cursor.number("Q", f"offset of {name!r}")
    if 0 in dims:
        raise cursor.fail(f"tensor {name!r} has the empty shape {dims}")
    if code not in set(GGMLQuantizationType):
        raise cursor.fail(f"tensor {name!r} has the unknown quantisation type {code}")
    kind = GGMLQuantizationType(code)
    size = _tensor_bytes(cursor, name, dims, kind)
    return GgufTensor(name, tuple(reversed(dims)), kind, start, size)


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if not isinstance(value, int) or value <= 0 or value & (value - 1):
        raise cursor.fail(f"general.alignment is {value!r}, not a power of two")
    return value


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _place(cursor: _Cursor, tensors: list[GgufTensor], alignment: int) -> dict[str, GgufTensor]:
    """Move offsets to file positions; they must tile the data section, as llama.cpp demands."""
    base = _padded(cursor.at, alignment)
    placed: dict[str, GgufTensor] = {}
    expected = end = base
    for tensor in sorted(tensors, key=lambda t: t.start):
        if tensor.name in placed:
            raise cursor.fail(f"tensor {tensor.name!r} occurs twice")
        start = base + tensor.start
        if start != expected:
            raise cursor.fail(
                f"tensor {tensor.name!r} starts at byte {start}, where {expected} is due: "
                "tensors overlap or leave a gap"
            )
        end = start + tensor.size
        if end > len(cursor.data):
            raise cursor.fail(
                f"tensor {tensor.name!r} ends at byte {end}, the file at {len(cursor.data)}: "
                "it is truncated; download it again"
            )
        expected = _padded(end, alignment)
        placed[tensor.name] = GgufTensor(tensor.name, tensor.shape, tensor.kind, start, tensor.size)
    if len(cursor.data) > expected:
        raise cursor.fail(f"{len(cursor.data) - end} bytes follow the last tensor")
    return placed


def _parse(cursor: _Cursor) -> GgufHeader:
    if cursor.take(4, "magic") != b"GGUF":
        raise UserError(f"{cursor.path}: not a GGUF file (it does not begin with 'GGUF')")
    version = cursor.number("I", "version")
    if version not in (2, 3):
        raise cursor.fail(f"version {version} (or big-endian) is not supported; versions 2, 3 are")
    tensor_count, pair_count = cursor.number("Q", "counts"), cursor.number("Q", "counts")
    if pair_count * 13 + tensor_count * 32 > cursor.left:  # the least bytes each one takes
        raise cursor.fail(f"{tensor_count} tensors and {pair_count} keys cannot fit in the file")
    metadata = _read_metadata(cursor, pair_count)
    tensors = [_read_tensor(cursor) for _ in range(tensor_count)]
    alignment = _alignment(cursor, metadata)
    return GgufHeader(cursor.path, metadata, _place(cursor, tensors, alignment))


def read_header(path: Path) -> GgufHeader:
    """Read and check the header of a GGUF file. Raises UserError naming file and problem."""
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty; download it again")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(_Cursor(data, path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
