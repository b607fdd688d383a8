"""`selfevo run`: a method, its rounds, their stages; goes on where it stopped."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from selfevo_jax.cli.common import nothing_left, verb

PREFIX = "--config."
OPTIONS = ("--config", "--workdir", "--dry-run", PREFIX)


def add(verbs) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "run",
        act,
        "Run a method, or go on with an interrupted run of the same workdir.",
        "selfevo run --config=configs/quickstart.py --config.learn.lr=1e-5 --workdir=runs/a",
    )
    parser.allow_abbrev = False
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="what to run")
    parser.add_argument("--workdir", required=True, type=Path, help="where everything is kept")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--config.KEY",
        dest="example_of_an_override",
        metavar="VALUE",
        help="overrides one setting of the config file, as often as needed",
    )


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    overrides, others = split_overrides(rest)
    nothing_left(others, OPTIONS)
    from selfevo_jax.config import load_config, plain

    config = load_config(arguments.config, overrides)
    from selfevo_jax.evolve.launch import launch
    from selfevo_jax.evolve.progress import Progress
    from selfevo_jax.report.track import tracked

    progress = Progress()
    options = [f"--config={arguments.config}", f"--workdir={arguments.workdir}"]
    command = shlex.join(["selfevo", "run", *options, *(PREFIX + text for text in overrides)])
    track = "" if arguments.dry_run else config.track
    with tracked(track, arguments.workdir, plain(config)):
        launch(config, arguments.workdir, progress, command=command, dry_run=arguments.dry_run)
    if not arguments.dry_run:
        from selfevo_jax.cli.report import write

        summary, page = write(arguments.workdir)
        progress.say(f"finished: {summary}, {page}")
    return 0


def split_overrides(rest: Sequence[str]) -> tuple[list[str], list[str]]:
    """(['learn.lr=1e-5', ...], other arguments); `--config.a.b VALUE` is as good as `=VALUE`."""
    overrides: list[str] = []
    others: list[str] = []
    for text in rest:
        if text.startswith(PREFIX):
            overrides.append(text.removeprefix(PREFIX))
        elif overrides and "=" not in overrides[-1]:
            overrides[-1] += f"={text}"
        else:
            others.append(text)
    return overrides, others
