"""Compiled programs kept on disk, so that a second start does not compile again."""

from __future__ import annotations

from pathlib import Path

import jax


def enable_compile_cache(folder: str | Path) -> None:
    """Keep every program that takes half a second or more to compile under `folder`."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
