"""Whole miniature runs with every stage real: plans, changed settings, bad days."""

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfevo_jax.config import load_config
from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.tasks import get_task
from selfevo_jax.evolve import launch
from selfevo_jax.evolve.files import LOCK, disk_full_is_a_message, locked
from selfevo_jax.evolve.model_stages import Need
from selfevo_jax.evolve.pairs import right_against_wrong
from selfevo_jax.records import Prompt, Sample, Verdict

STAGES = ["evaluate", "prompts", "sample", "check", "pair", "train", "evaluate"]


def keys(workdir: Path) -> dict[str, str]:
    """Stage -> key of everything finished in the workdir."""
    return {
        str(path.parent.relative_to(workdir)): json.loads(path.read_text())["key"]
        for path in sorted(workdir.glob("round_*/*/stage.json"))
    }


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_dry_run_plans_and_writes_nothing(mini):
    said = mini(dry_run=True)
    assert not mini.workdir.exists()
    for name in STAGES:
        assert f"/{name}" in said
    assert "start base, reference base" in said
    assert "expected memory" in said
    assert "<|user|>" in said and said.rstrip().endswith("<|assistant|>")


def test_only_what_a_changed_setting_touches_runs_again(mini):
    """One workdir: whole, unchanged, then settings of ever earlier stages changed."""
    mini()
    first = keys(mini.workdir)
    assert len(first) == 7
    run = json.loads((mini.workdir / "run.json").read_text())
    assert run["finished"] and run["policies"]["round_01"]["parent"] == "base"
    samples = rows(mini.workdir / "round_01/sample/records.jsonl")
    pairs = rows(mini.workdir / "round_01/pair/records.jsonl")
    text = {sample["id"]: sample["text"] for sample in samples}
    right = {
        row["sample_id"]: row["correct"]
        for row in rows(mini.workdir / "round_01/check/records.jsonl")
    }
    assert all(right[pair["chosen_id"]] and not right[pair["rejected_id"]] for pair in pairs)
    assert all(text[pair["chosen_id"]] == pair["chosen"] for pair in pairs)

    # As a saved state of another host may have them, which is older than the stage's end.
    stage = mini.workdir / "round_01/sample"
    late = [stage / "records.part.jsonl", stage / "records-1.part.jsonl"]
    for journal in late:
        journal.write_text("one line\n")
    said = mini()
    assert said.count("finished before") == 7 and "loading" not in said
    assert not any(journal.exists() for journal in late)

    said = mini("learn.lr=0.02")
    assert "changed since the last run here: learn.lr 0.01 -> 0.02" in said
    assert "round_01/train: runs again (learn.lr 0.01 -> 0.02)" in said
    changed = {name for name, key in keys(mini.workdir).items() if key != first[name]}
    assert changed == {"round_01/train", "round_01/evaluate"}
    kept = mini.workdir / "superseded" / "round_01-train-1"
    assert (kept / "adapter" / "adapter_model.safetensors").exists()

    plan = mini("learn.lr=0.02", "sample.temperature=0.9", dry_run=True)
    states = {line.split()[0]: line for line in plan.splitlines() if line.startswith(" round_")}
    assert "again: temperature 1.0 -> 0.9" in states["round_01/sample"]
    assert "again if its inputs change" in states["round_01/train"]
    assert states["round_00/evaluate"].rstrip().endswith("done")


def test_fewer_rounds_put_the_others_aside(mini):
    mini("rounds=2", "evaluate.n=2")
    assert (mini.workdir / "round_02/train/adapter").exists()
    said = mini("rounds=1", "evaluate.n=2")
    assert "round_02/train is not in the plan" in said
    assert not (mini.workdir / "round_02").exists()
    assert (mini.workdir / "superseded/round_02-train-1/adapter").exists()


def test_a_mesh_that_is_not_here_is_refused_before_anything_is_moved(mini):
    mini("evaluate.n=2")
    before = kept(mini.workdir)
    other = ("evaluate.n=2", "learn.lr=0.02", "compute.mesh=1,7,1")
    with pytest.raises(UserError, match="mesh '1,7,1' does not fit"):
        mini(*other)
    assert kept(mini.workdir) == before
    assert "expected memory" in mini(*other, dry_run=True)  # a plan for other devices


