"""`selfevo import`: files that the five published systems wrote, read into records."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from selfevo_jax.cli.common import nothing_left, verb

FORMATS = ("elite", "meteor", "reflectevo", "refeval", "active")
SHAPES = ("raw", "d_plus", "d_plus_minus", "d_pref")


def add(verbs) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "import",
        act,
        "Read a published system's file into records. Each kind of record gets a file of its own.",
        "selfevo import --format=reflectevo example_D+.jsonl --out=records",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="with --to also RUN, or records")
    parser.add_argument("--format", required=True, choices=FORMATS, help="whose file it is")
    parser.add_argument("--out", required=True, type=Path, help="a folder that does not exist yet")
    aligned = "refeval, meteor: whose rows FILE is aligned with; again for more files, in order"
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", action="append", default=[], help=aligned
    )
    parser.add_argument("--to", choices=SHAPES, help="reflectevo: write a published FILE instead")


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    if arguments.to:
        return _write(arguments)
    from selfevo_jax.evolve.importing.reading import import_file

    form, file = arguments.format, arguments.file
    report = import_file(form, file, arguments.out, arguments.prompts)
    for shape, number in report.rows.items():
        print(f"{file}: {number} rows of {form} ({shape})")
    for kind, number in report.records.items():
        again = report.repeated[kind]
        print(f"{arguments.out / kind}.jsonl: {number}" + (f", {again} repeated" if again else ""))
    return 0


def _write(arguments: argparse.Namespace) -> int:
    from selfevo_jax.errors import UserError
    from selfevo_jax.evolve.importing.writing import write_shape

    if arguments.format != "reflectevo":
        raise UserError("--to writes the shapes of --format=reflectevo only")
    number, left = write_shape(arguments.file, arguments.to, arguments.out)
    print(f"{arguments.out}: {number} rows of {arguments.to}")
    for why, count in left.items():
        print(f"not written: {count} {why}")
    return 0
