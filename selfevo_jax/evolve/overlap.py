"""Before a training: do its records say what the held-out questions ask?

Questions are kept apart by their text, so there should be nothing; what a model wrote, a file of
references or a teacher's answer can still quote one. What is found is said and kept, and people
decide: most shared spans are boilerplate or quotations.
"""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from selfevo_jax.evaluate.contamination import Contamination, check_overlap, report_lines
from selfevo_jax.evaluate.task import Task
from selfevo_jax.evolve.files import write_json
from selfevo_jax.evolve.lesson_text import Trainable
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.records import DataRow, Example, Pair

OVERLAP = "overlap.json"
KEPT = 100  # matches in the file


def tell_overlap(
    records: Iterable[Trainable],
    task: Task,
    n: int,
    seed: int,
    folder: Path,
    progress: Progress,
) -> Contamination:
    """Compares training records with the `n` held-out questions that `seed` draws.

    Writes `folder`/overlap.json, and says what was found, if anything.
    """
    held_out = task.prompts("test", n, seed)
    asked = ((prompt.id, prompt.messages[-1]["content"]) for prompt in held_out)
    told = ((record.id, _texts(record)) for record in records)
    found = check_overlap(task.name, told, asked)
    shown = asdict(found) | {"matches": [asdict(match) for match in found.matches[:KEPT]]}
    write_json(folder / OVERLAP, shown)
    for line in report_lines([found]) if found.items else ():
        progress.say(line)
    return found


def _texts(record: Trainable) -> list[str]:
    """What is read and learned, not who says it."""
    match record:
        case Pair():
            read, learned = record.prompt, (record.chosen, record.rejected)
        case Example():
            read, learned = record.prompt, (record.completion,)
        case DataRow():
            read, learned = record.messages, record.completions
    return [*(message["content"] for message in read), *learned]
