"""A published file to a folder of records: one file per kind, every record once, all counted."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.data import raw_rows, raw_values
from selfevo_jax.evolve.files import commit, sync
from selfevo_jax.evolve.importing import active, elite, meteor, refeval, reflectevo
from selfevo_jax.evolve.importing.line import Line
from selfevo_jax.evolve.importing.shape import Shape, shape_of
from selfevo_jax.evolve.journal import compact_json
from selfevo_jax.records import Example, Pair, Prompt, Record, Row, Sample, Verdict

FORMATS: Mapping[str, tuple[Shape, ...]] = {
    "elite": elite.SHAPES,
    "meteor": meteor.SHAPES,
    "reflectevo": reflectevo.SHAPES,
    "refeval": refeval.SHAPES,
    "active": active.SHAPES,
}
KINDS: Mapping[str, type[Record]] = {
    "prompts": Prompt, "samples": Sample, "verdicts": Verdict, "pairs": Pair,
    "examples": Example, "rows": Row,
}  # fmt: skip


class Aligned(NamedTuple):
    """Files whose rows name no question: how one is read beside the question in its row."""

    read: Callable[[Any, Prompt, str], Iterator[Record]]
    nameless: Callable[[Any], bool]  # whether a row is one of such a file
    why: str


ALIGNED: Mapping[str, Aligned] = {
    "meteor": Aligned(meteor.aligned, meteor.nameless, "a guideline names no question"),
    "refeval": Aligned(refeval.aligned, refeval.nameless, "samples and references name no prompt"),
}
NAMES = {kind: name for name, kind in KINDS.items()}
LISTED = 20  # bad rows that are named one by one


@dataclass
class Report:
    """What was read: rows by shape, records by kind, and those that were there already."""

    rows: Counter[str] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)


def import_file(form: str, path: Path, out: Path, prompts: Sequence[Path] = ()) -> Report:
    """Reads `path`, a file of the format `form`, into the new folder `out`.

    `prompts` are the files with whose rows, in this order, RefEval's samples and references or
    METEOR's guidelines are aligned. Raises UserError that names every bad row, and for an `out`
    that exists; nothing is written then.
    """
    if out.exists():
        raise UserError(f"{out} exists already; give another --out")
    report = Report()
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        _write(read_file(form, path, prompts, report), part, report)
    except UserError:
        shutil.rmtree(part)
        raise
    commit(part, out)
    return report


def _write(records: Iterable[Record], folder: Path, report: Report) -> None:
    """Each record once, in the file of its kind."""
    seen: dict[str, set[str]] = {name: set() for name in KINDS}
    with ExitStack() as stack:
        files: dict[str, IO[str]] = {}
        for record in records:
            name = NAMES[type(record)]
            if record.id in seen[name]:
                report.repeated[name] += 1
                continue
            if name not in files:
                files[name] = stack.enter_context((folder / f"{name}.jsonl").open("w"))
            files[name].write(compact_json(record.to_json()) + "\n")
            seen[name].add(record.id)
            report.records[name] += 1
        for file in files.values():
            file.flush()
            sync(file.fileno())


def read_file(
    form: str, path: Path, prompts: Sequence[Path] = (), report: Report | None = None
) -> Iterator[Record]:
    """The records of all rows of a file; rows are counted in `report`.

    Raises UserError for a file without rows, and at the end for all bad rows together.
    """
    report, bad = report or Report(), []
    for place, value, question in _rows(form, path, prompts):
        try:
            shape, records = _read(form, place, value, question)
        except UserError as error:
            bad.append(str(error))
            continue
        report.rows[shape] += 1
        yield from records
    if bad:
        raise UserError(bad[0] + _more([text.partition(": ")[0] for text in bad[1:]]))
    if not report.rows:
        raise UserError(f"{path}: the file has no rows")


def _more(places: list[str]) -> str:
    if not places:
        return ""
    cut = ", ..." if len(places) > LISTED else ""
    return f"; {len(places)} more bad rows: {', '.join(places[:LISTED])}{cut}"


def _read(form: str, place: str, value: Any, question: Prompt | None) -> tuple[str, list[Record]]:
    """(shape, records) of one row; `question` is the prompt that an aligned row belongs to."""
    if question is not None:
        return "aligned with --prompts", list(ALIGNED[form].read(value, question, place))
    if form in ALIGNED and ALIGNED[form].nameless(value):
        raise UserError(f"{place}: {ALIGNED[form].why}; give --prompts FILE")
    if not isinstance(value, dict):
        raise UserError(f"{place}: a {type(value).__name__} where an object must be")
    shape = shape_of(value, FORMATS[form], place)
    return shape.name, list(shape.read(Line(value, place)))


def _rows(
    form: str, path: Path, prompts: Sequence[Path]
) -> Iterator[tuple[str, Any, Prompt | None]]:
    """(file:line, row, its prompt where the rows are aligned with a file of prompts)."""
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a file of the format {form}")
    if not prompts:
        yield from ((place, value, None) for place, value in _values(form, path))
        return
    if form not in ALIGNED:
        raise UserError(f"--prompts belongs to --format {' and '.join(ALIGNED)}, aligned by row")
    questions = [
        record for file in prompts for record in read_file(form, file) if isinstance(record, Prompt)
    ]
    rows = list(_values(form, path))
    if len(rows) != len(questions):
        files = ", ".join(map(str, prompts))
        raise UserError(f"{path} has {len(rows)} rows, {files} {len(questions)}: not aligned")
    yield from ((*row, question) for row, question in zip(rows, questions, strict=True))


def _values(form: str, path: Path) -> Iterator[tuple[str, Any]]:
    if form == "active" and path.suffix == ".txt":
        return active.blocks(path)
    return raw_values(path) if path.suffix in (".json", ".jsonl") else raw_rows(path)
