"""Judging as a stage: stored generations in, verdicts out, going on by item after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from typing import Any, Protocol, TypeVar

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.files import disk_full_is_a_message, locked
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.stages import (
    RECORDS,
    Item,
    Stage,
    StageFolder,
    Work,
    read_records,
    run_stage,
)
from selfevo_jax.evolve.work import source_version
from selfevo_jax.judge import asking, critique, material, pairwise, pointwise, rating
from selfevo_jax.judge.pairwise import FIRST, SECOND, Call, Contest
from selfevo_jax.judge.pointwise import Marked
from selfevo_jax.records import Prompt, Record, Row, Sample, field_names
from selfevo_jax.text import prompt_files
from selfevo_jax.text.data_files import read_numbered

R = TypeVar("R", bound=Record)
INSTRUCTIONS = ("instruction", "input", "prompt")
SAMPLES = "sample"  # the stage whose samples are judged unless another is named


class Judged(Protocol):
    """What a judge is asked about, by id."""

    @property
    def id(self) -> str: ...


Ask = Callable[[Iterator[Any]], Iterator[Record]]


def judging_version() -> str:
    """The code that asks judges and reads their replies; prompts are hashed by themselves."""
    return source_version(asking, material, pairwise, pointwise, critique, rating, prompt_files)


def through(ask: Ask) -> Work:
    """The work of a judge that gives one record (with `item_id`) for every value it is given."""

    def work(items: Iterator[Item]) -> Iterator[tuple[Item, list[Record]]]:
        waiting: dict[str, Item] = {}

        def values() -> Iterator[Judged]:
            for item in items:
                waiting[item.id] = item
                yield item.value

        for record in ask(values()):
            yield waiting.pop(record.item_id), [record]

    return work


def judge_stage(
    folder: Path, stage: Stage, values: Sequence[Judged], ask: Ask, kind: type[R], say: Progress
) -> list[R]:
    """The verdicts on all values, from `folder` as far as they are there.

    Raises UserError for a folder that holds verdicts of other settings, or one in use.
    """
    place = StageFolder(folder)
    with disk_full_is_a_message("Every verdict so far is safe."), locked(folder):
        status, why = place.status(stage)
        if status == "changed":
            raise UserError(f"{folder} holds other verdicts ({why}); give another --out")
        if status != "done":
            with say.stage(stage.name, len(values), "judged") as bar:
                items = ((value.id, value) for value in values)
                run_stage(place, stage, items, through(ask), bar.advance)
        return list(read_records(place, kind))


@dataclass(frozen=True)
class Output:
    """One stored answer: its id, its text, and who wrote it where that is known."""

    id: str
    text: str
    by: str | None = None


@dataclass(frozen=True)
class Candidates:
    """The stored answers to one instruction, its references, and, of two answers, the one that
    people call better ("first" or "second"), where that is known."""

    id: str
    instruction: str
    outputs: tuple[Output, ...]
    references: tuple[str, ...] = ()
    label: Call | None = None

    def contests(self) -> Iterator[tuple[Contest, Output, Output]]:
        """Every pair of outputs with different texts."""
        for first, second in combinations(self.outputs, 2):
            if first.text != second.text:
                name = f"{self.id}/{first.id}-{second.id}"
                contest = Contest(name, self.instruction, first.text, second.text, self.references)
                yield contest, first, second

    def marked(self) -> Iterator[Marked]:
        """Every output by itself, with the first reference."""
        reference = self.references[0] if self.references else None
        for output in self.outputs:
            yield Marked(f"{self.id}/{output.id}", self.instruction, output.text, reference)


def run_candidates(
    workdir: Path, number: int | None = None, stage: str = SAMPLES
) -> Iterator[Candidates]:
    """The samples of a run's stage, grouped by prompt; the last round's that has them if None.

    References are those of the round's stage `references`, else the gold answers there are.
    Raises UserError where no round, or not this one, has finished such samples.
    """
    places = stages_of(workdir, Sample)
    rounds = None if number is None else f"round_{number:02d}"
    finished = [p for p in places if p.name == stage and rounds in (None, p.parent.name)]
    if not finished:
        which = "no round" if number is None else f"not round {number}"
        known = ", ".join(dict.fromkeys(place.name for place in places))
        hint = f"its stages with samples: {known}" if places else "is it the workdir of a run?"
        raise UserError(f"{workdir}: {which} has finished samples of a stage {stage}; {hint}")
    prompts = _prompts(workdir)
    references = _references(finished[-1].parent)
    samples = read_records(StageFolder(finished[-1]), Sample)
    for name, group in groupby(samples, key=lambda sample: sample.prompt_id):
        if name not in prompts:
            raise UserError(f"{workdir}: no prompt is {name}, which samples of {stage} answer")
        prompt = prompts[name]
        instruction = "\n\n".join(message["content"] for message in prompt.messages)
        outputs = tuple(Output(sample.id, sample.text, sample.policy) for sample in group)
        reference = references.get(name) or prompt.answer
        yield Candidates(name, instruction, outputs, (reference,) if reference else ())


def stages_of(workdir: Path, kind: type[Record]) -> list[Path]:
    """The finished stages of a run that hold records of a kind, round by round."""
    found = []
    for sealed in sorted(workdir.glob("round_*/*/stage.json")):
        records = sealed.parent / RECORDS
        first = _first_line(records) if records.exists() else b""
        if first and set(json.loads(first)) == set(field_names(kind)):
            found.append(sealed.parent)
    return found


def _first_line(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.readline()


def _prompts(workdir: Path) -> dict[str, Prompt]:
    """All questions of a run: a round may answer an earlier one's."""
    return {
        prompt.id: prompt
        for place in stages_of(workdir, Prompt)
        for prompt in read_records(StageFolder(place), Prompt)
    }


