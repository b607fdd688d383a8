"""What a published file can hold: shapes of rows, each known by its fields and read to records."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.importing.line import Line
from selfevo_jax.records import Prompt, Record, Row, Sample, Verdict

UNKNOWN = "published"  # the policy of a text whose author the file does not name


@dataclass(frozen=True)
class Shape:
    """Rows that have the fields `needs`; `read` gives the records in one row."""

    name: str
    needs: frozenset[str]
    read: Callable[[Line], Iterable[Record]]


def shape_of(fields: Mapping[str, Any], shapes: Sequence[Shape], place: str) -> Shape:
    """The shape of which the row has all fields, the largest if several.

    Raises UserError for none, naming what the row lacks for the shape that is nearest.
    """
    fits = [shape for shape in shapes if shape.needs <= fields.keys()]
    if fits:
        return max(fits, key=lambda shape: len(shape.needs))
    nearest = max(shapes, key=lambda s: len(s.needs & fields.keys()) / len(s.needs))
    lacking = ", ".join(sorted(nearest.needs - fields.keys()))
    known = "; ".join(f"{s.name}: {', '.join(sorted(s.needs))}" for s in shapes)
    raise UserError(f"{place}: no published row; for {nearest.name} it lacks {lacking} ({known})")


def asked(task: str, question: str, answer: str | None = None, **meta: Any) -> Prompt:
    """A question as one user turn."""
    turn = {"role": "user", "content": question}
    return Prompt.make(task=task, messages=(turn,), answer=answer, meta=meta)


def said(parent: Prompt | Sample, text: str, policy: str = UNKNOWN, draw: int = 0) -> Sample:
    """What a policy wrote about `parent`: the `draw`-th of its replies. Tokens are not known."""
    return Sample.make(
        prompt_id=parent.prompt_id if isinstance(parent, Sample) else parent.id,
        parent_id=parent.id, text=text, tokens=(), logps=(), finish="stop", seed=draw,
        policy=policy,
    )  # fmt: skip


def marked(sample: Sample, correct: bool, parsed: str | None = None) -> Verdict:
    """A verdict that the file gives."""
    return Verdict.make(sample_id=sample.id, score=float(correct), correct=correct, parsed=parsed)


def kept(about: Record, values: Mapping[str, Any]) -> Iterator[Row]:
    """What a file says of a record that the record itself has no field for; nothing if nothing."""
    if values:
        yield Row.make(source_id=about.id, values=dict(values))
