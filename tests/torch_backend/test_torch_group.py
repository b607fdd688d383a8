"""Which processes train, how they are started, and what is said when one of them fails."""

import contextlib
import importlib.util
import io
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from selfevo_jax.config import load_config
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.files import write_json
from selfevo_jax.evolve.policy import Policy
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.training import Fitting, training_of
from selfevo_jax.records import Pair
from selfevo_jax.torch_backend.backend import TorchBackend
from selfevo_jax.torch_backend.group import CONFIGS, NAMES, Group, choose_group, read_hostfile
from selfevo_jax.torch_backend.launch import WorkerError, commands, failure

ROOT = Path(__file__).parents[2]
CONFIG = f"{ROOT / 'configs' / 'quickstart.py'}:tiny"
NOTHING = {"processes": 0, "deepspeed": "", "hostfile": ""}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="deepspeed is not installed: pip install 'selfevo_jax[deepspeed]'",
)


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Puts shell programs on the PATH by name and body."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def put(name: str, body: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    return put


@pytest.mark.parametrize(
    ("gpus", "processes", "size", "why"),
    [(0, 0, 1, "0 GPUs here"), (1, 0, 1, "1 GPU here"), (0, 1, 1, "torch.processes=1")],
)
def test_one_process_needs_no_deepspeed(gpus, processes, size, why):
    group = choose_group({**NOTHING, "processes": processes}, {}, gpus)
    assert (group.size, group.deepspeed, group.reach) == (size, None, "local")
    assert group.told() == f"training: 1 process ({why}), no DeepSpeed"


@needs_deepspeed
def test_every_gpu_gets_a_process():
    group = choose_group(NOTHING, {"SLURM_JOB_NUM_NODES": "1"}, 8)
    assert group.size == 8 and group.told().endswith("third_party/deepspeed/zero2.json")
    assert group.told().startswith("training: 8 processes (8 GPUs here), DeepSpeed with ")


@needs_deepspeed
def test_a_configuration_of_ours_goes_by_its_name():
    for name in NAMES:
        group = choose_group({**NOTHING, "deepspeed": name}, {}, 1)
        assert group.deepspeed == CONFIGS / f"{name}.json" and group.size == 1
        assert group.stage == int(name[len("zero")])
    assert {f"{name}.json" for name in NAMES} == {file.name for file in CONFIGS.iterdir()}


def test_without_deepspeed_the_command_that_installs_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install 'selfevo_jax\[torch,deepspeed\]'"):
        choose_group(NOTHING, {}, 2)


@needs_deepspeed
def test_hosts_come_from_a_file_or_from_slurm(tmp_path, programs):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("# two machines\none slots=4\ntwo.local slots=4  # the second\n\n")
    group = choose_group({**NOTHING, "hostfile": str(hostfile)}, {}, 1)
    assert (group.hosts, group.size, group.reach) == (("one", "two.local"), 8, "ssh")
    programs("scontrol", '[ "$*" = "show hostnames gpu[1-3]" ] && printf "gpu1\\ngpu2\\ngpu3\\n"')
    slurm = {"SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_NODELIST": "gpu[1-3]"}
    group = choose_group(NOTHING, slurm, 2)
    assert (group.hosts, group.size, group.reach) == (("gpu1", "gpu2", "gpu3"), 6, "slurm")


def test_slurm_starts_one_agent_on_each_node(tmp_path):
    (line,) = commands(Group(("gpu1", "gpu2"), 4, "slurm", "", None), tmp_path)
    assert line[:4] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1"]
    assert line[-4:-1] == [str(tmp_path), "2", "4"] and line[-1].startswith("gpu1:")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one host"),
        ("one slots=4\ntwo slots=2\n", "same number of slots"),
        ("one slots=4\none slots=4\n", "'one slots=4' is not a new host"),
        ("-oProxyCommand=x slots=1\n", "is not a new host"),
        ("one\n", "HOST slots=8"),
    ],
)
def test_a_hostfile_that_does_not_serve_is_refused(text, message, tmp_path):
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UserError, match=message):
        read_hostfile(tmp_path / "hosts")


