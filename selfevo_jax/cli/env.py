"""`selfevo env`: machine, versions, devices and settings, made for pasting into a bug report."""

import argparse
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import selfevo_jax
from selfevo_jax.cli.common import nothing_left, verb

# What changes how JAX computes; no variable that could hold a secret.
VARIABLES = ("JAX_PLATFORMS", "JAX_ENABLE_X64", "XLA_FLAGS", "LIBTPU_INIT_ARGS", "SELFEVO_CACHE")


def add(verbs) -> None:
    """Adds the command."""
    verb(
        verbs,
        "env",
        act,
        "Print what a bug report needs: machine, versions, devices.",
        "selfevo env",
    )


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    import jax

    from selfevo_jax.cli.doctor import describe, find_hardware
    from selfevo_jax.evolve.launch import versions

    for line in describe(find_hardware()):
        print(line)
    print("run.json: " + ", ".join(f"{name} {version}" for name, version in versions().items()))
    print(f"devices of JAX: {', '.join(device.device_kind for device in jax.devices())}")
    for name in VARIABLES:
        if name in os.environ:
            print(f"{name}={os.environ[name]}")
    print(f"commit: {_commit() or 'not a checkout'}")
    return 0


def _commit() -> str:
    """The commit of a checkout, with + where files differ from it; nothing of an installation."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--match="]
    root = Path(selfevo_jax.__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        return subprocess.run(command, cwd=root, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git here
        return ""
