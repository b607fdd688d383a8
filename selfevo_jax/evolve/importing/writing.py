"""ReflectEvo's published shapes, written from records: of an import, or of a run of the method."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.curation import helped_against_not
from selfevo_jax.evolve.files import read_json, write_atomic
from selfevo_jax.evolve.importing.reading import KINDS, read_file
from selfevo_jax.evolve.importing.reflectevo import ANSWER, OBSERVED, PROMPT, SIDES
from selfevo_jax.evolve.importing.shape import UNKNOWN, kept
from selfevo_jax.evolve.journal import compact_json
from selfevo_jax.evolve.reflection import (
    asked_of,
    guided_messages,
    reflect_messages,
    revise_messages,
)
from selfevo_jax.evolve.work import draw_seed
from selfevo_jax.records import Pair, Prompt, Record, Row, Sample, Verdict
from selfevo_jax.text.data_files import read_numbered

# The stages of a run's only round that the published data come from; later turns have a number.
STAGES: Mapping[str, type[Record]] = {
    "prompts": Prompt, "answer": Sample, "check": Verdict, "reflect": Sample, "revise": Sample,
    "check_revise": Verdict, "dpo.pairs": Pair, "dpo_pref.pairs": Pair,
}  # fmt: skip
TURNED = re.compile(r"(reflect|revise|check_revise)_\d+")
ROUND = "round_01"
Fields = dict[str, Any]


def write_shape(source: Path, shape: str, out: Path) -> tuple[int, Counter[str]]:
    """Writes `shape` of a published file, of an import or of a run to the file `out`.

    Returns the rows written, and how many records are not among them, by reason. Raises UserError
    where there are no such rows.
    """
    if out.exists():
        raise UserError(f"{out} exists already; give another --out")
    trees = Trees(_records(source))
    rows = list(WRITERS[shape](trees))
    if not rows:
        raise UserError(f"{source} holds nothing for {shape}: {dict(trees.left) or 'no answers'}")
    write_atomic(out, "".join(compact_json(row) + "\n" for row in rows).encode())
    return len(rows), trees.left


def _records(source: Path) -> Iterator[Record]:
    if source.is_file():
        return read_file("reflectevo", source)
    files = {source / f"{name}.jsonl": kind for name, kind in KINDS.items()}
    files |= {source / ROUND / name / "records.jsonl": kind for name, kind in _stages(source)}
    there = {path: kind for path, kind in files.items() if path.is_file()}
    if not there:
        raise UserError(f"{source} holds no records of an import or of a run of reflectevo")
    records = list(chain.from_iterable(_read(path, kind) for path, kind in there.items()))
    config = source / "config.json"
    return iter([*records, *_requests(records, read_json(config))] if config.is_file() else records)


def _stages(source: Path) -> Iterator[tuple[str, type[Record]]]:
    """The stages of a run that are read, with those of its later turns."""
    yield from STAGES.items()
    for path in sorted((source / ROUND).glob("*_*")):
        if turned := TURNED.fullmatch(path.name):
            yield path.name, STAGES[turned[1]]


def _requests(records: Iterable[Record], config: Mapping[str, Any]) -> Iterator[Row]:
    """What a run asked for every text of its data, made again from its records and settings."""
    prompts = {record.id: record for record in records if isinstance(record, Prompt)}
    samples = {record.id: record for record in records if isinstance(record, Sample)}
    verdicts = {record.sample_id for record in records if isinstance(record, Verdict)}
    for sample in samples.values():
        prompt, parent = prompts[sample.prompt_id], samples.get(sample.parent_id)
        asked: Sequence[Mapping[str, str]] | None = prompt.messages
        if parent is not None and sample.id in verdicts:
            row = _after(parent, samples, verdicts, prompt)
            asked = revise_messages(row, config["show_attempt"], len(row) == 3)
        elif parent is not None:
            asked = _guided(sample, parent, prompt, config)
        yield from kept(sample, {PROMPT: asked[-1]["content"]} if asked else {})


def _after(
    parent: Sample, samples: Mapping[str, Sample], verdicts: set[str], prompt: Prompt
) -> tuple[Sample | Prompt, ...]:
    """(reflection, answer, question) behind an answer, or (answer, question) without reflection."""
    if parent.id in verdicts:  # it is an answer
        return parent, prompt
    return parent, samples[parent.parent_id], prompt


def _guided(
    reflection: Sample, answer: Sample, prompt: Prompt, config: Mapping[str, Any]
) -> Sequence[Mapping[str, str]] | None:
    """The request with the instruction that a reflection was drawn under; None of a stored one.

    A draw's seed is made from the instruction's key, which is found by it.
    """
    for key in config["pool"]["instructions"]:
        for number in range(config["reflect"]["n"]):
            if draw_seed(config["seed"], f"{answer.id}:{key}", number) == reflection.seed:
                return guided_messages((answer, prompt, key))
    return None


def _read(path: Path, kind: type[Record]) -> Iterator[Record]:
    return (kind.from_json(row, f"{path}:{number}") for number, row in read_numbered(path))


class Trees:
    """Questions, the samples that hang on them, and what is said of each. `left`: not written."""

    def __init__(self, records: Iterable[Record]) -> None:
        self.prompts: list[Prompt] = []
        self.pairs: list[Pair] = []
        self.samples: dict[str, Sample] = {}
        self.verdicts: dict[str, Verdict] = {}
        self.said: dict[str, Fields] = defaultdict(dict)
        self._below: dict[str, list[Sample]] = defaultdict(list)
        self.left: Counter[str] = Counter()
        # Rows of one question repeat it, and its first answer.
        for record in {record.id: record for record in records}.values():
            self._add(record)

    def _add(self, record: Record) -> None:
        if isinstance(record, Prompt):
            self.prompts.append(record)
        elif isinstance(record, Pair):
            self.pairs.append(record)
        elif isinstance(record, Verdict):
            self.verdicts[record.sample_id] = record
        elif isinstance(record, Row):
            self.said[record.source_id] |= record.values
        elif isinstance(record, Sample):
            self.samples[record.id] = record
            self._below[record.parent_id].append(record)

    def below(self, record: Prompt | Sample) -> list[Sample]:
        """What was said about a question or a sample."""
        return self._below[record.id]

    def right(self, sample: Sample) -> bool:
        """Whether the checker called an answer right."""
        return sample.id in self.verdicts and self.verdicts[sample.id].correct

    def after(self, reflection: Sample) -> Sample | None:
        """The answer that followed a reflection; of several the first that is right."""
        found = self.below(reflection)
        return next(filter(self.right, found), found[0] if found else None)

    def request(self, sample: Sample, otherwise: str) -> str:
        """The request behind a text, where the file had it."""
        return self.said[sample.id].get(PROMPT, otherwise)

    def parsed(self, sample: Sample) -> str:
        """The answer read in a text; "" where none was."""
        verdict = self.verdicts.get(sample.id)
        return (verdict.parsed if verdict else self.said[sample.id].get(ANSWER)) or ""

    def firsts(self) -> Iterator[tuple[Prompt, Sample]]:
        """(question, first answer)."""
        return ((prompt, answer) for prompt in self.prompts for answer in self.below(prompt))

    def answers(self) -> Iterator[tuple[Prompt, Sample, list[Sample]]]:
        """(question, answer, reflections on it) of every turn."""
        waiting = list(self.firsts())
        for prompt, answer in waiting:  # grows by the answers of the next turn
            below = self.below(answer)
            # What has a verdict is an answer made without a reflection.
            told = [sample for sample in below if sample.id not in self.verdicts]
            again = [sample for sample in below if sample.id in self.verdicts]
            waiting += [(prompt, s) for s in (*again, *chain(*map(self.below, told)))]
            yield prompt, answer, told


def _question(prompt: Prompt) -> Fields:
    about = {"id": prompt.meta.get("id", prompt.id), "question": asked_of(prompt)}
    tests = {"test_list": prompt.meta["test_list"]} if "test_list" in prompt.meta else {}
    return about | {"answer": prompt.answer or ""} | tests


def raw(trees: Trees) -> Iterator[Fields]:
    """Every first answer with what came after it."""
    for prompt, answer in trees.firsts():
        first = _trial(trees, answer, None, 1, [])
        yield _question(prompt) | {"output": [first, *_later(trees, answer, 2, [])]}


def _later(trees: Trees, answer: Sample, number: int, told: list[str]) -> Iterator[Fields]:
    """The trials after an answer, turn by turn; `told`: the reflections before it."""
    for later in trees.below(answer):
        # What has a verdict is an answer made without a reflection.
        reflection = None if later.id in trees.verdicts else later
        seconds = trees.below(later) if reflection else [later]
        if not seconds:
            trees.left["reflections without an answer after them"] += 1
        for second in seconds:
            known = trees.said[later.id].get("earlier_reflections", told) if reflection else told
            all_told = [*known, later.text] if reflection else told
            yield _trial(trees, second, reflection, number, all_told)
            yield from _later(trees, second, number + 1, all_told)


def _trial(
    trees: Trees, answer: Sample, reflection: Sample | None, number: int, told: list[str]
) -> Fields:
    said = dict(trees.said[answer.id])
    observation, request = said.pop("observation", None), said.pop(PROMPT, None)
    about = trees.said[reflection.id] if reflection else {}
    row = {
        "generated_answer": trees.parsed(answer),
        "reflections": told,
        "reasoning": answer.text + (f"{OBSERVED}{observation}" if observation is not None else ""),
        "is_correct": trees.right(answer),
        "trial": number,
        "reasoning_source": answer.policy,
        "reflection_source": reflection.policy if reflection else UNKNOWN,
    }
    row |= {"reason_prompt": request} if request else {}
    row |= {"reflection_prompt": about[PROMPT]} if PROMPT in about else {}
    return row | said


def d_plus(trees: Trees) -> Iterator[Fields]:
    """Reflections on a wrong answer after which the answer was right."""
    for prompt, answer, told in trees.answers():
        for reflection in told:
            second = trees.after(reflection)
            if trees.right(answer) or second is None or not trees.right(second):
                trees.left["reflections that did not mend an answer"] += 1
                continue
            yield _first(trees, prompt, answer) | {
                "second_trial_reasoning": second.text,
                "second_trial_answer": trees.parsed(second),
                "reflections": reflection.text,
                "reason_prompt": [trees.request(s, asked_of(prompt)) for s in (answer, second)],
                "reflect_prompt": trees.request(reflection, _ours(answer, prompt)),
            }


def _first(trees: Trees, prompt: Prompt, answer: Sample) -> Fields:
    first = {"first_trial_reasoning": answer.text, "first_trial_answer": trees.parsed(answer)}
    return _question(prompt) | first


def _ours(answer: Sample, prompt: Prompt) -> str:
    return reflect_messages((answer, prompt))[-1]["content"]


def d_plus_minus(trees: Trees) -> Iterator[Fields]:
    """Pairs of which one reflection helped: those there are, else one for each that did not."""
    return _preferences(trees, trees.pairs or list(_sorted(trees)), both=False)


def d_pref(trees: Trees) -> Iterator[Fields]:
    """Pairs of reflections that both helped; who prefers which is for a judge to say."""
    return _preferences(trees, trees.pairs, both=True)


def _sorted(trees: Trees) -> Iterator[Pair]:
    for prompt, answer, told in trees.answers():
        stories = [
            (second, trees.verdicts[second.id], reflection, answer, prompt)
            for reflection in told
            if (second := trees.after(reflection)) and second.id in trees.verdicts
        ]
        yield from [] if trees.right(answer) else helped_against_not(stories)


def _preferences(trees: Trees, pairs: Iterable[Pair], both: bool) -> Iterator[Fields]:
    prompts = {prompt.id: prompt for prompt in trees.prompts}
    for pair in pairs:
        sides = [trees.samples[pair.chosen_id], trees.samples[pair.rejected_id]]
        seconds = [trees.after(side) for side in sides]
        # What followed in a published pair may not be known: then the set is the one asked for.
        known = [second.id in trees.verdicts for second in seconds if second]
        if None in seconds or (all(known) and all(map(trees.right, seconds)) != both):
            trees.left["pairs of the other set"] += 1
            continue
        prompt, answer = prompts[pair.prompt_id], trees.samples[sides[0].parent_id]
        row = _first(trees, prompt, answer)
        for side, reflection, second in zip(SIDES, sides, seconds, strict=True):
            row[f"second_trial_reasoning_{side}"] = second.text
            row[f"second_trial_answer_{side}"] = trees.parsed(second)
            row[f"reflection_{side}"] = reflection.text
        row["reason_prompt"] = trees.request(answer, asked_of(prompt))
        yield row | {"reflection_prompt": pair.prompt[-1]["content"]}


WRITERS = {"raw": raw, "d_plus": d_plus, "d_plus_minus": d_plus_minus, "d_pref": d_pref}
