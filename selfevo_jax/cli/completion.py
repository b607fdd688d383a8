"""`selfevo completion`: what makes a shell complete the commands and their options."""

import argparse
from collections.abc import Sequence

from selfevo_jax.cli.common import nothing_left, verb


def add(verbs) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "completion",
        act,
        "Print what makes your shell complete commands and options.",
        'eval "$(selfevo completion bash)"',
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell that reads it")


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    import shtab

    from selfevo_jax.cli import parser

    print(shtab.complete(parser(), arguments.shell))
    return 0
