"""Where the rows of a task come from: files below a data folder, one file, the hub, or TFDS.

    --data DIR          the folder that holds each task's files (`gsm8k/test.jsonl`, ...)
    --data FILE         these rows instead of the split that is asked for
    --data hf           the data set that the task declares, through `datasets`
    --data hf:ORG/SET[::CONFIG]   another one
    --data tfds:NAME    through TensorFlow Datasets

Rows are checked one by one: the first bad one is named by file and line. What was read is
described by hashes or versions, which results carry and a resumed evaluation compares.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.task import SPLITS, split_of

Row = Mapping[str, Any]
Kinds = type | tuple[type, ...]
DATA = "SELFEVO_DATA"  # environment variable: the data folder where none is given
MEND = "mend the row or take it out"
T = TypeVar("T")


@dataclass(frozen=True)
class Data:
    """The declaration of a task's rows.

    `files`: split -> file or glob below the data folder; rows of a glob take turns between its
    files. `fields`: the needed fields with their JSON types. `source`: where to get them, and the
    licence. `hub`: (data set, config or configs) on the Hugging Face hub with the same fields,
    `hub_splits` our split -> the split there and in TFDS. `unpack` turns one file's rows into those
    of the task (a JSON file of instances, say), `fetch` finds a file that no data folder has to
    hold, and `keep` picks rows. With `divide`, the splits share a file and the text it gives
    decides a row's split.
    """

    files: Mapping[str, str]
    fields: Mapping[str, Kinds]
    source: str
    hub: tuple[str, str | tuple[str, ...] | None] | None = None
    hub_splits: Mapping[str, str] = field(default_factory=dict)
    unpack: Callable[[Row, str], Iterable[Row]] | None = None
    fetch: Callable[[], Path] | None = None
    keep: Callable[[Row], bool] | None = None
    divide: Callable[[Row], str] | None = None


def divided(file: str) -> dict[str, str]:
    """`Data.files` of splits that share one file."""
    return dict.fromkeys(SPLITS, file)


@dataclass(frozen=True)
class Rows:
    """Checked rows with their places ("file:line"), and what they were read from."""

    rows: tuple[Row, ...]
    places: tuple[str, ...]
    origin: Mapping[str, str]


def read_split(name: str, data: Data, split: str, where: str | Path | None) -> Rows:
    """All rows of a task's split. `where`: see the module; None means the folder in SELFEVO_DATA.

    Raises UserError for missing data (with how to get it) and for the first bad row.
    """
    if split not in data.files:
        raise UserError(f"{name} has no split {split!r}; it has {', '.join(data.files)}")
    text = _text(where)
    if text == "hf" or text.startswith("hf:"):
        found, origin = _from_hub(name, data, split, text)
    elif text.startswith("tfds:"):
        found, origin = _from_tfds(name, data, split, text.removeprefix("tfds:"))
    else:
        files = _files(name, data, split, text)
        found = _take_turns([list(_file_rows(path, data)) for path in files])
        origin = {_short(path, text): _sha256(path) for path in files}
    kept = list(_kept(name, data, found, None if _is_file(text) else split))
    if not kept:
        raise UserError(f"{name}: {', '.join(origin)} holds no rows for it")
    places, rows = zip(*kept, strict=True)
    return Rows(rows, tuple(_below(place, text) for place in places), origin)


def _kept(name: str, data: Data, found: Iterable[tuple[str, Row]], split: str | None):
    """(place, row) of the checked rows that are kept; all of a divided file for no split."""
    for place, row in found:
        check_fields(name, data, row, place)
        if data.keep is not None and not of_row(data.keep, row, place):
            continue
        text = None if data.divide is None or split is None else of_row(data.divide, row, place)
        if text is None or split_of(text) == split:
            yield place, row


def of_row(make: Callable[[Row], T], row: Row, place: str) -> T:
    """What a task makes of a row. Raises UserError naming the place of one that it cannot use."""
    try:
        return make(row)
    except ValueError as error:
        raise UserError(f"{place}: {error}; {MEND}") from error
    except (AttributeError, LookupError, TypeError) as error:  # another kind of thing inside
        shape = f"{type(error).__name__}: {error}"
        raise UserError(f"{place}: the row is not of the task's shape ({shape}); {MEND}") from error


def check_fields(name: str, data: Data, row: Row, place: str) -> None:
    """Raise a UserError naming the first needed field that is absent or of another type."""
    for key, kind in data.fields.items():
        if key not in row:
            raise UserError(
                f"{place}: the field {key!r} is missing; {name} needs {', '.join(data.fields)}"
            )
        value, kinds = row[key], kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise UserError(f"{place}: the field {key!r} holds a {type(value).__name__}")


def wanted(data: Data) -> str:
    """What to put where, and where to get it: the end of a message about missing data."""
    files = " and ".join(sorted(set(data.files.values())))
    hub = f"; or --data hf ({data.hub[0]})" if data.hub else ""
    return f"{files} (rows with {', '.join(data.fields)}; source: {data.source}){hub}"


def _files(name: str, data: Data, split: str, where: str) -> list[Path]:
    if _is_file(where):
        return [Path(where)]
    if not where and data.fetch is not None:
        return [data.fetch()]
    if not where:
        raise UserError(f"{name} needs a data folder (--data, or {DATA}) with {wanted(data)}")
    pattern = data.files[split]
    found = sorted(Path(where).glob(pattern)) if "*" in pattern else [Path(where) / pattern]
    if found and all(path.is_file() for path in found):
        return found
    if data.fetch is not None:
        return [data.fetch()]
    raise UserError(f"{name}: no file {Path(where) / pattern}; {wanted(data)}")


def is_one_file(where: str | Path | None) -> bool:
    """Whether --data names a file, whose rows stand for every split."""
    return _is_file(_text(where))


def file_below(name: str, file: str, holds: str, where: str | Path | None) -> Path:
    """A file that only a data folder has: that of --data, or else that of SELFEVO_DATA.

    Raises UserError saying what the file `holds` where neither folder has it.
    """
    folders = [Path(folder) for folder in (where, os.environ.get(DATA)) if folder]
    found = next((folder / file for folder in folders if (folder / file).is_file()), None)
    if found is None:
        raise UserError(
            f"{name} needs {file} ({holds}) in a folder: that of --data, or of {DATA} where "
            "--data is a file, hf or tfds"
        )
    return found


def _text(where: str | Path | None) -> str:
    return str(where or os.environ.get(DATA, ""))


def _is_file(where: str) -> bool:
    return bool(where) and Path(where).is_file()


def _take_turns(files: list[list[tuple[str, Row]]]) -> Iterator[tuple[str, Row]]:
    """One row of each file, then the next of each: any beginning has of all of them."""
    for place in range(max(map(len, files), default=0)):
        for rows in files:
            if place < len(rows):
                yield rows[place]


def _file_rows(path: Path, data: Data) -> Iterator[tuple[str, Row]]:
    for place, row in raw_rows(path):
        if data.unpack is None:
            yield place, row
        else:
            parts = of_row(lambda row, place=place: list(data.unpack(row, place)), row, place)
            yield from ((f"{place}#{number}", part) for number, part in enumerate(parts, start=1))


def jsonl(rows: Iterable[Row]) -> str:
    """The text of a JSON-lines file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def raw_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """("file:line", row) of a JSON-lines, JSON, CSV, TSV or Parquet file, by its ending."""
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix in (".csv", ".tsv"):
        text = _decoded(path.read_bytes(), str(path))
        reader = csv.DictReader(io.StringIO(text), delimiter="," if path.suffix == ".csv" else "\t")
        yield from ((f"{path}:{reader.line_num}", dict(row)) for row in reader)
    else:
        yield from ((place, _object(value, place)) for place, value in raw_values(path))


