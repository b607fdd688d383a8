"""`selfevo env`: versions and devices, made for pasting into a bug report."""

import argparse
import os
import platform
from collections.abc import Sequence

from selfevo_jax.cli.common import nothing_left, verb


def add(verbs) -> None:
    """Adds the command."""
    verb(verbs, "env", act, "Print versions and devices for a bug report.", "selfevo env")


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    import jax

    from selfevo_jax.evolve.launch import versions
    from selfevo_jax.weights.storage import cache_folder

    for name, version in versions().items():
        print(f"{name}: {version}")
    print(f"system: {platform.platform()}, {os.cpu_count()} cores")
    print(f"devices: {', '.join(device.device_kind for device in jax.devices())}")
    print(f"cache: {cache_folder()}")
    return 0
