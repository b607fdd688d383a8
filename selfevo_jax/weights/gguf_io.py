"""Reading GGUF files: metadata, architecture, and tensors dequantised slice by slice.

llama.cpp rewrites two things on conversion and both are undone here: the rows of q and k of
its llama architecture are permuted for interleaved RoPE, and Gemma's norms carry their +1.
"""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf.quants import dequantize

from selfevo_jax.errors import UserError
from selfevo_jax.models.config import ModelConfig
from selfevo_jax.weights.assemble import Bounds
from selfevo_jax.weights.gguf_config import config_from_gguf
from selfevo_jax.weights.gguf_header import GgufHeader, GgufTensor, read_header
from selfevo_jax.weights.names import Leaf

ROPE_FACTORS = "rope_freqs.weight"


def half_split_rows(rows: int, heads: int) -> np.ndarray:
    """For each row of a half-split q or k kernel, the row of an interleaved one that holds it.

    Inverse of `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py. Shape [rows].
    """
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(rows)


def _dequantized(
    blocks_rnt: np.ndarray, tensor: GgufTensor, rows: slice | np.ndarray, start: int, stop: int
) -> np.ndarray:
    """Float32 values [rows, stop - start] of the blocks that cover those columns."""
    block, _ = GGML_QUANT_SIZES[tensor.kind]
    first, last = start // block, -(-stop // block)
    raw = np.ascontiguousarray(blocks_rnt[rows, first:last])
    try:
        values = dequantize(raw.reshape(len(raw), -1), tensor.kind)
    except NotImplementedError as error:
        raise UserError(
            f"tensor {tensor.name} is stored as {tensor.kind.name}, "
            "which the gguf library cannot dequantise"
        ) from error
    return values[:, start - first * block : stop - first * block]


class GgufFile:
    """An opened GGUF file as a `TensorStore`."""

    def __init__(self, path: Path) -> None:
        """Check the header and read the architecture. Raises UserError."""
        self.label = str(path)
        self.header: GgufHeader = read_header(path)
        self._data = np.memmap(path, np.uint8, mode="r")
        self.config: ModelConfig = config_from_gguf(self.header, self._rope_factors())

    def _rope_factors(self) -> np.ndarray | None:
        if ROPE_FACTORS not in self.header.tensors:
            return None
        (size,) = self.header.tensors[ROPE_FACTORS].shape
        return self._values(ROPE_FACTORS, ((0, size),))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by tensor name, [out, in] for kernels; rope factors are part of the config."""
        tensors = self.header.tensors.items()
        return {name: tensor.shape for name, tensor in tensors if name != ROPE_FACTORS}

    def name(self, leaf: Leaf, layer: int) -> str:
        """The GGUF name of a leaf's tensor."""
        return leaf.gguf.format(layer=layer)

    def _rows(self, name: str, start: int, stop: int) -> slice | np.ndarray:
        heads = {".attn_q.": self.config.num_heads, ".attn_k.": self.config.num_kv_heads}
        for part, count in heads.items():
            if part in name and self.header.metadata["general.architecture"] == "llama":
                rows = self.header.tensors[name].shape[0]
                return half_split_rows(rows, count)[start:stop]
        return slice(start, stop)

    def _values(self, name: str, bounds: Bounds, rows: slice | np.ndarray | None = None) -> Any:
        tensor = self.header.tensors[name]
        _, block_bytes = GGML_QUANT_SIZES[tensor.kind]
        count = tensor.shape[0] if len(tensor.shape) == 2 else 1
        raw = self._data[tensor.start : tensor.start + tensor.size]
        blocks = raw.reshape(count, -1, block_bytes)
        values = _dequantized(blocks, tensor, slice(None) if rows is None else rows, *bounds[-1])
        return values if len(bounds) == 2 else values[0]

    def read(self, name: str, bounds: Bounds) -> np.ndarray:
        """A float32 slice in the half-split RoPE convention; Gemma's norms without the +1."""
        rows = self._rows(name, *bounds[0]) if len(bounds) == 2 else None
        values = self._values(name, bounds, rows)
        if self.config.norm_plus_one and name.endswith("norm.weight"):
            return values - 1
        return values


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a GGUF file as plain Python values (tokenizer, template, sizes).

    Raises UserError naming file and problem.
    """
    return read_header(path).metadata
