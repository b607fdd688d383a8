"""`selfevo export`: what a run trained, as a model or as an adapter that others load."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from selfevo_jax.cli.common import nothing_left, verb

FORMATS = ("merged", "peft")


def add(verbs) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "export",
        act,
        "Write a policy of a run as a merged model (safetensors) or as a PEFT adapter.",
        "selfevo export runs/quickstart --out=my-model",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the workdir of a run")
    parser.add_argument("--out", required=True, type=Path, help="a folder that does not exist yet")
    parser.add_argument("--policy", help="such as round_01 (the best one of the run)")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="(%(default)s)")


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    from selfevo_jax.evolve.exporting import export
    from selfevo_jax.evolve.progress import Progress

    progress = Progress()
    written = export(arguments.run, arguments.out, arguments.policy, arguments.format, progress)
    progress.say(f"written: {written}")
    return 0