def raw_values(path: Path) -> Iterator[tuple[str, Any]]:
    """("file:line", value) of each line of a JSON-lines file, or of what a .json file holds.

    An element of a .json array is at "file:line#number", line being where it begins.
    """
    if path.suffix == ".json":
        yield from _document(_decoded(path.read_bytes(), str(path)), str(path))
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"{path}:{number}"
            if line.strip():
                yield place, _json(_decoded(line, place), place)


_BETWEEN = re.compile(r"[\s,]*")  # what stands before an element of an array


def _document(text: str, path: str) -> Iterator[tuple[str, Any]]:
    value = _json(text, path)
    if not isinstance(value, list):
        yield f"{path}:1", value
        return
    end = text.index("[") + 1
    decoder, line = json.JSONDecoder(), 1 + text.count("\n", 0, end)
    for number, element in enumerate(value, start=1):
        start = _BETWEEN.match(text, end).end()
        line += text.count("\n", end, start)
        yield f"{path}:{line}#{number}", element
        end = decoder.raw_decode(text, start)[1]
        line += text.count("\n", start, end)


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(f"{path}: reading Parquet needs pyarrow; pip install datasets") from error
    for number, row in enumerate(parquet.read_table(path).to_pylist(), start=1):
        yield f"{path}:{number}", row


