"""`selfevo`: one command, a verb each. A user's mistake is one line on stderr and exit status 2."""

import argparse
import sys
from collections.abc import Sequence

from selfevo_jax.cli import (
    compile,
    completion,
    data,
    env,
    evaluate,
    export,
    judge,
    push,
    report,
    run,
    sample,
    serve,
)
from selfevo_jax.cli.interrupts import insistent_interrupts
from selfevo_jax.errors import UserError

COMMANDS = (
    run, sample, serve, judge, evaluate, report, data, export, push, compile, env, completion,
)  # fmt: skip
MISTAKE, INTERRUPTED = 2, 130


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="selfevo",
        description="Train language models on what they themselves produce.",
        epilog="example: selfevo run --config=configs/quickstart.py --workdir=runs/quickstart",
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(verbs)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status (0, 2 for a mistake, 130 when interrupted)."""
    arguments, rest = parser().parse_known_args(argv)
    try:
        with insistent_interrupts():
            return arguments.act(arguments, rest)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print(
            "interrupted; everything finished is kept, and the same command goes on from here",
            file=sys.stderr,
        )
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1
