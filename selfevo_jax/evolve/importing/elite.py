"""ELITE's files: Natural Instructions tasks, with answers and critiques as the stages add them.

A dataset file (`answer_dataset.json`, `feedback_dataset.json`, ...) maps task files to tasks and
ends with the lists that the critique is trained on, aligned with the instances of all tasks.
"""

from collections.abc import Iterator, Sequence

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.importing.line import Line
from selfevo_jax.evolve.importing.shape import Shape, asked, kept, said
from selfevo_jax.evolve.lessons import lesson
from selfevo_jax.records import Prompt, Record, Row, Sample

POLICY = "elite"
NONE = "-"  # what the collection writes for a part that a task does not have
ASKED, LABELS = "all_feedback_input_list", "Feedback Label"
Critiqued = tuple[Prompt, Sample | None]


def task(line: Line, name: str = "task") -> Iterator[Record]:
    """One task file: its worked examples, and each instance with what was said about it."""
    told = [*line.texts("Definition"), *line.texts("Emphasis & Caution")]
    yield from _examples(line, name)
    for instance in line.each("Instances"):
        yield from _instance(instance, name, "\n".join(text for text in told if text != NONE))
    yield from _rest(line, name)


def _rest(line: Line, name: str) -> Iterator[Row]:
    """What is said of a whole task or file and has no record of its own."""
    if line.rest():
        yield Row.make(source_id=name, values=line.rest())


def _instance(line: Line, name: str, told: str) -> Iterator[Record]:
    outputs = line.texts("output")
    question = f"{told}\n\n{line.text('input')}"
    prompt = asked(name, question, outputs[0] if outputs else None, outputs=outputs)
    yield prompt
    if "answer_prediction" in line:
        answer = said(prompt, line.text("answer_prediction"), POLICY)
        yield answer
        if "fb_pred" in line:
            yield said(answer, line.text("fb_pred"), POLICY)
    yield from kept(prompt, line.rest())


def _examples(line: Line, name: str) -> Iterator[Row]:
    inside = line.inner("Examples") if "Examples" in line else line
    for kind, positive in (("Positive Examples", True), ("Negative Examples", False)):
        if inside.rest().get(kind) == NONE:
            inside.text(kind)
        elif kind in inside:
            for example in inside.each(kind):
                yield _example(example, name, positive=positive)
    if inside is not line:
        yield from _rest(inside, name)


def _example(line: Line, name: str, **more: bool) -> Row:
    values = {"task": name} | {field: line.text(field) for field in ("input", "output")}
    values |= {"reason": line.text("reason", "explanation")} | line.rest()
    return Row.make(source_id=values["input"], values=values | more)


def dataset(line: Line) -> Iterator[Record]:
    """All tasks of a stage, and the examples that a critique is learned from."""
    critiques: list[Critiqued] = []
    for name in [name for name in line.rest() if name.endswith(".json")]:
        for record in task(line.inner(name), name.removesuffix(".json")):
            yield record
            if isinstance(record, Prompt):
                critiques.append((record, None))
            elif isinstance(record, Sample):
                critiques[-1] = critiques[-1][0], record
    yield from _lessons(line, critiques)
    yield from _rest(line, "dataset")


def _lessons(line: Line, critiques: Sequence[Critiqued]) -> Iterator[Record]:
    """(prompt without examples -> critique); the lists must be aligned with the instances."""
    if LABELS not in line:
        return
    questions, labels = line.texts(ASKED), line.texts(LABELS)
    if not len(questions) == len(labels) == len(critiques):
        raise UserError(
            f"{line.place}: {len(critiques)} instances, {len(questions)} in {ASKED!r} and "
            f"{len(labels)} in {LABELS!r}: they must be as many"
        )
    for number, ((prompt, critique), text, label) in enumerate(
        zip(critiques, questions, labels, strict=True), start=1
    ):
        if critique is None or critique.text != label:
            raise UserError(
                f"{line.place} {LABELS}[{number}]: not the 'fb_pred' of that instance, so the "
                "lists do not belong to these tasks"
            )
        yield lesson(prompt, critique, [{"role": "user", "content": text}], label)


def examples(line: Line) -> Iterator[Record]:
    """`prompt_examples.json`: the worked examples of the next round, by task file."""
    for name in [name for name in line.rest() if name.endswith(".json")]:
        for example in line.each(name):
            yield _example(example, name.removesuffix(".json"))
    yield from _rest(line, "examples")


def by_task(line: Line) -> Iterator[Record]:
    """A file whose fields are named after task files: tasks, or lists of worked examples."""
    fields = line.rest()
    named = [value for name, value in fields.items() if name.endswith(".json")]
    if not named:
        raise UserError(f"{line.place}: neither a task (Definition, Instances) nor tasks by file")
    yield from examples(line) if isinstance(named[0], list) else dataset(line)


SHAPES = (
    Shape("task", frozenset({"Definition", "Instances"}), task),
    Shape("tasks by file", frozenset(), by_task),
)
