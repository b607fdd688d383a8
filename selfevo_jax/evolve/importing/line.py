"""One published row: its fields are taken by name, and what nobody took stays known."""

from collections.abc import Iterator, Mapping
from typing import Any

from selfevo_jax.errors import UserError


class Line:
    """The fields of a row at `place` ("file:line"). Every `take` is remembered for `rest`."""

    def __init__(self, fields: Mapping[str, Any], place: str) -> None:
        self.place = place
        self._fields = dict(fields)
        self._taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def take(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """The value of a field. Raises UserError where it is missing or of another type."""
        if name not in self._fields:
            has = ", ".join(self._fields) or "nothing"
            raise UserError(f"{self.place}: the field {name!r} is missing; the row has: {has}")
        value = self._fields[name]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(k.__name__ for k in kinds)
            raise UserError(
                f"{self.place}: the field {name!r} is a {type(value).__name__}, it must be {wanted}"
            )
        self._taken.add(name)
        return value

    def text(self, *names: str) -> str:
        """The text of the first of these fields that the row has."""
        return self.take(next((name for name in names if name in self), names[0]), str)

    def texts(self, *names: str) -> list[str]:
        """The texts of a field that holds one or a list of them; [] where it is absent or null."""
        name = next((name for name in names if name in self), None)
        if name is None:
            return []
        value = self.take(name, (str, list, type(None)))
        found = [value] if isinstance(value, str) else list(value or ())
        if not all(isinstance(text, str) for text in found):
            raise UserError(f"{self.place}: the field {name!r} must hold texts")
        return found

    def inner(self, name: str) -> "Line":
        """The object in a field."""
        return Line(self.take(name, dict), f"{self.place} {name}")

    def each(self, name: str) -> Iterator["Line"]:
        """The objects of a list."""
        for number, value in enumerate(self.take(name, list), start=1):
            place = f"{self.place} {name}[{number}]"
            if not isinstance(value, dict):
                raise UserError(f"{place}: a {type(value).__name__} where an object must be")
            yield Line(value, place)

    def rest(self) -> dict[str, Any]:
        """The fields that were not taken."""
        return {name: v for name, v in self._fields.items() if name not in self._taken}
