"""`selfevo fetch`: the workdir of a run that is kept in a bucket, as a folder here."""

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
        "fetch",
        act,
        "Copy a run's workdir from a bucket, as it was last saved. The run may go on.",
        "selfevo fetch gs://my-bucket/runs/a runs/a",
    )
    parser.add_argument("url", metavar="URL", help="the --workdir of the run")
    parser.add_argument("folder", type=Path, metavar="DIR", help="a new folder, or an older copy")


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    from selfevo_jax.remote.mirror import fetch, is_url

    url, folder = arguments.url, arguments.folder
    if not is_url(url):
        raise UserError(f"{url} is no URL such as gs://my-bucket/runs/a")
    if not fetch(url, folder):
        raise UserError(f"{url} holds no run: give the --workdir of one")
    print(f"{folder} is {url} as it was last saved")
    return 0
