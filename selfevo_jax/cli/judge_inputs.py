"""What `selfevo judge` is given: a run's samples or a file's outputs, and whose they are."""

import argparse
import dataclasses
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from selfevo_jax.cli.common import is_remote
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.files import read_json
from selfevo_jax.evolve.judging import (
    Candidates,
    file_candidates,
    read_references,
    run_candidates,
)
from selfevo_jax.judge.critique import KINDS

POINTWISE = "pointwise"
ALONE = (POINTWISE, *KINDS)  # protocols that look at one output at a time


def candidates_of(arguments: argparse.Namespace) -> list[Candidates]:
    """What a run's round or the file holds, with references from --reference-file where given."""
    path = Path(arguments.what)
    if not path.exists():
        raise UserError(f"{path} is neither a run, a file, `bench` nor `injection`")
    source = _signed(path, arguments) if path.is_dir() else file_candidates(path)
    found = list(islice(source, arguments.limit))
    if arguments.reference_file is None:
        return found
    references = read_references(arguments.reference_file)
    return [
        dataclasses.replace(given, references=references.get(given.id, given.references))
        for given in found
    ]


def _signed(workdir: Path, arguments: argparse.Namespace) -> Iterator[Candidates]:
    """The samples of a run, each by its model instead of its policy's name there.

    Its references are for comparing: an output that is marked alone is so without one, unless
    --reference-file gives it.
    """
    models = authors(workdir)
    for given in run_candidates(workdir, arguments.round, arguments.stage):
        outputs = tuple(
            dataclasses.replace(output, by=models.get(output.by or "", output.by))
            for output in given.outputs
        )
        references = () if arguments.protocol in ALONE else given.references
        yield dataclasses.replace(given, outputs=outputs, references=references)


def authors(workdir: Path) -> dict[str, str]:
    """The `full_name` of the model behind every policy and role of a run."""
    if not (workdir / "run.json").is_file():
        return {}
    run = read_json(workdir / "run.json")
    policies, roles = run.get("policies", {}), run.get("roles", {})
    trained = {
        name: full_name(run["model"], workdir / policy["adapter"] if policy["adapter"] else None)
        for name, policy in policies.items()
    }
    others = {
        name: full_name(role["model"] or run["model"], Path(role["from"]) if role["from"] else None)
        for name, role in roles.items()
    }
    return trained | others


def full_name(source: str, adapter: Path | None) -> str:
    """A model's name that does not depend on the folder one is in."""
    place = Path(source)
    whole = str(place.resolve()) if not is_remote(source) and place.exists() else source
    return whole if adapter is None else f"{whole}+{adapter.resolve()}"
