import subprocess
import sys
import uuid
from pathlib import Path

import pytest

SERVER = Path(__file__).with_name("bucket_server.py")


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
