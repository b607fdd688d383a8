"""A random model with one token per byte, and room for a judge's prompt; rules as judges; and the
cage of hostile programs, with what is looked at after each."""

import ast
import ctypes
import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.tiny import END, PAD, TEMPLATE, byte_tokenizer
from selfevo_jax.judge.sandbox import Limits, Sandbox
from selfevo_jax.models.config import ModelConfig
from selfevo_jax.models.llama import init_params
from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.text.tokenizer import Tokenizer, load_tokenizer
from selfevo_jax.weights.model_files import save_model


@dataclass(frozen=True)
class ByteModel:
    """A tiny model in an ordinary folder."""

    folder: Path
    config: ModelConfig
    params: dict
    tokenizer: Tokenizer

    def generator(self, max_length: int = 2048) -> JaxGenerator:
        return JaxGenerator(
            self.config, self.params, self.tokenizer,
            slots=4, max_length=max_length, prompt_rows=4, chunk=64, steps=8,
        )  # fmt: skip


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory) -> ByteModel:
    folder = tmp_path_factory.mktemp("byte") / "model"
    inner = byte_tokenizer()
    config = ModelConfig(
        vocab_size=inner.get_vocab_size(), hidden_size=32, intermediate_size=48, num_layers=1,
        num_heads=2, num_kv_heads=1, head_dim=16, max_position=4096, tie_embeddings=True,
    )  # fmt: skip
    params = init_params(config, jax.random.key(3))

    def save(fresh: Path) -> None:
        inner.save(str(fresh / "tokenizer.json"))
        settings = {"chat_template": TEMPLATE, "eos_token": END, "pad_token": PAD}
        (fresh / "tokenizer_config.json").write_text(json.dumps(settings))

    save_model(folder, config, params, save_tokenizer=save)
    return ByteModel(folder, config, params, load_tokenizer(folder))


@pytest.fixture(scope="session")
def rules():
    """The module of rule judges beside this file."""
    spec = importlib.util.spec_from_file_location("rules", Path(__file__).parent / "rules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PR_SET_CHILD_SUBREAPER = 36
LIMITS = Limits(wall_seconds=8, cpu_seconds=4, memory_bytes=256 << 20)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox(LIMITS)
    except UserError as error:
        pytest.skip(str(error))


def caged_processes() -> list[int]:
    """Descendants of this process that a cage started; orphans come back to us, their reaper."""
    parents, caged = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "status").read_text()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        pid = int(folder.name)
        parents[pid] = int(status.split("PPid:")[1].split()[0])
        if b"inside.launch" in command:
            caged.append(pid)

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [pid for pid in caged if ours(pid)]


@pytest.fixture
def nothing_left(sandbox: Sandbox):
    """After each program: no process of a cage, and the next program is judged as ever."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    assert caged_processes() == []
    assert sandbox.run_tests("def f(): return 1", ["assert f() == 1"]).passed


@pytest.fixture
def result(sandbox: Sandbox) -> Callable[[str], str]:
    """What `f()`, with a body, gives its caller: the text of a failing test's message."""

    def told(body: str) -> str:
        code = "def f():\n" + "\n".join("    " + line for line in body.splitlines())
        outcome = sandbox.run_tests(code, ["raise ValueError(repr(f()))"])
        assert outcome.name == "failed", outcome
        return outcome.message.removeprefix("test 1: ")

    return told


@pytest.fixture(scope="session")
def literal() -> Callable[[str], object]:
    """The value that such a message tells."""
    return lambda text: ast.literal_eval(text.removeprefix("ValueError: "))
