"""Compiled programs are found again by the next process."""

import os
import subprocess
import sys

PROGRAM = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from selfevo_jax.parallel.compile_cache import keep_compiled
keep_compiled(Path(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: jnp.linalg.inv(x @ x.T))(jnp.eye(8)).block_until_ready()
"""


def start(folder, **environment):
    known = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    subprocess.run([sys.executable, "-c", PROGRAM, folder], env=known | environment, check=True)


def test_the_folder_is_used_unless_the_user_chose_another(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    start(ours, JAX_COMPILATION_CACHE_DIR=str(theirs))
    assert any(theirs.iterdir()) and not ours.exists()
    start(ours)
    assert any("inv" in path.name or "lambda" in path.name for path in ours.iterdir())
