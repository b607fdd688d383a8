"""The summary of a run: figures by hand, paired by id, repeatable, of unfinished runs too."""

import json
import shutil

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.stats import paired_difference, wilson_interval
from selfevo_jax.report.summary import finite, summarise, write_summary


def write_answers(workdir, number, marks, order=None):
    """Answers to questions q0, q1, ...: right where `marks[i]` is 1, absent where it is None."""
    rows = [
        {"id": f"{number}-{i}", "prompt_id": f"q{i}", "task": "t", "policy": "p", "text": "x",
         "parsed": "1" if mark else None, "gold": "1", "score": float(mark), "correct": bool(mark),
         "tokens": 10 + i}
        for i, mark in enumerate(marks) if mark is not None
    ]  # fmt: skip
    path = workdir / f"round_{number:02d}" / "evaluate" / "records.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in (order(rows) if order else rows)))


def test_figures_of_a_small_run_by_hand(tmp_path):
    before, after = [1, 0, 0, 0, 1, 0], [1, None, 1, 0, 0, 1]
    write_answers(tmp_path, 0, before)
    write_answers(tmp_path, 1, after, order=lambda rows: rows[::-1])  # paired by id, not by row
    summary = summarise(tmp_path)
    first, second = (row["tasks"]["t"] for row in summary["rounds"])
    interval = wilson_interval(2, 6)
    assert (first["n"], first["correct"], first["score"]) == (6, 2, pytest.approx(1 / 3))
    assert (first["low"], first["high"]) == (interval.low, interval.high)
    assert first["parsed"] == pytest.approx(1 / 3)
    assert first["tokens"] == 12.5
    assert second["n"] == 5
    (gain,) = summary["gains"]["t"]
    expected = paired_difference([1, 0, 0, 1, 0], [1, 1, 0, 0, 1])
    assert (gain["n"], gain["fixed"], gain["broken"]) == (5, 2, 1)
    assert (gain["gain"], gain["low"], gain["high"]) == pytest.approx(
        (0.2, expected.low, expected.high)
    )
    assert summary["totals"]["tokens_evaluated"] == sum(range(10, 16)) + sum(range(10, 16)) - 11


def test_a_whole_run(run_folder):
    summary = summarise(run_folder)
    assert [row["round"] for row in summary["rounds"]] == [0, 1, 2]
    last = summary["rounds"][2]
    assert last["counts"]["samples"] == last["counts"]["verdicts"] == 240
    assert [row["steps"] for row in summary["trainings"]] == [60, 60]
    assert last["tokens"]["trained"] == 60 * 2400
    assert last["seconds"]["train"] == pytest.approx(42.0)
    assert last["seconds"]["evaluate"] == 21.25
    assert summary["totals"]["seconds"] == pytest.approx(3 * 21.25 + 2 * (42.0 + 3 * 9.5))
    gains = summary["gains"]["rg:chain_sum"]
    assert [gain["round"] for gain in gains] == [1, 2]
    assert gains[1]["low"] > 0
    train = next(row for row in summary["stages"] if row["stage"] == "round_01/train")
    assert train["mfu"] == pytest.approx(0.3)  # steps of one length, half at 25 % and half at 35 %
    assert [row["stage"] for row in summary["trainings"]] == ["train", "train"]
    assert summary["tables"][0]["rows"][0]["policy"] == "base"
    assert summary["run"]["command"].startswith("selfevo run")


def test_writing_is_deterministic_and_leaves_nothing_else(run_folder, tmp_path):
    copy = shutil.copytree(run_folder, tmp_path / "quickstart")
    first = write_summary(copy).read_bytes()
    assert write_summary(copy).read_bytes() == first
    assert json.loads(first) == summarise(copy)
    assert {path.name for path in copy.iterdir()} == {
        path.name for path in run_folder.iterdir()
    } | {"summary.json"}


def test_an_unfinished_run_is_summarised_as_far_as_it_went(run_folder, tmp_path):
    copy = shutil.copytree(run_folder, tmp_path / "quickstart")
    shutil.rmtree(copy / "round_02")
    shutil.rmtree(copy / "round_01" / "evaluate")
    (copy / "run.json").unlink()
    summary = summarise(copy)
    assert summary["gains"] == {}
    assert summary["rounds"][1]["tasks"] == {}
    assert summary["run"] == {}


def test_damage_and_emptiness_are_named(run_folder, tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        summarise(tmp_path)
    copy = shutil.copytree(run_folder, tmp_path / "quickstart")
    file = copy / "round_01" / "evaluate" / "records.jsonl"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"round_01/evaluate/records.jsonl:300 is damaged"):
        summarise(copy)
    answer = '{"task": "t", "prompt_id": "q", "policy": "p", "correct": true}'
    for line, message in {
        answer + '\n{"task": "t"}': "jsonl:2 lacks prompt_id, policy, correct",
        "[1]": "jsonl:1 holds no JSON object",
        "": "jsonl:1 is damaged",
    }.items():
        file.write_text(line + "\n")
        with pytest.raises(UserError, match=message):
            summarise(copy)


def test_values_that_are_no_number():
    assert finite(float("nan")) is finite(float("inf")) is finite("1") is finite(None) is None
    assert finite(True) is None
    assert finite(3) == 3.0


def test_several_hosts_add_up_their_tokens_and_work_side_by_side(run_folder, tmp_path):
    """Host 1 of two generated 1000 tokens in 12 s, while host 0 took 9.5 s for its 4000."""
    copy = shutil.copytree(run_folder, tmp_path / "quickstart")
    lines = [{"seconds": 5.0, "inputs": 3, "generated_tokens": 400}] * 2
    lines.append({"seconds": 2.0, "inputs": 1, "generated_tokens": 200, "read_tokens": 50})
    path = copy / "round_01/sample/timings-1.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = summarise(copy)
    row = next(row for row in summary["stages"] if row["stage"] == "round_01/sample")
    assert (row["generated_tokens"], row["read_tokens"], row["seconds"]) == (5000, 650, 12.0)
    assert summary["rounds"][1]["seconds"]["sample"] == 12.0
