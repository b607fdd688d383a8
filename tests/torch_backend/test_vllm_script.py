"""The launch script of vLLM: the command that it would run, and what it refuses."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "third_party" / "vllm" / "serve.sh"


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


def test_the_page_s_command_starts_the_server(tmp_path):
    """As it stands there; the `vllm` of the reader's home writes its words down."""
    page = SCRIPT.with_name("README.md").read_text()
    (command,) = re.findall(r"^PATH=.*serve\.sh .*$", page, re.M)
    program = tmp_path / "vllm/bin/vllm"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$VLLM_NO_USAGE_STATS $*"\n')
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = command.split()[-1]
    assert done.stdout.startswith(f"1 serve {model} --host 127.0.0.1 --port 8000 ")


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
