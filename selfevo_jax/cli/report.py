"""`selfevo report`: summary.json and report.html of a run, also of one that is not finished."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from selfevo_jax.cli.common import nothing_left, verb
from selfevo_jax.errors import UserError


def add(verbs) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "report",
        act,
        "Write summary.json and report.html of a run.",
        "selfevo report runs/quickstart",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the workdir of a run")


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    workdir = arguments.run
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is not the workdir of a run: it has no config.json")
    for path in write(workdir):
        print(path)
    return 0


def write(workdir: Path) -> tuple[Path, Path]:
    """Writes both files; returns where they are."""
    from selfevo_jax.report.page import write_page
    from selfevo_jax.report.summary import write_summary

    return write_summary(workdir), write_page(workdir)
