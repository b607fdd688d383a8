"""What flows through a run: small frozen records with content ids, one JSON object per line.

A record's id is a hash of what it is (its own content and its parents' ids), so the same content
has the same id in every process and on every machine, and records of different stages are joined
by id, never by row. A new kind of record is one more dataclass here.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, ClassVar, Self

from selfevo_jax.errors import UserError

Message = Mapping[str, str]


def canonical_json(value: Any) -> str:
    """One spelling per value: sorted keys, no spaces, no NaN (ValueError)."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def content_id(*parts: Any) -> str:
    """16 hex digits of the SHA-256 over the canonical JSON of `parts`."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Record:
    """Base of all records. `identity` names the fields that the id is made from."""

    identity: ClassVar[tuple[str, ...]] = ()

    id: str

    @classmethod
    def make(cls, **content: Any) -> Self:
        """The record with its id computed from its identity fields."""
        parts = [content[name] for name in cls.identity]
        return cls(id=content_id(cls.__name__, *parts), **content)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, in the order of the fields."""
        return {name: getattr(self, name) for name in field_names(type(self))}

    @classmethod
    def from_json(cls, row: Mapping[str, Any], where: str = "record") -> Self:
        """The record in `row`; a missing or unknown field is a UserError that names `where`."""
        names = field_names(cls)
        if set(row) != set(names):
            odd = sorted(set(row) ^ set(names))
            raise UserError(
                f"{where}: a {cls.__name__} has the fields {', '.join(names)}; "
                f"missing or unknown: {', '.join(odd)}"
            )
        return cls(**{name: _frozen(row[name]) for name in names})


_NAMES: dict[type, tuple[str, ...]] = {}


def field_names(kind: type) -> tuple[str, ...]:
    """The field names of a record class, in order (cached: this is called once per record)."""
    if kind not in _NAMES:
        _NAMES[kind] = tuple(f.name for f in dataclasses.fields(kind))
    return _NAMES[kind]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True)
class Prompt(Record):
    """A question. `answer` is the gold answer where one exists; `meta` is the task's own."""

    identity: ClassVar[tuple[str, ...]] = ("task", "messages", "answer")

    task: str
    messages: tuple[Message, ...]
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample(Record):
    """A reply of a policy: an answer, a critique of one, a revision, a guideline.

    `prompt_id` is the question that it all began with, `parent_id` the record that the policy was
    asked about: the prompt itself, the answer that is criticised, the critique that is followed.
    `logps` are of the sampled tokens, untempered.
    """

    identity: ClassVar[tuple[str, ...]] = ("parent_id", "policy", "seed", "text", "tokens")

    prompt_id: str
    parent_id: str
    text: str
    tokens: tuple[int, ...]
    logps: tuple[float, ...]
    finish: str
    seed: int
    policy: str


@dataclass(frozen=True, slots=True)
class Verdict(Record):
    """What a checker or judge says of a sample. `parsed` is the answer found in it, if any."""

    identity: ClassVar[tuple[str, ...]] = ("sample_id", "score", "correct", "parsed")

    sample_id: str
    score: float
    correct: bool
    parsed: str | None


@dataclass(frozen=True, slots=True)
class Pair(Record):
    """A preference: of one prompt, one completion is better than another. Complete for training."""

    identity: ClassVar[tuple[str, ...]] = ("prompt_id", "chosen_id", "rejected_id")

    prompt_id: str
    chosen_id: str
    rejected_id: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Example(Record):
    """A completion to imitate, complete for training. `source_id` is what it was made from."""

    identity: ClassVar[tuple[str, ...]] = ("prompt", "completion")

    prompt_id: str
    source_id: str
    prompt: tuple[Message, ...]
    completion: str


@dataclass(frozen=True, slots=True)
class DataRow(Record):
    """A row of a data file, complete for training, known there as `source_id`.

    `completions` are one to imitate, or one with a `label` (whether it is desirable), or a chosen
    and a rejected one; with none, all assistant turns of `messages` are learned.
    """

    identity: ClassVar[tuple[str, ...]] = ("messages", "completions", "label")

    source_id: str
    messages: tuple[Message, ...]
    completions: tuple[str, ...]
    label: bool | None


@dataclass(frozen=True, slots=True)
class Vector(Record):
    """The embedding of a record's text by a policy."""

    identity: ClassVar[tuple[str, ...]] = ("source_id", "policy", "values")

    source_id: str
    policy: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Row(Record):
    """Anything that a method keeps besides: a score, a choice and its reason, a table's row."""

    identity: ClassVar[tuple[str, ...]] = ("source_id", "values")

    source_id: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer(Record):
    """One greedy answer of an evaluation, scored. `tokens` is the number of tokens generated."""

    identity: ClassVar[tuple[str, ...]] = ("prompt_id", "policy", "text")

    prompt_id: str
    task: str
    policy: str
    text: str
    parsed: str | None
    gold: str | None
    score: float
    correct: bool
    tokens: int


Key = str | Callable[[Any], str]  # the name of a field, or what gives the key of a record


def join(
    left: Iterable[Any], right: Iterable[Any], left_key: Key, right_key: Key
) -> Iterator[tuple[Any, Any]]:
    """(left, right) whose keys agree, in the order of `left`.

    A key occurs once on the right; on the left, records of one key stand side by side. Both streams
    are read in step and only what still waits for its partner is kept, so streams in the same order
    are joined in constant memory. Raises UserError for a left record without a partner.
    """
    waiting: dict[str, Any] = {}
    stream, last_key, partner = iter(right), None, None
    key_of_left, key_of_right = _key_of(left_key), _key_of(right_key)
    for item in left:
        key = key_of_left(item)
        if key != last_key:
            while key not in waiting:
                other = next(stream, None)
                if other is None:
                    raise UserError(f"no {right_key} is {key}, which a {type(item).__name__} needs")
                waiting[key_of_right(other)] = other
            last_key, partner = key, waiting.pop(key)
        yield item, partner


def _key_of(key: Key) -> Callable[[Any], str]:
    return attrgetter(key) if isinstance(key, str) else key
