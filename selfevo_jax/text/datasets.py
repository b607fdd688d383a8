"""Rows of a data source in the field's formats: a file, a Hugging Face dataset, or TFDS.

    train.jsonl             JSON lines; see `text.data_files`
    hf:ORG/NAME[:SPLIT]     through `datasets`; a local folder serves as a name too
    tfds:NAME[:SPLIT]       through `tensorflow_datasets`, random access without tensorflow; a
                            prepared folder (.../name/config/version) serves as a name too

The split is `train` where none is given. The libraries are imported only here and only when asked
for, and no dataset's own code is run.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.text.data_files import Row, format_at, read_numbered, to_example

_LIBRARIES = {"hf": ("datasets", "datasets"), "tfds": ("tensorflow_datasets", "selfevo_jax[tfds]")}


def numbered_rows(source: str | Path) -> Iterator[tuple[int, Row]]:
    """(number from 1, row) of every row of a source, as it stands there.

    Raises UserError for a library that is not installed, a dataset or split that is not there, and
    as `data_files.read_numbered` does.
    """
    kind, colon, name = str(source).partition(":")
    if not colon or kind not in _LIBRARIES:
        yield from read_numbered(source)
        return
    name, split = _split(name)
    rows = (_from_hf if kind == "hf" else _from_tfds)(name, split, str(source))
    for number, row in enumerate(rows, start=1):
        yield number, {key: _plain(value) for key, value in row.items() if value is not None}


def detected(source: str | Path) -> str:
    """The format of a source (a key of `data_files.FORMATS`), by its first row."""
    for number, row in numbered_rows(source):
        return format_at(row, f"{source}:{number}")
    raise UserError(f"{source} holds no rows")


def read_examples(source: str | Path) -> Iterator[Row]:
    """Rows of a source in any known format, as {"id", "messages", "completions"}.

    The first row decides the format, and every further row must have it. The id is the row's
    `id` or `uid`, or the first 16 hex digits of the SHA-256 of the row's canonical JSON. Raises
    UserError naming source:line, also for an id that came before.
    """
    seen: dict[str, int] = {}
    format_: str | None = None
    for number, row in numbered_rows(source):
        place = f"{source}:{number}"
        found = format_at(row, place)
        format_ = format_ or found
        if found != format_:
            raise UserError(f"{place}: a {found} row in a file of {format_} rows; split the file")
        example = to_example(row, format_, place)
        if example["id"] in seen:
            raise UserError(
                f"{place}: the id {example['id']!r} is that of line {seen[example['id']]} already; "
                "remove the repeated row or give it another id"
            )
        seen[example["id"]] = number
        yield example


def _split(name: str) -> tuple[str, str]:
    before, colon, split = name.rpartition(":")
    return (before, split) if colon else (name, "train")


def _library(kind: str, source: str) -> ModuleType:
    module, package = _LIBRARIES[kind]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(f"{source} needs {module}: pip install {package}") from error


def _from_hf(name: str, split: str, source: str) -> Any:
    datasets = _library("hf", source)
    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{source} cannot be read: {_first_line(error)}") from error


def _from_tfds(name: str, split: str, source: str) -> Any:
    tfds = _library("tfds", source)
    try:
        folder = Path(name).is_dir()
        builder = tfds.builder_from_directory(name) if folder else tfds.builder(name)
        data = builder.as_data_source(split)
    except (OSError, ValueError, AssertionError, tfds.core.DatasetNotFoundError) as error:
        raise UserError(f"{source} cannot be read: {_first_line(error)}") from error
    return (data[index] for index in range(len(data)))


def _plain(value: Any) -> Any:
    """Bytes as text, arrays as lists, so that a row is what its JSON would be."""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, dict):
        columns = {key: _plain(inner) for key, inner in value.items()}
        lengths = {len(column) for column in columns.values() if isinstance(column, list)}
        if len(lengths) == 1 and all(isinstance(column, list) for column in columns.values()):
            # TFDS keeps a sequence of dicts as a dict of sequences.
            rows = zip(*columns.values(), strict=True)
            return [dict(zip(columns, row, strict=True)) for row in rows]
        return columns
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