def kept(workdir: Path) -> dict[Path, bytes]:
    """Every file of a run but its log and its lock."""
    files = (path for path in workdir.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if path.name not in ("log.jsonl", LOCK)}


def test_a_corrupt_record_file_is_refused_by_name(mini):
    mini("evaluate.n=2")
    file = mini.workdir / "round_01/sample/records.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"finish":"length"', b'"finish":"lengtH"', 1))
    with pytest.raises(UserError, match=r"round_01/sample/records\.jsonl is corrupt"):
        mini("evaluate.n=2")


def test_no_pairs_end_the_run_with_the_reason(mini):
    with pytest.raises(
        UserError, match="round_01/pair ended with 0 records and needs 1: no prompt"
    ):
        mini("task.args.min_digits=4", "task.args.max_digits=4", "prompts.n=2", "evaluate.n=2")
    assert not (mini.workdir / "round_01/pair/stage.json").exists()
    assert json.loads((mini.workdir / "run.json").read_text())["finished"] is False


def test_a_training_without_effect_ends_the_run(mini):
    with pytest.raises(UserError, match="changed nothing"):
        mini("learn.lr=0.0", "evaluate.n=2")
    assert not (mini.workdir / "round_01/train/stage.json").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sample.n=0", "config.sample.n=0: it must be at least 1"),
        ("sample.stop=('a','a')", "config.sample.stop=.*: a value is there twice"),
        ("method=verifed", "did you mean verified"),
        ("task.name=rg:chain_sun", "did you mean rg:chain_sum"),
        ("model=random:tinny?seed=0", "nearest: tiny"),
        ("model=/nowhere", "does not exist"),
        ("objective.loss=dop", "nearest: dpo"),
        ("compute.dtype=float8", "use float32, bfloat16"),
        ("compute.max_length=20", "shorten it or raise max_length"),
        ("sample.top_p=1.5", "top_p 1.5 must be"),
    ],
)
def test_a_wrong_setting_is_one_clear_message(mini, override, message):
    with pytest.raises(UserError, match=message):
        mini(override, "evaluate.n=2", "prompts.n=2")


@pytest.mark.parametrize(
    ("config", "override", "message"),
    [
        ("quickstart", "difficulty.between=(0.9,0.1)", "must be two shares from 0 to 1"),
        ("quickstart", "difficulty.between=(0.1,)", "must be two shares from 0 to 1"),
        ("quickstart", "difficulty.between=(0.1,0.5,0.9)", "must be two shares from 0 to 1"),
        ("quickstart", "difficulty.between=(0.1,1.5)", "must be two shares from 0 to 1"),
        ("quickstart", "difficulty.between=('a','b')", "must be two shares from 0 to 1"),
        ("refeval", "betas=()", "config.betas is not given: it must be one or more"),
        ("refeval", "judges=()", "config.judges is not given: it must be one or more of refeval"),
        ("combined", "betas=()", "config.betas is not given"),
        ("reflectevo", "pool.instructions=('1-1-1','9-9-9')", "pool.instructions '9-9-9'; "),
        ("elite", "difficulty.between=(0.9,0.1)", "must be two shares from 0 to 1"),
        ("combined", "pool.n=5", "pool.n=5: 5 must be at least 6"),
    ],
)
def test_what_a_method_cannot_use_is_refused_in_its_plan(mini, config, override, message):
    mini.config, mini.small = f"{CONFIGS / config}.py:{VARIANT.get(config, 'tiny')}", ()
    with pytest.raises(UserError, match=message):
        mini(override, dry_run=True)


CONFIGS, VARIANT = Path(__file__).parents[2] / "configs", {"combined": "both-tiny"}


def test_more_rounds_than_there_are_questions_for_are_refused_before_any_work(mini):
    """It died in the round that the questions did not last for, after hours."""
    with pytest.raises(UserError) as raised:
        mini("rounds=9", "evaluate.n=2")
    assert re.fullmatch(
        r"round_09/prompts needs 216 different train questions in all, and rg:chain_sum has \d+: "
        r"lower --config.prompts.n \(now 24\) or lower --config.rounds \(now 9\) or give the task "
        "more of them",
        str(raised.value),
    )
    assert not list(mini.workdir.glob("round_*"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "evaluate.n=300",
            r"round_00/evaluate needs 300 .* lower --config.evaluate.n \(now 300\) or give",
        ),
        (
            "accept.questions=99",
            r"validate_first needs 99 .* --config.accept.questions \(now 99\) or give",
        ),
        (
            "gauges.questions=99",
            r"train.gauge_questions needs 99 .*gauges.questions \(now 99\) or give",
        ),
    ],
)
def test_more_questions_than_there_are_in_a_split_are_refused(mini, override, message):
    with pytest.raises(UserError, match=message):
        mini("evaluate.n=2", override, dry_run=True)


