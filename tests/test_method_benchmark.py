"""`benchmarks/methods.py`: it asks for stages that the runs have, and counts what they answered."""

import importlib.util
import io
import json
import sys
from pathlib import Path

import pytest
from rich.console import Console

from selfevo_jax.config import load_config
from selfevo_jax.evaluate.tasks import get_task
from selfevo_jax.evolve.launch import open_backend
from selfevo_jax.evolve.methods import method
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.run import Run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("methods", ROOT / "benchmarks" / "methods.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["methods"] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["active", "elite", "meteor", "refeval", "reflectevo"])
def test_every_claim_is_about_stages_of_the_run(benchmark, name, tmp_path):
    config = load_config(f"{ROOT}/configs/{name}.py:cpu", ["model=random:tiny?seed=0"])
    progress = Progress(Console(file=io.StringIO()))
    task = get_task(config.task.name, **config.task.args.to_dict())
    run = Run(config, tmp_path, task, open_backend(config, progress), progress, planning=True)
    method(name)(run)
    planned = {step.stage for step in run.plan if step.measuring}
    sides = {side for claim in benchmark.CLAIMS[name] for side in (claim.before, claim.after)}
    assert {side.stage for side in sides} <= planned


@pytest.fixture
def runs(benchmark, tmp_path, monkeypatch):
    """Active selection, seed 0: 40 questions; random is right on the first 10, entropy on 30."""
    right = {"RANDOM": 10, "ENTROPY": 30, "RANDOM_2": 0, "ENTROPY_2": 0, "BASE": 10}
    folder = tmp_path / "active-0"
    for name, first in right.items():
        stage = folder / getattr(benchmark, name).stage
        stage.mkdir(parents=True)
        rows = [{"prompt_id": str(n), "correct": n < first} for n in range(40)]
        rows = rows[::-1] if name == "ENTROPY" else rows  # paired by id, not by line
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (stage / "records.jsonl").write_text(lines)
    cost = {"generated_tokens": 1234, "trained_tokens": 56}
    (folder / "summary.json").write_text(json.dumps({"cost": cost}))
    starts = [{"commit": "aaaaaaa", "status": status, "seconds": 60} for status in (1, 0)]
    lines = "".join(json.dumps(start) + "\n" for start in starts)
    (tmp_path / "active-0.starts.jsonl").write_text(lines)
    (tmp_path / "elite-0.starts.jsonl").write_text(json.dumps(starts[0]) + "\n")  # it failed
    page = tmp_path / "results.md"
    page.write_text(f"By hand.\n{benchmark.MARK}STALE")
    monkeypatch.setattr(benchmark, "PAGE", page)
    return tmp_path


def test_the_page_says_what_was_found_and_what_is_missing(benchmark, runs):
    benchmark.table(runs)
    page = (runs / "results.md").read_text()
    assert page.startswith("By hand.\n") and "STALE" not in page
    assert "**Missing:** Active selection (seeds 1, 2), ELITE (seeds 0, 1, 2), RefEval" in page
    assert "## ELITE\n\nNot finished yet." in page
    # 20 of 40 fixed, none broken: Newcombe's interval, as in tests/evaluate/test_stats.py.
    assert "| random, m = 1 → entropy, m = 1 | 0 | 40 | 25.0 % | 75.0 % | +50.0 (" in page
    assert "teach more than random ones | holds in 1 of 1 seed (mean gain +50.0 points" in page
    assert "two steps is better than in one: the opposite was seen in 1 of 1 seed" in page
    assert "- 96 answers help at all: not seen: no interval leaves out zero" in page
    assert "| 0 | aaaaaaa | 2.0 | 1,234 | 56 |" in page


def test_only_what_is_not_finished_is_started(benchmark, runs, monkeypatch):
    started = []
    monkeypatch.setattr(benchmark, "attempt", lambda out, name, seed: started.append((name, seed)))
    assert benchmark.run(runs, ["active", "elite"], [0, 1]) == 0
    assert started == [("elite", 0), ("active", 1), ("elite", 1)]
