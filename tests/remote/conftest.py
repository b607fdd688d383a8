import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

SERVER = Path(__file__).with_name("bucket_server.py")
ROOT = Path(__file__).parents[2]
CONFIG = f"--config={ROOT}/configs/quickstart.py:tiny"
SOON = 300  # seconds
LIMIT = 900  # seconds that one start of a miniature run may take
OFTEN = """
import sys
from selfevo_jax.cli import main
from selfevo_jax.remote import mirror
mirror.SAVE_SECONDS = 0.3
sys.exit(main(sys.argv[1:]))
"""


class BucketServer:
    """A process that serves the buckets in a folder; it can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.port = folder, "0"
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(SERVER), str(self._folder), self.port]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.port = self._process.stdout.readline().strip()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def environment(self) -> dict[str, str]:
        return {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{self.port}",
            # Else Google is asked what kind of bucket it is.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }


class Machine:
    """A folder for caches, and one run at a time; `lost` takes all that is on it away."""

    def __init__(self, folder: Path, environment: dict[str, str], devices: int) -> None:
        self.cache, self._said = folder / "cache", folder / "said"
        self.cache.mkdir(parents=True)
        flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
        own = {"SELFEVO_CACHE": str(self.cache), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
        self._environment = os.environ | environment | own
        self.process: subprocess.Popen | None = None

    def start(self, *arguments: str) -> None:
        command = [sys.executable, "-c", OFTEN, *arguments]
        with open(self._said, "a") as said:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdout=said, stderr=said
            )

    def run(self, workdir: str, *options: str) -> None:
        self.start("run", CONFIG, f"--workdir={workdir}", *options)

    def said(self) -> str:
        return self._said.read_text()

    def end(self, status: int = 0, limit: float = LIMIT) -> None:
        assert self.process.wait(limit) == status, self.said()

    def wait_for(self, pattern: str) -> None:
        limit = time.monotonic() + LIMIT
        while not any(self.cache.glob(f"workdirs/*/{pattern}")):
            assert self.process.poll() is None and time.monotonic() < limit, self.said()
            time.sleep(0.01)

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def lost(self) -> None:
        shutil.rmtree(self.cache)


@pytest.fixture
def machine(server, tmp_path):
    """Gives a new machine with so many devices; what still runs at the end is killed."""
    made = []

    def make(devices: int = 1) -> Machine:
        made.append(Machine(tmp_path / f"machine-{len(made)}", server.environment(), devices))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture(scope="session")
def one_server(tmp_path_factory):
    server = BucketServer(tmp_path_factory.mktemp("buckets"))
    yield server
    server.stop()


@pytest.fixture
def server(one_server, monkeypatch, tmp_path):
    for name, value in one_server.environment().items():
        monkeypatch.setenv(name, value)
    gcsfs = pytest.importorskip("gcsfs", reason="needs gcsfs (the extra `gcs`)")
    # Without its half minute of trying again, so that an outage is seen at once.
    once = gcsfs.GCSFileSystem._request.__wrapped__
    monkeypatch.setattr(gcsfs.GCSFileSystem, "_request", once)
    monkeypatch.setenv("SELFEVO_CACHE", str(tmp_path / "cache"))
    return one_server


@pytest.fixture
def url(server):
    """Of a workdir that nobody has used."""
    return f"gs://b/runs/{uuid.uuid4().hex}"


@pytest.fixture
def another_process():
    """The number of a process that lives, and is not this one."""
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def files():
    """Gives everything below a folder but what is not for others."""

    def read(folder: Path) -> dict[str, bytes]:
        found = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
        return {str(p.relative_to(folder)): p.read_bytes() for p in found}

    return read


@pytest.fixture(scope="session")
def where():
    """Gives an address where hosts can meet."""

    def free() -> str:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return f"127.0.0.1:{probe.getsockname()[1]}"

    return free


@pytest.fixture(scope="session")
def until():
    """Waits for what happens soon."""

    def wait(happened: Callable[[], bool]) -> None:
        limit = time.monotonic() + SOON
        while not happened():
            assert time.monotonic() < limit
            time.sleep(0.05)

    return wait