def test_the_questions_of_files_are_counted(tmp_path):
    """As many as the training split holds will do, one more will not."""
    rows = [{"instruction": f"Say {n}.", "input": "", "output": str(n)} for n in range(40)]
    path = tmp_path / "instruction_small/instruction_data.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task, config = get_task("instruction_small", data_dir=tmp_path), load_config(QUICKSTART)
    number = len(list(task.prompts("train")))
    launch.check_supply(config, task, {"train": Need(number, number, "round_01/prompts")})
    with pytest.raises(UserError, match=f"needs {number + 1} .* instruction_small has {number}: "):
        launch.check_supply(config, task, {"train": Need(number + 1, 5, "round_05/prompts")})


QUICKSTART = f"{CONFIGS / 'quickstart.py'}:tiny"


def test_questions_that_take_long_to_make_are_not_all_counted(monkeypatch):
    monkeypatch.setattr(launch, "DRAWING_SECONDS", -1.0)
    task, config = get_task("rg:chain_sum"), load_config(QUICKSTART)
    launch.check_supply(config, task, {"train": Need(10**9, 10**9, "round_01/prompts")})


def test_the_same_prompts_in_every_round_are_needed_once(mini):
    assert "round_09/prompts" in mini("rounds=9", "difficulty.repeat=true", dry_run=True)


def test_two_runs_on_one_workdir(tmp_path):
    """The second is refused while the first lives; a killed first one leaves no lock behind."""
    hold = (
        "import sys, time; from pathlib import Path; from selfevo_jax.evolve.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(UserError, match=f"in use by another run .pid {holder.pid} on"):
            with locked(tmp_path):
                pass
    finally:
        holder.kill()
        holder.wait()
    with locked(tmp_path):
        assert f"pid {os.getpid()}" in (tmp_path / ".lock").read_text()


def test_only_a_full_disk_becomes_a_message():
    with pytest.raises(UserError, match="no space left.*All is safe"):
        with disk_full_is_a_message("All is safe."):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/x")
    with pytest.raises(PermissionError):
        with disk_full_is_a_message("All is safe."):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), "/x")


def judged(*marks: tuple[str, bool]) -> tuple[Prompt, list[tuple[Sample, Verdict]]]:
    """A prompt and samples of it with these texts and verdicts."""
    prompt = Prompt.make(task="t", messages=({"role": "user", "content": "?"},), answer="1")
    made = []
    for number, (text, correct) in enumerate(marks):
        sample = Sample.make(
            prompt_id=prompt.id, parent_id=prompt.id, text=text, tokens=(number,), logps=(0.0,),
            finish="stop", seed=number, policy="base",
        )  # fmt: skip
        verdict = Verdict.make(
            sample_id=sample.id, score=float(correct), correct=correct, parsed=text
        )
        made.append((sample, verdict))
    return prompt, made


def test_pairs_use_each_text_once_before_any_twice():
    prompt, samples = judged(
        ("1", True),
        ("1", True),
        ("one", True),
        ("2", False),
        ("2", False),
        ("3", False),
        ("4", False),
    )
    texts = [(p.chosen, p.rejected) for p in right_against_wrong((samples, prompt), 9)]
    assert texts == [("1", "2"), ("one", "3"), ("1", "4")]
    assert len(right_against_wrong((samples, prompt), 2)) == 2
    assert right_against_wrong(judged(("1", True), ("2", True))[::-1], 9) == []


def test_time_is_kept_apart_from_records(mini):
    """Nothing that a clock decides is in the files that must be the same after a kill."""
    mini("evaluate.n=2")
    today = time.strftime("%Y-%m")
    for path in mini.workdir.rglob("*.json*"):
        if path.name not in ("timings.jsonl", "goodput.jsonl", "log.jsonl"):
            assert '"seconds"' not in path.read_text() and today not in path.read_text(), path
