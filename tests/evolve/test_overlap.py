"""Training records that quote a held-out question are told before the training."""

import io
import json

import pytest
from rich.console import Console

from selfevo_jax.evaluate.tasks import get_task
from selfevo_jax.evolve.lessons import gold_lesson
from selfevo_jax.evolve.overlap import OVERLAP, tell_overlap
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.records import Pair

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}


@pytest.fixture
def told(tmp_path):
    task = get_task("rg:chain_sum", **SUMS)

    def telling(records):
        said = io.StringIO()
        progress = Progress(Console(file=said, width=200))
        found = tell_overlap(records, task, 200, 0, tmp_path, progress)
        kept = json.loads((tmp_path / OVERLAP).read_text())
        assert (kept["items"], kept["exact"], kept["records"]) == (
            found.items, found.exact, found.records,
        )  # fmt: skip
        return found, said.getvalue()

    return task, telling


def test_the_splits_of_a_task_share_nothing(told):
    """Thousands of sums of two numbers: many have the words of a held-out difference."""
    task, telling = told
    lessons = [one for p in task.prompts("train", 2000, 0) for one in gold_lesson(p)]
    found, said = telling(lessons)
    assert (found.records, found.tested, found.items, said) == (2000, 200, 0, "")


def test_a_leaked_question_is_said_and_kept(told):
    task, telling = told
    train, leaked = (next(iter(task.prompts(split, 1, 0))) for split in ("train", "test"))
    pair = Pair.make(
        prompt_id=train.id, chosen_id="1" * 16, rejected_id="2" * 16, prompt=train.messages,
        chosen="5", rejected=leaked.messages[-1]["content"],
    )  # fmt: skip
    found, said = telling([*gold_lesson(train), pair])
    assert (found.items, found.exact) == (1, 1)
    assert found.matches[0].record == pair.id and found.matches[0].item == leaked.id
    assert "1 of 200 test items share words with 2 training records" in said
