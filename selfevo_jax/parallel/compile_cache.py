"""Compiled programs kept on disk, so that a second start does not compile again."""

from __future__ import annotations

from pathlib import Path

import jax


def keep_compiled(folder: Path) -> None:
    """Programs that take a tenth of a second or more to compile go into `folder`, unless the user
    has given JAX another one."""
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
