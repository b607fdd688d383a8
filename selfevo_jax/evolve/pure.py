"""Stages that no model takes part in: pure functions from records to records."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from selfevo_jax.evolve import work
from selfevo_jax.evolve.engine import Recipe, Stages
from selfevo_jax.evolve.files import file_sha256
from selfevo_jax.evolve.keys import code_key
from selfevo_jax.evolve.views import R, Records, View
from selfevo_jax.records import Record, Row, canonical_json
from selfevo_jax.text.data_files import read_jsonl
from selfevo_jax.text.datasets import detected, read_examples

Reader = Callable[[str], Iterable[Mapping[str, Any]]]


class PureStages(Stages):
    """`Stages` with the builders `map`, `gather`, `read` and `table`."""

    tables: list[Records[Row]]

    def map(
        self,
        name: str,
        rows: View,
        function: Callable[..., Sequence[Record]],
        kind: type[R],
        *,
        given: View | None = None,
        most: int | None = None,
        least: int = 1,
        why: str = "the stage gave nothing",
    ) -> Records[R]:
        """`function(row)`, a list of records, of every row; `function(row, given)` with `given`.

        The function is pure. A row gives at most `most` records (one, when None).
        """
        recipe = Recipe(
            items=rows.read,
            work=lambda: work.each(with_given(function, given)),
            total=rows.count,
            unit="rows",
            data=rows.name,
            most=None if most is None else rows.count * most,
            least=least,
            why=why,
        )
        return self._pure(name, kind, recipe, function, inputs_of(rows, given))

    def gather(
        self,
        name: str,
        rows: View,
        function: Callable[..., Sequence[Record]],
        kind: type[R],
        *,
        given: View | None = None,
        most: int | None = None,
        least: int = 1,
        why: str = "the stage gave nothing",
    ) -> Records[R]:
        """`function(all rows)`, a list of at most `most` records, for what needs all at once."""
        recipe = Recipe(
            items=lambda: [(name, rows)],
            work=lambda: work.each(lambda view: with_given(function, given)(list(view))),
            total=1,
            unit="gathering",
            data=rows.name,
            most=rows.count if most is None else most,
            least=least,
            why=why,
        )
        return self._pure(name, kind, recipe, function, inputs_of(rows, given))

    def read(
        self, name: str, file: str, function: Callable[[Mapping[str, Any]], R | None], kind: type[R]
    ) -> Records[R]:
        """`function(row)` of every row of a JSONL file: a record, or None to leave the row out."""
        return self._read(name, file, read_jsonl, function, kind)

    def examples(
        self,
        name: str,
        source: str,
        function: Callable[[Mapping[str, Any]], R | None],
        kind: type[R],
    ) -> Records[R]:
        """As `read`, of a source and rows as `text.datasets.read_examples` knows them.

        What its rows were taken for is said with the plan.
        """
        if self.planning:
            self.progress.say(f"{source}: rows in the format {detected(source)}")
        return self._read(name, source, read_examples, function, kind)

    def _read(
        self, name: str, source: str, rows: Reader, function: Callable[..., Any], kind: type[R]
    ) -> Records[R]:
        recipe = Recipe(
            items=lambda: ((str(number), row) for number, row in enumerate(rows(source))),
            work=lambda: work.each(lambda row: [made] if (made := function(row)) else []),
            total=sum(1 for _ in rows(source)),
            unit="rows",
            data=source,
        )
        return self._pure(name, kind, recipe, function, {"file": _content(source, rows)})

    def table(
        self,
        name: str,
        rows: View,
        function: Callable[..., Sequence[Row]],
        *,
        given: View | None = None,
    ) -> Records[Row]:
        """What `function(all rows)` concludes, as a table that is shown when the run ends."""
        made = self.gather(name, rows, function, Row, given=given)
        self.tables.append(made)
        return made

    def _pure(
        self, name: str, kind: type[R], recipe: Recipe, function: Any, inputs: Mapping[str, Any]
    ) -> Records[R]:
        return self.records(
            name, kind, recipe, settings={}, version=code_key(function), inputs=inputs
        )


def _content(source: str, rows: Reader) -> str:
    """A hash of a file's bytes, or of the rows of what is no file."""
    if Path(source).is_file():
        return file_sha256(Path(source))
    digest = hashlib.sha256()
    for row in rows(source):
        digest.update(canonical_json(row).encode())
    return digest.hexdigest()


def inputs_of(rows: View, given: View | None = None) -> dict[str, str | None]:
    return {**rows.inputs, **({} if given is None else given.inputs)}


def with_given(function: Callable[..., Any], given: View | None) -> Callable[[Any], Any]:
    if given is None:
        return function
    everything: list[Any] = list(given)
    return lambda row: function(row, everything)
