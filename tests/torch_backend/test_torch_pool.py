"""Sampling by two processes against one, what goes between them, and how they end."""

import importlib.util
import io
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from selfevo_jax.config import load_config
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.policy import Policy, Role
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.models.lora import LoraConfig, init_lora
from selfevo_jax.sample.protocol import (
    Completion,
    LabelRequest,
    Labels,
    Request,
    SamplingParams,
    Score,
    ScoreRequest,
)
from selfevo_jax.torch_backend import wire
from selfevo_jax.torch_backend.backend import TorchBackend
from selfevo_jax.torch_backend.launch import WorkerError
from selfevo_jax.weights.peft import save_peft

CONFIG = f"{Path(__file__).parents[2] / 'configs' / 'quickstart.py'}:tiny"
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="deepspeed is not installed: pip install 'selfevo_jax[deepspeed]'",
)
ASKED = ({"role": "user", "content": "2 + 2"},)
DRAWS = [
    Request(f"draw{i}", ASKED, SamplingParams(4 + i, top_logprobs=2, details=True), seed=i)
    for i in range(9)
]  # fmt: skip
QUESTIONS = {
    "generate": DRAWS,
    "score": [ScoreRequest(f"s{i}", ASKED, "four" * i, end=i % 2 == 0) for i in range(1, 7)],
    "labels": [LabelRequest(f"l{i}", ASKED, ("1", "2", "3"), "4" * i) for i in range(6)],
}


def made(processes: int) -> tuple[TorchBackend, str]:
    said = io.StringIO()
    changes = [f"torch.processes={processes}", "compute.slots=2", "backend=torch"]
    progress = Progress(Console(file=said, soft_wrap=True))
    return TorchBackend(load_config(CONFIG, changes), progress), said.getvalue()


@pytest.fixture(scope="module")
def backends(tmp_path_factory):
    """One process, and a pool of two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFEVO_CACHE", str(tmp_path_factory.mktemp("cache")))
        (alone, _), (pooled, said) = made(1), made(2)
        assert "sampling and judging: 2 processes of this machine" in said
        yield alone, pooled
        pooled.end_sampling()


@pytest.fixture(scope="module")
def trained(backends, tmp_path_factory) -> Policy:
    """The base with an adapter that is far from zero."""
    lora, model = LoraConfig(rank=2), backends[0].model
    tree = init_lora(model.files.config, lora, jax.random.key(0))
    tree = jax.tree.map(lambda leaf: leaf + 0.3, tree)
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    save_peft(folder, tree, lora, "tiny", model.files.hash)
    return Policy("trained", "hash", folder)


def by_id(backend: TorchBackend, policy: Policy, what: str) -> dict:
    found = getattr(backend.generator(policy), what)(iter(QUESTIONS[what]))
    return {one.id: one for one in found}


@needs_deepspeed
@pytest.mark.parametrize("what", QUESTIONS)
def test_two_processes_answer_as_one(what, backends, trained):
    alone, pooled = backends
    for policy in (Policy("base", None), trained):
        wanted, found = by_id(alone, policy, what), by_id(pooled, policy, what)
        assert found == wanted and len(found) == len(QUESTIONS[what])
    assert found != by_id(alone, Policy("base", None), what)


@needs_deepspeed
def test_mistakes_and_killed_processes_are_told_and_the_next_question_is_answered(
    backends, trained, tmp_path
):
    alone, pooled = backends
    lost = Policy("lost", None, tmp_path / "none")
    with pytest.raises(UserError) as wanted:
        by_id(alone, lost, "score")
    with pytest.raises(UserError) as found:
        by_id(pooled, lost, "score")
    assert str(found.value) == str(wanted.value)
    answers = pooled.generator(trained).score(iter(QUESTIONS["score"]))
    first = next(answers)
    os.kill(pooled.samplers.processes[1].process.pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="a process that samples ended with status -9"):
        for _ in range(3):
            answers = list(pooled.generator(trained).score(iter(QUESTIONS["score"] * 5)))
    assert all(one.process.poll() is not None for one in pooled.samplers.processes)
    again = by_id(pooled, trained, "score")
    assert again[first.id] == first and len(again) == 6


@needs_deepspeed
def test_what_computes_here_ends_them(backends, trained):
    _, pooled = backends
    by_id(pooled, trained, "labels")
    processes = [one.process for one in pooled.samplers.processes]
    assert all(process.poll() is None for process in processes)
    assert pooled.embedder(trained)(["a duck"]).shape[0] == 1
    # By themselves, as they do when the run is killed: their standard input has ended.
    assert [process.poll() for process in processes] == [-signal.SIGTERM] * 2


def test_lines_say_what_was_asked_and_answered():
    role = Role(model="random:tiny?seed=1", cap_tokens=5)
    policy = Policy("judge", "h", Path("/an adapter"), "base", role)
    texts = SamplingParams(3, stop=("a\n", "b"), stop_token_ids=(4,))
    asked = {
        "generate": [Request("1", ASKED, texts, 7, "so"), Request("2", "as it is", tokens=(1, 2))],
        "score": [ScoreRequest("1", ASKED, "é\n", end=False, adapter="x")],
        "labels": [LabelRequest("1", "text", ("A", "B"), "Answer: ")],
    }
    number = np.float32(-0.1)
    answered = {
        "generate": [
            Completion("1", "é", (1, 2), (number, -2.5), "stop", 9, (((1, -0.5), (2, -1.0)),),
                       (0.5,), (0.25,))
        ],
        "score": [Score("1", (number,), (np.int32(3),))],
        "labels": [Labels("1", (number, -1.0))],
    }  # fmt: skip
    for what, requests in asked.items():
        line = wire.question(what, policy, requests)
        assert "\n" not in line and wire.read_question(line) == (what, policy, requests)
        line = wire.answer(what, answered[what])
        assert "\n" not in line and wire.read_answer(line) == answered[what]
