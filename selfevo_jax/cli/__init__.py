"""`selfevo`: one command, a verb each. A user's mistake is one line on stderr and exit status 2."""

import argparse
import os
import sys
from collections.abc import Sequence

from selfevo_jax.cli import (
    compare,
    compile,
    completion,
    data,
    doctor,
    env,
    evaluate,
    export,
    fetch,
    import_,
    judge,
    merge,
    push,
    report,
    run,
    sample,
    serve,
)
from selfevo_jax.cli.common import Parser
from selfevo_jax.cli.interrupts import insistent_interrupts
from selfevo_jax.errors import UserError
from selfevo_jax.parallel.preemption import Preempted
from selfevo_jax.parallel.xla_flags import set_gpu_flags

COMMANDS = (
    run, sample, serve, judge, evaluate, report, compare,
    data, import_, export, fetch, push, merge, compile, doctor, env, completion,
)  # fmt: skip
MISTAKE, INTERRUPTED, PREEMPTED = 2, 130, 143


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = Parser(
        prog="selfevo",
        description="Train language models on what they themselves produce.",
        epilog="example:\n  selfevo run --config=configs/quickstart.py --workdir=runs/quickstart",
    )
    verbs = top.add_subparsers(title="commands", dest="verb", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(verbs)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 2 for a mistake, 130 when interrupted, 143
    when told to stop by SIGTERM."""
    try:
        arguments, rest = parser().parse_known_args(argv)
        set_gpu_flags(os.environ)
        with insistent_interrupts():
            return arguments.act(arguments, rest)
    except UserError as error:
        from selfevo_jax.text.terminal import escape_controls  # it may quote a file, or a template

        print(f"error: {escape_controls(str(error))}", file=sys.stderr)
        return MISTAKE
    except (KeyboardInterrupt, Preempted) as error:
        told, status = (
            ("told to stop", PREEMPTED)
            if isinstance(error, Preempted)
            else ("interrupted", INTERRUPTED)
        )
        kept = "everything finished is kept, and the same command goes on from here"
        print(f"{told}; {kept}", file=sys.stderr)
        return status
    except BrokenPipeError:
        sys.stderr.close()
        return 1
