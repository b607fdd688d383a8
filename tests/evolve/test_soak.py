"""A thousand rounds with a model that costs nothing: memory and open files stay as they are.

What is real is all that a run of days leans on: the engine, the journal, the records, the method.
The model adds two numbers, right or wrong by the seed, and its training writes a small adapter.
Run by `make test-slow`; the figures are printed (`-s`).
"""

import gc
import io
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from selfevo_jax.config import load_config
from selfevo_jax.evaluate.tasks import get_task
from selfevo_jax.evolve.files import write_json
from selfevo_jax.evolve.launch import lineage
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.run import Run
from selfevo_jax.evolve.verified import verified
from selfevo_jax.sample.protocol import Completion

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"
ROUNDS, EVERY, WARM = 1000, 100, 200
SMALL = (f"rounds={ROUNDS}", "prompts.n=1", "sample.n=2", "evaluate.n=1", "task.args.max_digits=4")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Adder:
    """A generator that answers sums: right for every second request."""

    def __init__(self) -> None:
        self.asked = 0

    def generate(self, requests):
        for request in requests:
            self.asked += 1
            found = re.findall(r"(\d+) ([+-]) (\d+)", request.messages[-1]["content"])
            first, sign, second = found[-1]
            text = str(int(first) + int(sign + second) + self.asked % 2)
            yield Completion(
                id=request.id, text=text, tokens=(self.asked % 7,), logps=(-0.5,), finish="stop",
                prompt_tokens=9,
            )  # fmt: skip


class Free:
    """A backend whose models cost nothing."""

    hash, trainer_version = "0" * 16, "1"

    def __init__(self) -> None:
        self.adder = Adder()

    def generator(self, policy):
        return self.adder

    def tokenizer(self, policy):
        return None

    def train_settings(self, training):
        return training.settings()

    def fit(self, examples, fitting, on_step):
        count, folder = sum(1 for _ in examples), fitting.folder
        write_json(folder / "adapter" / "adapter_config.json", {"from": fitting.start.name})
        (folder / "metrics.jsonl").write_text('{"step": 0, "loss": 0.5, "tokens": 3}\n')
        on_step(1, "")
        return {"examples": count, "steps": 1, "tokens": 3}


def state() -> SimpleNamespace:
    """Resident bytes and open files of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return SimpleNamespace(memory=pages * PAGE, files=len(os.listdir("/proc/self/fd")))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_thousand_rounds_keep_memory_and_handles_flat(tmp_path):
    config = load_config(f"{QUICKSTART}:tiny", SMALL)
    seen: dict[int, SimpleNamespace] = {}

    def remember(run) -> None:
        write_json(tmp_path / "run.json", lineage(run))
        if run.round % EVERY == 0 and run.round not in seen:
            seen[run.round] = now = state()
            print(f"round {run.round}: {now.memory / 1e6:.1f} MB, {now.files} files", flush=True)

    task = get_task(config.task.name, **config.task.args.to_dict())
    progress = Progress(Console(file=io.StringIO(), quiet=True))
    progress.log_to(tmp_path / "log.jsonl")
    run = Run(config, tmp_path, task, Free(), progress, remember=remember)
    last = verified(run)
    assert last.name == f"round_{ROUNDS}" and (tmp_path / last.name / "train/adapter").is_dir()
    grown = seen[ROUNDS].memory - seen[WARM].memory
    print(f"from round {WARM} to {ROUNDS}: {grown / (ROUNDS - WARM) / 1e3:.1f} kB a round")
    assert grown < 20e6  # a page of records a round would be 3 MB; a leaked model far more
    assert seen[ROUNDS].files == seen[WARM].files
