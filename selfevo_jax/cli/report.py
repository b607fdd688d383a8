"""`selfevo report`: summary.json and report.html of a run, also of one that is not finished."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfevo_jax.cli.common import nothing_left, verb
from selfevo_jax.errors import UserError


def add(verbs: Any) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "report",
        act,
        "Write the page of a run, or serve it while the run goes on. Beside report.html lies "
        "summary.json, with the same figures.",
        "selfevo report runs/quickstart --live",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the workdir of a run")
    parser.add_argument(
        "--live", action="store_true", help="serve the page on 127.0.0.1 and follow the run"
    )
    parser.add_argument("--port", type=int, default=0, help="of the served page (any free one)")


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    workdir = arguments.run
    if arguments.live:
        return follow(workdir, arguments.port)
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is not the workdir of a run: it has no config.json")
    for path in write(workdir):
        print(path)
    return 0


def follow(workdir: Path, port: int) -> int:
    """Serves the page until it is interrupted. Raises UserError where there is no folder."""
    from selfevo_jax.report.live import LiveServer

    if not workdir.is_dir():
        raise UserError(f"{workdir} is no folder; give the --workdir of a run")
    with LiveServer(workdir, port) as server:
        print(f"{server.url} follows {workdir}; Ctrl-C stops it", flush=True)
        server.serve_forever()
    return 0


def write(workdir: Path) -> tuple[Path, Path]:
    """Writes both files; returns where they are."""
    from selfevo_jax.report.page import write_page
    from selfevo_jax.report.summary import write_summary

    return write_summary(workdir), write_page(workdir)
