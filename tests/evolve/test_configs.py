"""Every config file in every variant is complete, locked, and says what the papers used."""

import json
from pathlib import Path

import pytest

from selfevo_jax.config import load_config
from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.tasks import get_task
from selfevo_jax.evolve.launch import check_config
from selfevo_jax.evolve.methods import defaults

CONFIGS = Path(__file__).parents[2] / "configs"
VARIANTS = {
    "elite": ("3b", "7b", "13b", "cpu", "tiny"),
    "reflectevo": ("llama3_8b", "mistral_7b", "gemma2_9b", "cpu", "tiny"),
    "active": ("llama32_1b", "7b", "cpu", "tiny"),
    "refeval": ("llama3_8b", "qwen2_7b", "cpu", "tiny"),
    "meteor": ("llama3_8b", "qwen2_7b", "cpu", "tiny"),
}
OTHERS = (
    "quickstart.py", "quickstart.py:tiny", "offline.py", "offline.py:sft", "offline.py:kto",
    "offline.py:tiny", "combined.py:selection-cpu", "combined.py:reflection-cpu",
    "combined.py:both-cpu", "combined.py:both-tiny",
)  # fmt: skip
PRESETS = (*OTHERS, *(f"{name}.py:{variant}" for name in VARIANTS for variant in VARIANTS[name]))
# Files below data/ as documented, and a row of each that says "fact NUMBER".
MMLU = {"question": "fact NUMBER", "choices": ["p", "q", "r", "s"], "answer": 2}
INSTANCE = {"id": "x", "input": "fact NUMBER", "output": ["yes"]}
OPEN = {"instruction": "fact NUMBER", "input": "", "output": "yes"}
LAYOUT = {
    "mmlu/auxiliary_train/train.jsonl": MMLU,
    "mmlu/anatomy/test.jsonl": {**MMLU, "question": "held out fact NUMBER"},
    "mmlu/virology/test.jsonl": {**MMLU, "question": "another held out fact NUMBER"},
    "logiqa/logiqa.jsonl": {
        "context": "fact NUMBER", "question": "which", "options": ["p", "q", "r", "s"],
        "label": "c",
    },
    "instruction_small/instruction_data.jsonl": OPEN,
    "conala/train.jsonl": {"intent": "fact NUMBER", "snippet": "x"},
    "conala/test.jsonl": {"intent": "another held out fact NUMBER", "snippet": "x"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name in VARIANTS for variant in VARIANTS[name]]
)
def test_a_variant_is_whole(name, variant):
    config = load_config(f"{CONFIGS / name}.py:{variant}")
    check_config(config)
    assert config.method == name and (config.model.startswith("hf:") == (variant not in TESTS))


TESTS = ("cpu", "tiny")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_task_finds_the_documented_data(preset, tmp_path, monkeypatch):
    """:llama32_1b and :7b of active.py named a task that there was not, and three presets looked
    for data/logiqa/logiqa/logiqa.jsonl and its like."""
    for name, row in LAYOUT.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(
            "".join(json.dumps(row).replace("NUMBER", f"{n}") + "\n" for n in range(40))
        )
    tasks = tmp_path / "data/natural_instructions"
    tasks.mkdir()
    rows = [json.loads(json.dumps(INSTANCE).replace("NUMBER", f"{n}")) for n in range(40)]
    whole = {"Definition": ["Say yes."], "Positive Examples": [], "Instances": rows}
    (tasks / "task1.json").write_text(json.dumps(whole))
    monkeypatch.chdir(tmp_path)
    config = load_config(f"{CONFIGS / preset}")
    task = get_task(config.task.name, **config.task.args.to_dict())
    for split in ("train", "validation", "test"):
        (prompt,) = task.prompts(split, 1)
        assert task.name.startswith("rg:") or "fact " in prompt.messages[-1]["content"]
        assert task.check(prompt, f"The answer is {prompt.answer}.").parsed


@pytest.mark.parametrize("preset", ["refeval.py:llama3_8b", "meteor.py:llama3_8b"])
def test_a_preset_asks_for_no_more_than_its_file_has(preset, shared_data):
    config = load_config(f"{CONFIGS / preset}")
    task = get_task(config.task.name, data_dir=shared_data)
    assert len(list(task.prompts("train", config.prompts.n))) == config.prompts.n
    assert len(list(task.prompts("test", config.evaluate.n))) == config.evaluate.n


def test_mmlu_shows_its_options_and_marks_the_letter(tmp_path):
    """The pool is the auxiliary training set; the subjects' test questions are held out."""
    for name in ("auxiliary_train/train", "anatomy/test", "virology/test"):
        path = tmp_path / f"mmlu/{name}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({**MMLU, "question": f"Which {name}?"}) + "\n")
    task = get_task("mmlu", data_dir=tmp_path)
    (pool,) = [p for split in ("train", "validation") for p in task.prompts(split)]
    first, _ = held_out = list(task.prompts("test"))
    asked = [prompt.messages[-1]["content"] for prompt in (pool, *held_out)]
    assert [text.splitlines()[0] for text in asked] == [
        "Which auxiliary_train/train?", "Which anatomy/test?", "Which virology/test?",
    ]  # fmt: skip
    assert asked[1].splitlines()[1:] == [
        "A. p", "B. q", "C. r", "D. s", "Reply with the letter of the answer.",
    ]  # fmt: skip
    assert first.answer == "C" and task.check(first, "The answer is C.").correct
    assert not task.check(first, "The answer is B.").correct


def test_a_large_pool_has_no_strategy_of_its_square():
    """A table of 75 000 x 75 000 numbers has 45 GB."""
    strategies = load_config(f"{CONFIGS / 'active.py'}:7b").acquire.strategies
    assert not {"facility_location", "k_centre"} & set(strategies)


def test_elite_has_the_papers_numbers_of_critiques():
    found = {v: load_config(f"{CONFIGS / 'elite.py'}:{v}").critique.n for v in ("3b", "7b", "13b")}
    assert found == {"3b": 3, "7b": 5, "13b": 1}


def test_an_unknown_variant_names_the_known(tmp_path):
    with pytest.raises(UserError, match="use 3b, 7b, 13b, cpu or tiny"):
        load_config(f"{CONFIGS / 'elite.py'}:8b")


def test_a_method_has_its_own_keys_only():
    assert "vote" in defaults("elite") and "vote" not in defaults("verified")
    with pytest.raises(UserError, match="unknown setting --config.vote"):
        load_config(f"{CONFIGS / 'quickstart.py'}:tiny", ["vote.by=medoid"])
    with pytest.raises(UserError, match="is for another method"):
        check_config(load_config(f"{CONFIGS / 'elite.py'}:tiny", ["method=verified"]))


def test_jobs_give_the_folder_above_the_tasks_own():
    """All jobs but the two whose task makes its own questions."""
    jobs = {job.stem: job.read_text() for job in (CONFIGS.parent / "tpu_scripts/jobs").glob("*.sh")}
    assert {name for name, job in jobs.items() if "data_dir=" not in job} == {
        "dpo_8b",
        "quickstart",
    }
    given = [line for job in jobs.values() for line in job.splitlines() if "data_dir=" in line]
    assert all(line.endswith('data_dir="${DATA:-data}"') for line in given)
