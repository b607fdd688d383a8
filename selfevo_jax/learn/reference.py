"""Log-probs of frozen policies, computed once and kept.

A file holds the sums of one policy (base weights, adapter, tokenizer, token weighting), named by
its hash; inside, each example stands under the hash of its own tokens. Another policy reads
another file and a changed example is not found, so a stale value cannot be used. No pickle.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from selfevo_jax.models.lora import Adapter
from selfevo_jax.parallel.distributed import agreed, on_host
from selfevo_jax.parallel.rules import path_name


def tree_hash(tree: Any) -> str:
    """SHA-256 over the names, shapes, types and bytes of a tree of host-readable arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = on_host(leaf)
        digest.update(f"{path_name(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def adapter_hash(adapter: Adapter | None) -> str:
    """Hash of an adapter's weights and scaling; of no adapter, the word `none`."""
    return "none" if adapter is None else f"{tree_hash(adapter.params)}*{adapter.scaling!r}"


class ReferenceSums:
    """Stored log-prob sums of one policy: example hash -> float32 [k]."""

    def __init__(self, folder: Path, policy: tuple[str, ...]):
        """`policy`: everything the sums depend on besides the example."""
        name = hashlib.sha256("\n".join(policy).encode()).hexdigest()[:16]
        self._path = Path(folder) / f"{name}.npz"
        self._sums = self._read()

    def missing(self, hashes: list[str]) -> set[str]:
        """Those of `hashes` that are not stored."""
        return set(hashes) - self._sums.keys()

    def add(self, hashes: list[str], sums_nk: np.ndarray) -> None:
        """Stores sums; the file is replaced in one move (with several hosts, by host 0)."""
        self._sums.update(zip(hashes, sums_nk, strict=True))
        agreed(self._write)

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_suffix(f".{os.getpid()}.tmp")
        names = sorted(self._sums)
        with unfinished.open("wb") as file:
            np.savez(
                file, examples=np.array(names, "S64"), sums=np.stack([self._sums[n] for n in names])
            )
        unfinished.replace(self._path)

    def table(self, hashes: list[str]) -> np.ndarray:
        """float32 [n, k] for the examples of these hashes; those not stored are NaN."""
        width = len(next(iter(self._sums.values())))
        nothing = np.full(width, np.nan, np.float32)
        return np.stack([self._sums.get(name, nothing) for name in hashes])

    def _read(self) -> dict[str, np.ndarray]:
        try:
            with np.load(self._path, allow_pickle=False) as stored:
                names = [name.decode() for name in stored["examples"]]
                return dict(zip(names, stored["sums"].astype(np.float32), strict=True))
        except FileNotFoundError:
            return {}
        except (zipfile.BadZipFile, EOFError, KeyError, ValueError):  # damaged: compute it again
            return {}
