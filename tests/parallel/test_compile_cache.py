"""Compiled programs are found again by the next process."""

import os
import random
import subprocess
import sys

PROGRAM = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from selfevo_jax.parallel.compile_cache import keep_compiled
keep_compiled(Path(sys.argv[1]))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.jit(lambda x: jnp.linalg.inv(x @ x.T))(2 * jnp.eye(8)).sum())
"""


def start(folder, **environment):
    known = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder], env=known | environment, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    return float(done.stdout), done.stderr


def test_the_folder_is_used_unless_the_user_chose_another(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    start(ours, JAX_COMPILATION_CACHE_DIR=str(theirs))
    assert any(theirs.iterdir()) and not ours.exists()
    start(ours)
    assert any("inv" in path.name or "lambda" in path.name for path in ours.iterdir())


def test_damaged_programs_are_compiled_again(tmp_path):
    wanted, _ = start(tmp_path)
    draw = random.Random(0)
    for path in [path for path in tmp_path.iterdir() if path.name.endswith("-cache")]:
        whole = bytearray(path.read_bytes())
        whole[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(whole)
    assert start(tmp_path)[0] == wanted
    for path in [path for path in tmp_path.iterdir() if path.name.endswith("-cache")]:
        path.write_bytes(path.read_bytes()[:100])
    given, said = start(tmp_path)
    assert given == wanted and "compilation cache" in said
