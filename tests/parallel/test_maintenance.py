"""Notices of a metadata server, a real one here: a new one ends the run as SIGTERM does."""

import http.server
import threading
import time
from pathlib import Path

import pytest

from selfevo_jax import cli
from selfevo_jax.cli.interrupts import insistent_interrupts
from selfevo_jax.parallel import maintenance
from selfevo_jax.parallel.preemption import Preempted

TINY = f"{Path(__file__).parents[2] / 'configs/quickstart.py'}:tiny"


class Metadata(http.server.BaseHTTPRequestHandler):
    """Answers as Google's does, and only to those who name it."""

    def do_GET(self):
        name = self.path.removeprefix("/computeMetadata/v1/instance/")
        known = self.headers["Metadata-Flavor"] == "Google" and name in self.server.answers
        self.send_response(200 if known else 403)
        self.end_headers()
        if known:
            self.wfile.write(self.server.answers[name].encode())
        self.server.asked += 1

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def metadata(monkeypatch):
    """The server's answers, which a test may change."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata)
    server.answers = {"preempted": "FALSE", "maintenance-event": "NONE"}
    server.asked = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
    monkeypatch.setattr(maintenance, "EVERY_SECONDS", 0.05)
    yield server
    server.shutdown()


def after(server, times):
    """Waits until the server was asked so often."""
    end = time.monotonic() + 10
    while server.asked < times and time.monotonic() < end:
        time.sleep(0.01)
    assert server.asked >= times


@pytest.mark.parametrize(
    "sign", [("preempted", "TRUE"), ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE")]
)
def test_a_new_sign_is_a_preemption(metadata, sign):
    with pytest.raises(Preempted), insistent_interrupts(), maintenance.watched():
        after(metadata, 4)
        metadata.answers.update([sign])
        time.sleep(10)


def test_what_does_not_end_the_machine_and_what_stood_there_before_is_no_sign(metadata):
    metadata.answers["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
    with insistent_interrupts(), maintenance.watched():
        after(metadata, 4)
        metadata.answers["maintenance-event"] = "MIGRATE_ON_HOST_MAINTENANCE"
        after(metadata, 8)


def test_a_server_that_does_not_answer_is_no_sign(metadata):
    metadata.answers.clear()
    with insistent_interrupts(), maintenance.watched():
        after(metadata, 6)


def test_other_machines_are_not_watched(monkeypatch, tmp_path):
    monkeypatch.delenv("GCE_METADATA_HOST", raising=False)
    monkeypatch.setattr(maintenance, "PRODUCT", tmp_path / "product_name")
    with maintenance.watched():
        assert "maintenance" not in [thread.name for thread in threading.enumerate()]
    (tmp_path / "product_name").write_text("Google Compute Engine\n")
    with maintenance.watched():
        assert "maintenance" in [thread.name for thread in threading.enumerate()]


def test_a_run_leaves_and_goes_on(metadata, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SELFEVO_CACHE", str(tmp_path / "cache"))
    run = ["run", f"--config={TINY}", f"--workdir={tmp_path / 'run'}", "--config.rounds=1"]

    def spoil():
        while not list(tmp_path.glob("run/round_00/*")):
            time.sleep(0.05)
        metadata.answers["preempted"] = "TRUE"

    threading.Thread(target=spoil, daemon=True).start()
    assert cli.main(run) == 143
    assert "told to stop; everything finished is kept" in capsys.readouterr().err
    assert cli.main(run) == 0  # the sign still stands
