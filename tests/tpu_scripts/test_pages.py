"""What the pages tell a reader to type at a cloud or a cluster, as it stands there, on fake ones.

The checkout has the real job files; its `selfevo` only writes down what it was asked for.
"""

import contextlib
import functools
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SCRIPT = re.compile(r"(?:[A-Z]+=\S+ )?tpu_scripts/(?:\w+\.sh .*|delete\.sh)")
SELFEVO = """#!/usr/bin/env bash
mkdir -p "$1/bin" && echo "$@" >"$1/installed"
printf '#!/usr/bin/env bash\\nprintf "%%s\\\\n" "selfevo $*"\\n' >"$1/bin/selfevo" && chmod +x "$1/bin/selfevo"
"""  # noqa: E501


def spoken(page: str, heading: str) -> tuple[str, list[str]]:
    """(settings that are exported first, commands in their order) of a page's section."""
    section = (REPO / page).read_text().partition(f"# {heading}\n")[2].partition("\n## ")[0]
    lines = [line.strip() for line in section.splitlines()]
    settings = [line for line in lines if line.startswith(("export ", "echo "))]
    sentences = re.sub(r"```.*?```", "", section, flags=re.S)
    inside = [line for line in re.findall(r"`([^`]+)`", sentences) if SCRIPT.fullmatch(line)]
    return "\n".join(settings), inside or [line for line in lines if SCRIPT.fullmatch(line)]


class Reader:
    """A person in the checkout, who has set nothing but what the page says."""

    def __init__(self, cloud, settings: str) -> None:
        self.cloud, self.settings = cloud, settings
        mine = {key: v for key, v in cloud.environment.items() if not key.startswith("TPU_")}
        self.how = {"cwd": cloud.checkout, "env": mine, "stdin": subprocess.DEVNULL, "text": True}

    def types(self, command: str) -> str:
        """What a command says that ends by itself."""
        words = ["bash", "-ec", f"{self.settings}\n{command}"]
        done = subprocess.run(words, capture_output=True, timeout=60, **self.how)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def follows(self, command: str) -> set[str]:
        """The first line from each of the two workers; then Ctrl-C, after which nothing is left."""
        words = ["bash", "-ec", f"{self.settings}\n{command}"]
        typed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # as at a terminal
        how = self.how | {"start_new_session": True, "preexec_fn": typed}
        with subprocess.Popen(words, stdout=subprocess.PIPE, **how) as process:
            try:
                said = {process.stdout.readline() for _ in range(2)}
                os.killpg(process.pid, signal.SIGINT)
                process.communicate(timeout=20)  # the last that could write has ended
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return said


@pytest.fixture
def reader(cloud):
    """Makes a reader of a section; a machine of the fake cloud has its share mounted already."""
    (cloud.checkout / "constraints/install.sh").write_text(SELFEVO)
    mounted = cloud.state.parent / "bin/mountpoint"
    mounted.write_text("#!/bin/sh\n")
    mounted.chmod(0o755)
    return lambda settings="": Reader(cloud, settings)


@pytest.mark.parametrize(
    ("page", "heading", "job", "kind"),
    [
        ("tpu_scripts/README.md", "TPU VMs and Slurm", "quickstart", "v5litepod-8"),
        ("docs/pods.md", "A v5e-16 from nothing to a report", "dpo_8b", "v5litepod-16"),
    ],
)
def test_the_cloud_s_commands(cloud, reader, page, heading, job, kind) -> None:
    """Up (dry first), watched to the end, its logs followed, and given back."""
    settings, commands = spoken(page, heading)
    scripts = [re.search(r"(\w+)\.sh", command)[1] for command in commands]
    assert scripts in (["up", "up", "watch", "logs", "delete"], ["up", "watch", "logs", "delete"])
    person = reader(settings)
    person.types(commands[0])
    assert "--dry-run" in commands[0] and cloud.calls() == []
    if scripts[1] != "up":  # "without `--dry-run` it creates"
        commands.insert(1, commands[0].replace("--dry-run ", ""))
    for command in commands[1:-2]:
        person.types(command)
    cloud.wait_for_end(job)
    (create,) = (call for call in cloud.calls() if call[4] == "create")
    where = {"--project=my-project", "--zone=us-west4-a", f"--accelerator-type={kind}"}
    assert where <= set(create) and all("pod" in " ".join(call) for call in cloud.calls())
    said = person.follows(commands[-2])
    start = r"selfevo run --cluster=auto --config=configs/quickstart\.py --workdir=\S*"
    assert all(re.match(rf"\[worker [01]\] {start}{job}\b", line) for line in said), said
    assert {line[:10] for line in said} == {"[worker 0]", "[worker 1]"}
    person.types(commands[-1])
    assert cloud.steps()[-1] == "delete" and not (cloud.state / "machine").exists()


def test_slurm_s_command(cloud, reader) -> None:
    _, (command,) = spoken("docs/pods.md", "Slurm and GPUs")
    reader().types(command)
    (call,) = cloud.calls()
    assert call[0] == "sbatch" and call[-2:] == ["--nodes=2", "--gpus-per-node=8"]
    body = (cloud.state / "batch.sh").read_text()
    assert "--workdir=/shared/runs/dpo_8b" in body and "srun" in body
