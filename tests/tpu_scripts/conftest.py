"""A fake cloud on PATH, a small checkout, and a way to run the scripts."""

import contextlib
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).parent / "fake_cloud.py"


class Cloud:
    """One fake cloud, one small checkout whose path has a space in it, and a way to run scripts."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "cloud"
        self.checkout = folder / "check out"
        self._make_programs(folder / "bin")
        self._make_checkout()
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "FAKE_CLOUD": str(self.state),
            "TPU_NAME": "pod",
            "TPU_PROJECT": "science",
            "TPU_ZONE": "zone-a",
            "RETRY_SECONDS": "0",
            "POLL_SECONDS": "0.2",
            "WAIT_POLLS": "5",
            "STOP_SECONDS": "1",
        }

    def _make_programs(self, folder: Path) -> None:
        folder.mkdir()
        (self.state / "workers").mkdir(parents=True)
        (self.state / "created").write_text("ACTIVE")
        for name in ("gcloud", "sbatch"):
            program = folder / name
            program.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
            program.chmod(0o755)

    def _make_checkout(self) -> None:
        shutil.copytree(REPO / "tpu_scripts", self.checkout / "tpu_scripts")
        (self.checkout / "constraints").mkdir()
        for name, body in (
            ("find_python.sh", "echo python"),
            ("install.sh", 'mkdir -p "$1" && echo "$@" >"$1/installed"'),
        ):
            script = self.checkout / "constraints" / name
            script.write_text(f"#!/usr/bin/env bash\n{body}\n")
            script.chmod(0o755)
        (self.checkout / "a file with spaces.txt").write_text("kept whole")
        subprocess.run(["git", "init", "-q", str(self.checkout)], check=True)

    def run(self, script: str, *argv: str, **settings: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(self.checkout / "tpu_scripts" / script), *argv],
            env=self.environment | settings,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    def on_a_terminal(self, answer: str, script: str, *argv: str) -> int:
        """The exit status of a script on a terminal, where `answer` has been typed."""
        ours, theirs = pty.openpty()
        os.write(ours, f"{answer}\n".encode())
        try:
            return subprocess.run(
                [str(self.checkout / "tpu_scripts" / script), *argv],
                env=self.environment,
                capture_output=True,
                timeout=60,
                stdin=theirs,
            ).returncode
        finally:
            os.close(ours)
            os.close(theirs)

    def done(self, script: str, *argv: str, **settings: str) -> str:
        result = self.run(script, *argv, **settings)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def job(self, command: list[str]) -> str:
        """A job file that runs `command`, its arguments quoted by Python."""
        quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in command)
        path = self.checkout / "tpu_scripts/jobs/trial.sh"
        path.write_text(f"JOB=trial\nCOMMAND=({quoted})\n")
        return str(path)

    def calls(self) -> list[list[str]]:
        path = self.state / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def steps(self) -> list[str]:
        """The verbs that changed something, in order."""
        return [call[4] for call in self.calls() if call[4] not in ("describe",)]

    def fail(self, part: str, times: int) -> None:
        (self.state / "fail.json").write_text(json.dumps({part: times}))

    def worker(self, number: int) -> Path:
        return self.state / "workers" / str(number)

    def counting_job(self, then: str) -> str:
        """A job that counts its starts in the cloud's folder, and runs `then` with the count in $n.

        Only worker 0 counts; worker 1 ends well at once.
        """
        count = self.state / "count"
        script = f"""case $HOME in */1) exit 0 ;; esac
            echo x >>'{count}'; n=$(wc -l <'{count}'); {then}"""
        return self.job(["bash", "-c", script])

    def starts(self) -> int:
        """How often it was started."""
        return len((self.state / "count").read_text().split())

    def status(self) -> list[str]:
        """What status.sh says of the job on each worker."""
        return self.done("status.sh", "trial").splitlines()[2:]

    def processes(self) -> list[int]:
        """What really runs on the workers."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # another user's, or it has ended
                if f"HOME={self.state}/workers/".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def end(self) -> None:
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def wait_for_end(self, job: str = "trial") -> None:
        deadline = time.monotonic() + 20
        while any(not (self.worker(n) / f".selfevo/{job}.rc").exists() for n in (0, 1)):
            assert time.monotonic() < deadline, "the job did not end"
            time.sleep(0.05)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path)
    yield made
    made.end()