@pytest.mark.parametrize(
    ("settings", "environment", "message"),
    [
        ({}, {"WORLD_SIZE": "2"}, "without torchrun"),
        ({"processes": -1}, {}, "torch.processes=-1"),
        ({"deepspeed": "nowhere.json"}, {}, "nowhere.json.*or zero2, .*zero3_offload"),
        ({"hostfile": "nowhere"}, {}, "hostfile nowhere does not exist"),
    ],
)
def test_mistakes_are_said_before_anything_runs(settings, environment, message):
    with pytest.raises(UserError, match=message):
        choose_group({**NOTHING, **settings}, environment, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"zero_optimization": {"stage": 1}}, "stage is 1; use 2 or 3"),
        ({"zero_optimization": {"stage": 2}, "fp16": {}}, "sets 'fp16'"),
        ([], "not a DeepSpeed configuration"),
    ],
)
def test_a_deepspeed_file_that_does_not_serve_is_refused(content, message, tmp_path):
    (tmp_path / "zero.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        choose_group({**NOTHING, "deepspeed": str(tmp_path / "zero.json")}, {}, 0)


def backend(cache: Path, *overrides: str) -> tuple[TorchBackend, io.StringIO]:
    said = io.StringIO()
    progress = Progress(Console(file=said, soft_wrap=True))
    return TorchBackend(load_config(CONFIG, ["backend=torch", *overrides]), progress), said


def pairs(count: int, length: int = 3) -> list[Pair]:
    asked = ({"role": "user", "content": "2 + 2"},)
    return [
        Pair.make(
            prompt_id="p", chosen_id=f"c{i}", rejected_id="r", prompt=asked,
            chosen="4" * (i % length + 1), rejected="5",
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.mark.slow
@needs_deepspeed
def test_two_hosts_train_what_one_process_trains(tmp_path, programs, monkeypatch):
    """`ssh` here runs the command on this machine: two agents of one process each, under ZeRO-3."""
    monkeypatch.setenv("SELFEVO_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "secret")
    programs("ssh", f'echo "$3" >> {tmp_path / "asked"}; echo "$4" >> {tmp_path / "lines"}; '
             'exec sh -c "$4"')  # fmt: skip
    (tmp_path / "hosts").write_text("localhost slots=1\n127.0.0.1 slots=1\n")
    base, losses, said_steps = Policy("base", None), {}, []
    hosts = [f"torch.hostfile={tmp_path / 'hosts'}", "torch.deepspeed=zero3"]
    for settings, told in (
        (["torch.processes=1"], "training: 1 process (torch.processes=1)"),
        (hosts, "1 process on each of 2 hosts"),
    ):
        runs, said = backend(tmp_path, *settings)
        assert told in said.getvalue()
        training = training_of(runs.config, learn={"lr": 0.02, "micro_rows": 2})
        folder = tmp_path / f"fit{len(losses)}"
        fitting = Fitting(training, base, base, folder, tmp_path / f"reference{len(losses)}")
        counts = runs.fit(pairs(4), fitting, lambda done, text: said_steps.append(text))
        assert counts["examples"] == 4 and counts["steps"] > 0
        assert not (folder / "group").exists()
        assert (folder / "adapter" / "adapter_model.safetensors").exists()
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        losses[told] = [json.loads(row)["loss"] for row in rows]
    alone, together = losses.values()
    assert together == pytest.approx(alone, abs=1e-5)
    assert said_steps == [f"loss {loss:.4f}" for loss in alone] * 2
    assert sorted((tmp_path / "asked").read_text().split()) == ["127.0.0.1", "localhost"]
    lines = (tmp_path / "lines").read_text()
    assert "SELFEVO_CACHE=" in lines and "secret" not in lines


@pytest.mark.parametrize(
    ("failures", "kind", "message"),
    [
        ([(1, 5.0, False, "UserError: no adapter\nTraceback"), (0, 6.0, False, "ValueError: 1")],
         UserError, r"^no adapter \(process 1 of 4 failed first\)$"),
        ([(1, 5.0, False, "ValueError: 1\nTraceback"), (3, 6.0, True, "ended by SIGKILL")],
         WorkerError, "^process 3 of 4 failed first: ended by SIGKILL"),
        ([], WorkerError, "(?s)4 processes did not start:.*ssh: no route"),
    ],
)  # fmt: skip
def test_what_failed_first_on_any_host_is_the_error(failures, kind, message, tmp_path):
    """A killed process is the first: the others fail for want of it, and may say so earlier."""
    (tmp_path / "agents.log").write_text("ssh: no route to host")
    for rank, when, killed, text in failures:
        said = {"rank": rank, "when": when, "killed": killed, "text": text}
        write_json(tmp_path / "failures" / f"host{rank}.json", said)
    with pytest.raises(kind, match=message):
        raise failure(Group(("one", "two"), 2, "ssh", "", None), tmp_path)


@needs_deepspeed
@pytest.mark.slow
def test_a_mistake_in_any_process_is_the_users_message(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFEVO_CACHE", str(tmp_path))
    runs, said = backend(tmp_path, "torch.processes=2")
    assert "training: 2 processes (torch.processes=2)" in said.getvalue()
    lost, base = Policy("lost", None, tmp_path / "none"), Policy("base", None)
    fitting = Fitting(training_of(runs.config), lost, base, tmp_path / "fit", tmp_path / "store")
    with pytest.raises(UserError, match="none.*process [01] of 2 failed first"):
        runs.fit(pairs(4), fitting, lambda done, text: None)


def processes_of(folder: Path) -> dict[int, int]:
    """rank -> process id of the workers of a job."""
    found = {}
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (place / "cmdline").read_bytes().split(b"\0")
            if b"selfevo_jax.torch_backend.worker" in words and str(folder).encode() in words:
                settings = (place / "environ").read_bytes().split(b"\0")
                rank = next(s for s in settings if s.startswith(b"RANK="))
                found[int(rank.removeprefix(b"RANK="))] = int(place.name)
    return found


def wait_for(condition, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@needs_deepspeed
def test_one_killed_process_ends_the_group_and_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFEVO_CACHE", str(tmp_path))
    runs, _ = backend(tmp_path, "torch.processes=2")
    place, base = tmp_path / "fit" / "group", Policy("base", None)

    def kill() -> None:
        wait_for(lambda: len(processes_of(place)) == 2)
        os.kill(processes_of(place)[1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    fitting = Fitting(training_of(runs.config), base, base, place.parent, tmp_path / "store")
    with pytest.raises(WorkerError, match="process 1 of 2 failed first.*SIGKILL"):
        runs.fit(pairs(4), fitting, lambda *said: None)
    killer.join()
    assert processes_of(place) == {}


@needs_deepspeed
@pytest.mark.slow
def test_a_run_killed_in_training_leaves_no_process_and_goes_on(tmp_path):
    workdir = tmp_path / "run"
    few = ["prompts.n=24", "evaluate.n=4", "rounds=1", "torch.processes=2", "backend=torch"]
    command = [sys.executable, "-m", "selfevo_jax.cli", "run", f"--config={CONFIG}",
               f"--workdir={workdir}", *(f"--config.{text}" for text in few)]  # fmt: skip
    environment = {**os.environ, "SELFEVO_CACHE": str(tmp_path)}
    place = workdir / "round_01" / "train" / "group"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as run:
        wait_for(lambda: len(processes_of(place)) == 2)
        run.kill()
    wait_for(lambda: not processes_of(place), 60)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (workdir / "summary.json").exists() and not place.exists()