def _decoded(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text ({error.reason}); save it as UTF-8") from error


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{place}: not a JSON object ({error}); one object per line") from error


def _object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{place}: {type(value).__name__} where a JSON object belongs")
    return value


def _from_hub(name: str, data: Data, split: str, where: str):
    set_name, _, config = where.removeprefix("hf").removeprefix(":").partition("::")
    if not set_name and data.hub is None:
        raise UserError(f"{name} declares no data set on the hub; give --data hf:ORG/SET[::CONFIG]")
    configs = (config or None,)
    if not set_name:
        set_name, declared = data.hub
        configs = declared if isinstance(declared, tuple) else (declared,)
    rows, origin = [], {}
    for config in configs:
        found, prints = _from_config(name, set_name, config, data.hub_splits.get(split, split))
        rows, origin = rows + found, origin | prints
    return rows, origin


def _from_config(name: str, set_name: str, config: str | None, wanted_split: str):
    try:
        import datasets
    except ImportError as error:
        raise UserError("reading from the hub needs `pip install datasets`") from error
    try:
        loaded = datasets.load_dataset(set_name, config, split=wanted_split)
    except (OSError, RuntimeError, ValueError, datasets.exceptions.DatasetsError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name}: hf:{set_name} split {wanted_split} cannot be read ({first}); "
            "check the name and the network, or give a local folder"
        ) from error
    place = f"hf:{set_name}{'::' + config if config else ''}/{wanted_split}"
    rows = [(f"{place}:{number}", dict(row)) for number, row in enumerate(loaded)]
    return rows, {place: loaded._fingerprint}


def _from_tfds(name: str, data: Data, split: str, where: str):
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"{name}: tfds:{where} needs `pip install tensorflow-datasets`; "
            "or give a local folder or --data hf"
        ) from error
    wanted_split = data.hub_splits.get(split, split)
    place = f"tfds:{where}/{wanted_split}"
    try:
        # The format that is read by place, without TensorFlow.
        builder = tensorflow_datasets.builder(where, file_format="array_record")
        builder.download_and_prepare()
        source = builder.as_data_source(split=wanted_split)
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name}: {place} cannot be read ({first}); check the name and the network, "
            "or give a local folder"
        ) from error
    rows = [(f"{place}:{number}", _plain(row)) for number, row in enumerate(source)]
    return rows, {place: str(builder.info.version)}


def _plain(value: Any) -> Any:
    """TFDS gives bytes and numpy values; rows hold JSON values."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return _plain(value.tolist()) if hasattr(value, "tolist") else value


def _short(path: Path, where: str) -> str:
    """A file's name as results show it: below the data folder, so that machines agree."""
    folder = Path(where or ".")
    below = path.is_relative_to(folder) and path != folder
    return str(path.relative_to(folder)) if below else path.name


def _below(place: str, where: str) -> str:
    """A place with its file's name made short."""
    if place.startswith(("hf:", "tfds:")):
        return place
    path, colon, line = place.rpartition(":")
    return _short(Path(path), where) + colon + line


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
