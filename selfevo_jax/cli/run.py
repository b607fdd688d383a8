"""`selfevo run`: a method, its rounds, their stages; goes on where it stopped."""

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from selfevo_jax.cli.common import nothing_left, verb
from selfevo_jax.errors import UserError

PREFIX = "--config."
OPTIONS = (
    "--config", "--workdir", "--cluster", "--hosts", "--host", "--profile", "--dry-run", PREFIX
)  # fmt: skip


def add(verbs) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "run",
        act,
        "Run a method, or go on with an interrupted run. What its workdir holds is not done again.",
        "selfevo run --config=configs/quickstart.py --workdir=a --config.learn.lr=1e-5",
    )
    parser.allow_abbrev = False
    parser.add_argument("--config", required=True, metavar="FILE.py[:ARG]", help="what to run")
    parser.add_argument(
        "--workdir",
        required=True,
        metavar="DIR",
        help="where everything is kept: a folder | gs://...",
    )
    parser.add_argument(
        "--cluster", metavar="WHERE", help="several hosts: auto | slurm | HOST:PORT of host 0"
    )
    parser.add_argument("--hosts", type=int, help="with --cluster=HOST:PORT: how many there are")
    parser.add_argument("--host", type=int, help="with --cluster=HOST:PORT: which one this is")
    parser.add_argument(
        "--profile", type=int, metavar="STEPS", help="trace so many steps of each fit"
    )
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
    if arguments.profile is not None:
        overrides.append(f"learn.profile_steps={arguments.profile}")
    nothing_left(others, OPTIONS)
    from selfevo_jax.config import load_config, plain

    config = load_config(arguments.config, overrides)
    from selfevo_jax.evolve.launch import check_config, launch
    from selfevo_jax.evolve.progress import Progress
    from selfevo_jax.parallel import maintenance
    from selfevo_jax.parallel.distributed import agreed, first, joined
    from selfevo_jax.remote.mirror import copy_of, workplace
    from selfevo_jax.report.track import tracked

    check_config(config)  # before a tracker or a file hears of it
    dry_run, cluster = arguments.dry_run, _cluster(arguments)
    options = [f"--config={arguments.config}", f"--workdir={arguments.workdir}"]
    command = shlex.join(["selfevo", "run", *options, *(PREFIX + text for text in overrides)])
    with joined(cluster), maintenance.watched():
        progress = Progress(quiet=not first())
        track = config.track if first() and not dry_run else ""
        place = copy_of if dry_run else workplace
        with place(arguments.workdir, progress.say) as workdir:
            with tracked(track, workdir, plain(config)):
                launch(config, workdir, progress, command=command, dry_run=dry_run)
            if not dry_run:
                written = agreed(lambda: _report(workdir))
                progress.say(f"finished: {written}")
    return 0


def _report(workdir: Path) -> str:
    from selfevo_jax.cli.report import write

    return ", ".join(map(str, write(workdir)))


def _cluster(arguments: argparse.Namespace):
    """What --cluster, --hosts and --host say; None for a run on this machine alone."""
    from selfevo_jax.parallel.cluster import Cluster

    if arguments.cluster is not None:
        return Cluster(arguments.cluster, arguments.hosts, arguments.host)
    if arguments.hosts is not None or arguments.host is not None:
        raise UserError("--hosts and --host go with --cluster=HOST:PORT of host 0")
    return None


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
