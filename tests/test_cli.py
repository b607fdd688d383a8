"""The command line: help that fits a screen, mistakes as one line with status 2, and its verbs."""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfevo_jax import cli

ROOT = Path(__file__).parents[1]
TINY = f"--config={ROOT / 'configs' / 'quickstart.py'}:tiny"
FEW = ["--config.rounds=1", "--config.prompts.n=24", "--config.evaluate.n=4"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFEVO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def finished(cache, tmp_path_factory) -> Path:
    """The workdir of a small finished run."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    assert cli.main(["run", TINY, *FEW, f"--workdir={workdir}"]) == 0
    return workdir


def verbs(parser: argparse.ArgumentParser, name: str = "") -> Iterator[str]:
    """Every command and sub-command of the parser."""
    yield name
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below, inner in action.choices.items():
                yield from verbs(inner, f"{name} {below}".strip())


@pytest.mark.parametrize("verb", list(verbs(cli.parser())))
def test_help_fits_a_screen_and_its_example_can_be_typed(verb, capsys, monkeypatch):
    """40 lines of 80 columns; the example stands on one line, and the command takes it."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        cli.main([*verb.split(), "--help"])
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert stopped.value.code == 0
    assert len(lines) <= 40 and max(map(len, lines)) <= 80
    example = said.partition("\nexample:\n  ")[2].rstrip("\n")
    words = shlex.split(re.sub(r'^eval "\$\((.*)\)"$', r"\1", example))
    assert words[0] == "selfevo" and words[1:][: len(verb.split())] == verb.split()
    _, rest = cli.parser().parse_known_args(words[1:])
    assert all(word.startswith("--config.") for word in rest)


def test_usage_names_what_must_be_given():
    (verbs_of,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    usage = {name: " ".join(p.format_usage().split()) for name, p in verbs_of.choices.items()}
    assert usage["eval"] == "usage: selfevo eval --tasks A,B [OPTION ...]"
    assert usage["judge"] == "usage: selfevo judge [OPTION ...] WHAT"
    one_of = "(--prompt TEXT | --prompts FILE)"
    assert usage["sample"] == f"usage: selfevo sample --model SOURCE {one_of} [OPTION ...]"


def test_help_loads_no_jax():
    code = (
        "import sys; from selfevo_jax import cli; cli.parser().format_help(); "
        "print([m for m in ('jax', 'numpy', 'rich', 'ml_collections') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--config=nowhere.py", "--workdir=w"], "nowhere.py does not exist"),
        (["run", TINY, "--workdir=w", "--config.lern.lr=1"], "did you mean --config.learn.lr"),
        (["run", TINY, "--workdir=w", "--dry-rum"], "did you mean --dry-run"),
        (["run", TINY, "--workdir=w", "--config.rounds"], "has no value"),
        (["run", TINY, "--workdir=w", "--config.rounds", "x"], "this setting is a int"),
        (["report", "w"], "not the workdir of a run"),
        (["export", "w", "--out=x"], "not the workdir of a run"),
        (["push", "w", "--repo=a/b"], "w is no export"),
        (["data", "check", "w.jsonl"], "w.jsonl: cannot be read"),
        (["sample", "--model=w", "--prompt=a"], "'w' does not exist"),
        (["sample", "--model=w", "--prompt=a", "--dtype=int4"], "use float32, bfloat16"),
        (["eval", "--model=w", "--tasks=rg:chain_sun", "--out=o"], "did you mean rg:chain_sum"),
        (["env", "--all"], "unknown argument '--all'"),
        ([], "COMMAND"),
        (["rum"], "'rum'"),
        (["import", "f.jsonl"], "required: --format, --out; see selfevo import --help"),
        (["import", "f", "--format=elit", "--out=o"], "choice: 'elit'"),
        (["completion", "fish"], "choice: 'fish'"),
        (["data", "shew"], "see selfevo data --help"),
        (["sample", "--model=w", "--prompt=a", "--n=x"], "argument --n: invalid int value: 'x'"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and len(said.err.splitlines()) == 1
    assert message in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_message_that_quotes_what_others_wrote_moves_no_cursor(capsys):
    assert cli.main(["sample", "--model=\x1b[2J\u202ew", "--prompt=a"]) == 2
    said = capsys.readouterr().err
    assert "\\x1b[2J\\u202ew" in said and not {"\x1b", "\u202e"} & set(said)


def test_a_defect_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("selfevo_jax.evolve.launch.versions", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["env"])


@pytest.mark.parametrize(
    ("line", "place"), [("", "no rows"), ('{"prompt": "a"}\n{"prompt": \n', "bad.jsonl:2")]
)
def test_bad_data_is_named_with_its_line(tmp_path, capsys, line, place):
    (tmp_path / "bad.jsonl").write_text(line)
    assert cli.main(["data", "check", str(tmp_path / "bad.jsonl")]) == 2
    assert place in capsys.readouterr().err


def test_env_names_versions_and_devices(capsys):
    assert cli.main(["env"]) == 0
    said = capsys.readouterr().out
    for words in ("system: ", "GiB of memory", "jax 0.", "torch", "numpy", "devices of JAX: cpu"):
        assert words in said
    assert "commit: " in said


def test_run_writes_summary_and_report(finished, capsys):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["rounds"][1]["tasks"]["rg:chain_sum"]["n"] == 4
    assert summary["rounds"][1]["counts"]["samples"] == 24 * 16
    assert "<html" in (finished / "report.html").read_text()
    (finished / "report.html").unlink()
    assert cli.main(["report", str(finished)]) == 0
    assert (finished / "report.html").exists()


def test_the_pairs_of_a_run_can_be_shown(finished, capsys):
    """A pair file is a preference file of the usual kind, so the tools for data read it."""
    pairs = str(finished / "round_01/pair/records.jsonl")
    assert cli.main(["data", "check", pairs]) == 0
    assert "preference pairs" in capsys.readouterr().out
    assert cli.main(["data", "show", pairs, "--model=random:tiny?seed=0", "--limit=1"]) == 0
    assert "<|assistant|>" in capsys.readouterr().out


def test_sample_repeats_by_seed_and_writes_a_file(cache, tmp_path, capsys):
    command = ["sample", "--model=random:tiny?seed=0", "--prompt=hello", "--max-new-tokens=8"]
    command += ["--max-length=64", "--slots=2", "--n=2"]
    said = []
    for seed in ("1", "1", "2"):
        assert cli.main([*command, f"--seed={seed}"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]
    out = tmp_path / "out.jsonl"
    assert cli.main([*command, "--seed=1", f"--out={out}"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == ["prompt/0", "prompt/1"]


def test_eval_counts_and_goes_on(cache, finished, tmp_path, capsys):
    command = ["eval", "--model=random:tiny?seed=0", "--tasks=rg:chain_sum", "--limit=5"]
    command += [f"--out={tmp_path}", "--max-new-tokens=4", "--slots=4", "--max-length=256"]
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert "rg:chain_sum" in said.out and "loading" in said.err
    assert cli.main(command) == 0
    again = capsys.readouterr()
    assert again.out == said.out and "loading" not in again.err
    adapter = finished / "round_01/train/adapter"
    assert cli.main([*command, f"--adapter={adapter}"]) == 2
    assert "holds another evaluation" in capsys.readouterr().err


def test_export_merges_what_the_run_trained(finished, tmp_path, capsys):
    """The merged model answers as base and adapter do."""
    merged, adapter = tmp_path / "merged", tmp_path / "adapter"
    assert cli.main(["export", str(finished), f"--out={merged}"]) == 0
    assert cli.main(["export", str(finished), f"--out={adapter}", "--format=peft"]) == 0
    assert (adapter / "adapter_config.json").exists()
    assert "`random:tiny?seed=0`" in (merged / "README.md").read_text()
    gguf = ["export", str(finished), f"--out={tmp_path / 'gguf'}", "--format=gguf"]
    assert cli.main(gguf) == 2 and not (tmp_path / "gguf").exists()  # a byte a token: no merges
    ask = ["sample", "--prompt=What is 2 + 3?", "--max-new-tokens=40"]
    ask += ["--max-length=128", "--slots=2"]
    capsys.readouterr()
    said = []
    for model in (
        [f"--model={merged}"],
        ["--model=random:tiny?seed=0", f"--adapter={adapter}"],
        ["--model=random:tiny?seed=0"],
    ):
        assert cli.main([*ask, *model]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != said[2]
    assert cli.main(["export", str(finished), f"--out={merged}"]) == 2
    assert cli.main(["export", str(finished), "--out=x", "--policy=round_07"]) == 2
    assert "trained: round_01" in capsys.readouterr().err


def test_an_interrupt_says_how_to_go_on(cache, tmp_path):
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "selfevo_jax.cli", "run", TINY, f"--workdir={workdir}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 120
    while not (workdir / "run.json").exists() and time.monotonic() < limit:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "the same command goes on from here" in said and "Traceback" not in said
