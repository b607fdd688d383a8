"""Several tasks as one: `get_task("mix", of={"gsm8k": {"data_dir": "data"}, "rg:gcd": {}})`.

The questions of the parts take turns, each prompt keeps the name of its own part, and the part
marks its replies. A part that has no more questions leaves its turn to the others.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.file_task import FileTask
from selfevo_jax.evaluate.task import SPLITS, Split, Task, check_choice
from selfevo_jax.judge.checkers import Check
from selfevo_jax.records import Prompt


class MixtureTask:
    """The questions of `parts` in turns."""

    name = "mix"

    def __init__(self, parts: Sequence[Task]) -> None:
        self._parts = {part.name: part for part in parts}

    def prompts(self, split: Split, n: int | None = None, seed: int = 0) -> Iterator[Prompt]:
        """See `Task.prompts`; with `n` None as far as the parts have an end."""
        check_choice(split, SPLITS, "split")
        if n is None:
            return (prompt for part in self._parts.values() for prompt in part.prompts(split))
        return self._in_turns(split, n, seed)

    def _in_turns(self, split: Split, n: int, seed: int) -> Iterator[Prompt]:
        left = [_as_many_as_there_are(part, split, n, seed) for part in self._parts.values()]
        given = 0
        while left and given < n:
            for source in list(left):
                prompt = next(source, None)
                if prompt is None:
                    left.remove(source)
                elif given < n:
                    given += 1
                    yield prompt
        if given < n:
            raise UserError(
                f"the tasks {', '.join(self._parts)} have {given} different {split} questions "
                f"together, {n} were asked for: ask for fewer or add a task"
            )

    def check(self, prompt: Prompt, text: str) -> Check:
        """See `Task.check`."""
        return self._parts[prompt.task].check(prompt, text)

    def inputs(self) -> dict[str, str]:
        """See `Task.inputs`."""
        found = {}
        for part in self._parts.values():
            found |= part.inputs()
        return found

    def sources(self) -> Sequence[Task]:
        """See `Task.sources`."""
        return [source for part in self._parts.values() for source in part.sources()]


def _as_many_as_there_are(task: Task, split: Split, n: int, seed: int) -> Iterator[Prompt]:
    """Up to `n` questions of a task."""
    if isinstance(task, FileTask):  # it knows how many it has, and refuses to promise more
        n = min(n, sum(1 for _ in task.prompts(split)))
    questions = islice(task.prompts(split, n, seed), n)
    while True:
        try:
            yield next(questions)
        except (StopIteration, UserError):  # a generator says so when it has no more
            return
