"""Several tasks as one: whose turn it is, who marks, and what happens when one has no more."""

import json
from itertools import islice

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.tasks import get_task
from selfevo_jax.evolve.work import task_version

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


@pytest.fixture
def data(tmp_path):
    """Thirty training questions of SVAMP's kind, and the number of those that are for training."""
    folder = tmp_path / "svamp"
    folder.mkdir()
    rows = [
        {
            "ID": f"{n}", "Body": f"There are {n} ducks.", "Question": "How many?",
            "Equation": f"( {n} )", "Answer": n, "Type": "Sum", "Split": "train",
        }
        for n in range(30)
    ]  # fmt: skip
    (folder / "svamp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def mix(data):
    return get_task("mix", of={"svamp": {"data_dir": data}, "rg:chain_sum": SUMS})


def test_the_parts_take_turns_and_mark_their_own(data):
    task = mix(data)
    prompts = list(task.prompts("train", 10, seed=3))
    assert [prompt.task for prompt in prompts] == ["svamp", "rg:chain_sum"] * 5
    assert len({prompt.id for prompt in prompts}) == 10
    assert list(islice(task.prompts("train", 30, seed=3), 10)) == prompts
    for prompt in prompts:
        assert task.check(prompt, f"The answer is {prompt.answer}.").correct
        assert not task.check(prompt, "The answer is 1234567.").correct


def test_a_part_without_more_questions_leaves_its_turn(data):
    task = mix(data)
    (few,) = [len(list(part.prompts("train"))) for part in task.sources()[:1]]
    assert 10 < few < 30
    names = [prompt.task for prompt in task.prompts("train", 2 * few + 5)]
    assert names == ["svamp", "rg:chain_sum"] * few + ["rg:chain_sum"] * 5
    with pytest.raises(UserError, match="svamp, rg:chain_sum have .* ask for fewer or add a task"):
        list(task.prompts("train", 500))


def test_missing_data_of_a_part_is_no_end_of_it(tmp_path):
    with pytest.raises(UserError, match=r"svamp: no file"):
        list(mix(tmp_path).prompts("train", 4))


def test_its_code_and_its_data_are_those_of_all_parts(data):
    task, sums = mix(data), get_task("rg:chain_sum", **SUMS)
    assert {"reasoning-gym", "svamp/svamp.jsonl"} <= set(task.inputs())
    assert len({task_version(part) for part in (task, sums, task.sources()[0])}) == 3


@pytest.mark.parametrize(
    "args", [{}, {"of": {"rg:gcd": {}}}, {"of": {"rg:gcd": {}, "mix": {}}}, {"off": {}}]
)
def test_what_is_no_mixture_is_refused(args):
    with pytest.raises(UserError, match="two tasks or more with their settings"):
        get_task("mix", **args)
