"""`selfevo export`: what a run trained, as a model or as an adapter that others load."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfevo_jax.cli.common import nothing_left, verb

FORMATS = ("safetensors", "peft", "gguf")
DTYPES = ("float32", "bfloat16", "float16")


def add(verbs: Any) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "export",
        act,
        "Write a trained policy for others, with its model card. As merged safetensors, as a PEFT "
        "adapter, or as a GGUF file.",
        "selfevo export runs/quickstart --out=my-model --format=gguf",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the workdir of a run")
    parser.add_argument("--out", required=True, type=Path, help="a folder that does not exist yet")
    parser.add_argument("--policy", help="such as round_01 (the best one of the run)")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="(%(default)s)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DTYPES[0], help="of merged weights (%(default)s)"
    )
    parser.add_argument("--license", metavar="SPDX", help="such as apache-2.0, for the model card")


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    from selfevo_jax.evolve.exporting import export, find_trained
    from selfevo_jax.evolve.progress import Progress
    from selfevo_jax.report.card import model_card

    progress = Progress()
    trained = find_trained(arguments.run, arguments.policy)
    card = model_card(arguments.run, trained.name, arguments.format, arguments.license)
    written = export(
        trained, arguments.out, arguments.format, progress, card=card, dtype=arguments.dtype
    )
    progress.say(f"written: {written}")
    return 0