def _references(round_folder: Path) -> dict[str, str]:
    """The references of a round by prompt, as RefEval keeps them; none in other runs."""
    place = StageFolder(round_folder / "references")
    if place.sealed() is None:
        return {}
    return {row.source_id: row.values["text"] for row in read_records(place, Row)}


def file_candidates(path: Path) -> Iterator[Candidates]:
    """The rows of a JSON-lines file: instruction (or input, prompt) with its outputs.

    Outputs are `outputs` (a list), `output_1` and `output_2` (with `generator_1`, `generator_2`,
    and `label` 1 or 2 where people have said which is better), or one `output`; `reference` or
    `references` and `id` where there are any. Raises UserError naming file:line for a row with
    neither, or another label.
    """
    for line, row in read_numbered(path):
        where = f"{path}:{line}"
        instruction = next((row[key] for key in INSTRUCTIONS if key in row), None)
        outputs = _outputs(row)
        texts = [instruction, *(output.text for output in outputs)]
        if not outputs or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"{where}: a row to judge has {' or '.join(INSTRUCTIONS)} and outputs, output_1 "
                f"and output_2, or output, all texts; this one has {', '.join(row)}"
            )
        name = str(row.get("id", line))
        references, label = references_of(row, where), _label(row, where)
        yield Candidates(name, str(instruction), outputs, references, label)


def _outputs(row: Mapping[str, Any]) -> tuple[Output, ...]:
    if isinstance(row.get("outputs"), list):
        return tuple(Output(str(number), text) for number, text in enumerate(row["outputs"], 1))
    if "output_1" in row and "output_2" in row:
        return tuple(Output(str(n), row[f"output_{n}"], row.get(f"generator_{n}")) for n in (1, 2))
    return (Output("1", row["output"], row.get("generator")),) if "output" in row else ()


def _label(row: Mapping[str, Any], where: str) -> Call | None:
    """Which of `output_1` and `output_2` people call better; None where the row does not say."""
    label = row.get("label")
    if label is None or "output_1" not in row:
        return None
    if isinstance(label, bool) or label not in (1, 2):
        raise UserError(f"{where}: label {label!r} must be 1 or 2, the number of the better output")
    return FIRST if label == 1 else SECOND


def references_of(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """`reference` or `references` of a row, none where it has neither."""
    found = row.get("references", row.get("reference", []))
    listed = [found] if isinstance(found, str) else found
    if not isinstance(listed, list) or not all(isinstance(text, str) for text in listed):
        raise UserError(f"{where}: reference must be a text, references a list of texts")
    return tuple(listed)


def read_references(path: Path) -> dict[str, tuple[str, ...]]:
    """References by id, from rows with `id` and `reference` or `references`."""
    found: dict[str, tuple[str, ...]] = {}
    for line, row in read_numbered(path, {"id": str}):
        texts = references_of(row, f"{path}:{line}")
        if not texts or row["id"] in found:
            raise UserError(f"{path}:{line}: id {row['id']!r} has no reference, or comes twice")
        found[row["id"]] = texts
    return found


def unique(values: Iterable[Judged]) -> list[Any]:
    """The values as a list. Raises UserError where two have one id, since verdicts go by id."""
    kept: dict[str, Judged] = {}
    for value in values:
        if value.id in kept:
            raise UserError(f"two things to judge have the id {value.id!r}; give each its own")
        kept[value.id] = value
    if not kept:
        raise UserError("there is nothing to judge: no two outputs of one instruction differ")
    return list(kept.values())
