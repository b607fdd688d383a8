"""The method on the page `write-a-method`, as it stands there, is a whole one: it runs."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

import selfevo_jax.evolve
from selfevo_jax.config import load_config
from selfevo_jax.evolve import methods
from selfevo_jax.evolve.launch import launch
from selfevo_jax.evolve.progress import Progress

PAGE = Path(__file__).parents[2] / "docs/write-a-method.md"
TINY = (
    "model=random:tiny?seed=0", "rounds=1", "prompts.n=24", "sample.max_new_tokens=12",
    "vote.least=2", "evaluate.n=4", "evaluate.max_new_tokens=8", "task.args.max_digits=1",
    "lora.rank=2", "learn.batch_size=4", "learn.lr=1e-2",
)  # fmt: skip


@pytest.fixture
def written(tmp_path, monkeypatch) -> Path:
    """The page's two files in their places, as a reader would have put them; gives the config."""
    method, config = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    assert len(method.splitlines()) < 60
    (tmp_path / "evolve").mkdir()
    (tmp_path / "evolve/consistent.py").write_text(method)
    (tmp_path / "config.py").write_text(config)
    own = selfevo_jax.evolve.__path__
    monkeypatch.setattr(selfevo_jax.evolve, "__path__", [*own, str(tmp_path / "evolve")])
    monkeypatch.setattr(methods, "METHODS", (*methods.METHODS, "consistent"))
    monkeypatch.setenv("SELFEVO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "config.py"


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_page_s_method_runs_and_does_what_it_says(written, tmp_path):
    progress = Progress(Console(file=io.StringIO()))
    launch(load_config(str(written), TINY), tmp_path / "run", progress, command="a test")
    run = json.loads((tmp_path / "run/run.json").read_text())
    assert run["finished"] and run["best"] == "round_01" and run["method"] == "consistent"
    first = tmp_path / "run/round_01"
    answer = {row["sample_id"]: row["parsed"] for row in rows(first / "check/records.jsonl")}
    votes: dict[str, list] = {}
    for sample in rows(first / "sample/records.jsonl"):
        votes.setdefault(sample["prompt_id"], []).append(answer[sample["id"]])
    pairs = rows(first / "pair/records.jsonl")
    assert pairs
    for pair in pairs:
        given = votes[pair["prompt_id"]]
        chosen, rejected = (given.count(answer[pair[f"{s}_id"]]) for s in ("chosen", "rejected"))
        counts = [given.count(one) for one in set(given) - {None}]
        assert chosen == max(counts) >= 2 and rejected == min(counts) < chosen
