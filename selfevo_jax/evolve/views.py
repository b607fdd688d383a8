"""Records as the input of a stage: alone, joined by id, filtered, or gathered in groups.

A view is lazy and is read again from its start as often as needed. Its rows are records, or tuples
of records whose ids lead from one to the next; a row is known by the id of its first record.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any, Generic, TypeVar

from selfevo_jax.evolve.keys import code_key
from selfevo_jax.evolve.stages import StageFolder, read_records
from selfevo_jax.records import Prompt, Record, Sample, Vector, Verdict, join

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class View:
    """Rows and what they come from. `inputs`: content hashes by name, None while not known yet.

    `count` is the number of rows, or the most there can be.
    """

    name: str
    inputs: Mapping[str, str | None]
    count: int
    read: Callable[[], Iterator[tuple[str, Any]]]
    grouped: bool = False

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self.read())

    def join(self, other: "Records", key: str = "") -> "View":
        """Rows with the record of `other` that belongs to each as one more element.

        Without `key`, by kind: the Prompt of the row; the Sample that the row's last Sample (or
        its Verdict) is about; the Verdict or Vector on the row's last Sample. With `key`, the field
        of the row's first record that holds the id. A row without a partner is a UserError.
        """
        own, others = (key, _named_by(other.kind)) if key else _keys(other.kind)

        def read() -> Iterator[tuple[str, Any]]:
            joined = join(self.read(), other, partial(_row_key, own), others)
            return ((name, (*_tuple(row), record)) for (name, row), record in joined)

        most = min(self.count, other.count) if self.grouped else self.count
        return View(self.name, {**self.inputs, **other.inputs}, most, read, self.grouped)

    def where(self, keep: Callable[[Any], bool]) -> "View":
        """The rows for which `keep` is true."""

        def read() -> Iterator[tuple[str, Any]]:
            return ((name, row) for name, row in self.read() if keep(row))

        inputs = {**self.inputs, f"where {self.name}": code_key(keep)}
        return View(self.name, inputs, self.count, read, self.grouped)

    def without(self, others: "View", field: str) -> "View":
        """The rows whose first record's id is in the `field` of no row of `others`."""

        def read() -> Iterator[tuple[str, Any]]:
            known = {_field(row, field) for row in others}
            return ((name, row) for name, row in self.read() if _field(row, "id") not in known)

        inputs = {**self.inputs, f"without {others.name}": field, **others.inputs}
        return View(self.name, inputs, self.count, read, self.grouped)

    def expand(self, function: Callable[[Any], Sequence[Any]], most: int) -> "View":
        """A row for each of the at most `most` texts that `function(row)` gives, as last element.

        Each of the new rows is asked about on its own; whose child a reply is does not change.
        """

        def read() -> Iterator[tuple[str, Any]]:
            for name, row in self.read():
                for text in function(row):
                    yield f"{name}:{text}", (*_tuple(row), text)

        inputs = {**self.inputs, f"expanded {self.name}": code_key(function)}
        return View(self.name, inputs, self.count * most, read)

    def groups(self, key: str = "prompt_id") -> "View":
        """Lists of rows whose first records agree in `key` and stand side by side; id: that key."""

        def read() -> Iterator[tuple[str, Any]]:
            grouped = groupby(self, key=lambda row: _field(row, key))
            return ((name, list(rows)) for name, rows in grouped)

        inputs = {**self.inputs, f"groups of {self.name}": key}
        return View(self.name, inputs, self.count, read, True)


@dataclass(frozen=True)
class Records(View, Generic[R]):
    """The output of a stage, in order."""

    kind: type[R] = field(kw_only=True)

    @property
    def hash(self) -> str | None:
        """The content hash; None while it is not known yet."""
        return self.inputs[self.name]


def records(
    name: str, kind: type[R], folder: StageFolder, content: str | None, count: int
) -> Records[R]:
    """The records in a stage's folder, which is read when they are iterated."""

    def read() -> Iterator[tuple[str, R]]:
        return ((record.id, record) for record in read_records(folder, kind))

    return Records(name, {name: content}, count, read, kind=kind)


def together(views: Iterable[View]) -> View:
    """The rows of one view after those of another."""
    views = list(views)
    inputs = {name: value for view in views for name, value in view.inputs.items()}
    return View(
        "+".join(view.name for view in views),
        inputs,
        sum(view.count for view in views),
        lambda: (row for view in views for row in view.read()),
    )


def _tuple(row: Any) -> tuple:
    return row if isinstance(row, tuple) else (row,)


def _field(row: Any, name: str) -> str:
    return getattr(_tuple(row)[0], name)


NAMED_BY = {
    "Verdict": "sample_id",
    "Vector": "source_id",
    "Row": "source_id",
    "Example": "source_id",
}


def _named_by(kind: type[Record]) -> str:
    """The field of a record that names what it is about; of a question or a reply, its own id."""
    return "item_id" if kind.__name__ == "Comparison" else NAMED_BY.get(kind.__name__, "id")


def _keys(kind: type[Record]) -> tuple[str, str]:
    """(what the row's key is, the field of `kind` that it must equal)."""
    if kind is Prompt:
        return "prompt_id", "id"
    if kind is Sample:
        return "parent_id", "id"
    if kind in (Verdict, Vector):
        return "sample", _named_by(kind)
    raise TypeError(f"join with {kind.__name__} records needs a key")


def _row_key(key: str, named: tuple[str, Any]) -> str:
    """The id by which a row asks for its partner."""
    row = _tuple(named[1])
    if isinstance(row[0], list):  # a group: its first row speaks for it
        row = _tuple(row[0][0])
    about = [record for record in row if isinstance(record, Sample)]
    if key == "sample":
        return about[-1].id if about else row[0].id
    if key == "parent_id":
        return about[-1].parent_id if about else row[0].sample_id
    return getattr(row[0], key)
