"""The launch script of vLLM: the command that it would run, and what it refuses."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "third_party" / "vllm" / "serve.sh"


def serve(*words: str, **settings: str) -> subprocess.CompletedProcess:
    clean = {"PATH": os.environ["PATH"], "DRY_RUN": "1", **settings}
    return subprocess.run([SCRIPT, *words], env=clean, capture_output=True, text=True)


def test_adapters_are_served_at_the_largest_of_their_ranks(tmp_path):
    for name, rank in (("one", 8), ("two", 64)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(f'{{\n  "r": {rank},\n  "x": 1\n}}')
    adapters = [f"{name}={tmp_path / name}" for name in ("one", "two")]
    command = serve("org/model", *adapters, GPUS="2").stdout.split()
    assert command[:3] == ["vllm", "serve", "org/model"]
    assert command[command.index("--max-lora-rank") + 1] == "64"
    assert command[command.index("--tensor-parallel-size") + 1] == "2"
    assert command[-2:] == adapters
    assert "--enable-lora" not in serve("org/model").stdout


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        ((), {}, "name a model"),
        (("m", "one=/nowhere"), {}, "there is no /nowhere/adapter_config.json"),
        (("m",), {"HOST": "0.0.0.0"}, "set VLLM_API_KEY"),
        (("m",), {"DRY_RUN": "0", "PATH": "/usr/bin:/bin"}, "vllm is not on the PATH"),
    ],
)
def test_mistakes_end_before_a_server_starts(words, settings, message):
    done = serve(*words, **settings)
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
