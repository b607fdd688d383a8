"""The key of a server that takes part in a run: it reaches the server, and nothing else."""

import importlib.util
import json
import logging
import os
from pathlib import Path

import pytest

from selfevo_jax import cli

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location(
    "faulty_server", Path(__file__).parents[1] / "sample" / "faulty_server.py"
)
faulty = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faulty)
serve = faulty.serve

CANARY = "sk-canary-7b1e55d0c9a844"
# RefEval with one training by preferences, whose references a teacher writes.
SHORT = (
    "references.by=teacher", "judges=('rouge',)", "betas=(0.05,)", "evaluate.n=2",
    "roles.teacher.key_env=TEACHER_KEY",
)  # fmt: skip


def run(workdir: Path, model: str, *more: str) -> int:
    config = f"--config={ROOT / 'configs/refeval.py'}:tiny"
    options = [f"--config.{text}" for text in (*SHORT, f"roles.teacher.model={model}", *more)]
    return cli.main(["run", config, f"--workdir={workdir}", *options])


@pytest.fixture
def planted(tmp_path, monkeypatch, caplog) -> Path:
    """A folder in which all is kept, with the key in the environment and every log talkative."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TEACHER_KEY", CANARY)
    monkeypatch.setenv("SELFEVO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def holding(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if CANARY.encode() in path.read_bytes()]


def test_a_key_reaches_its_server_and_no_file_log_page_or_export(serve, planted, capsys, caplog):
    """7.1 l, with a whole run: failing calls, its page, a card, a tracker's files, what is said."""
    server = serve(lambda number: ["", "500", "error in 200", "", ""][number % 5])
    model = f"{server.url}#m"
    assert run(planted / "run", model, "track=tensorboard") == 0
    assert len(server.headers) > 4
    assert {header["Authorization"] for header in server.headers} == {f"Bearer {CANARY}"}
    out = f"--out={planted / 'export'}"
    assert cli.main(["export", str(planted / "run"), out, "--format=peft"]) == 0
    assert cli.main(["report", str(planted / "run")]) == 0
    assert cli.main(["env"]) == 0
    assert model in json.dumps(json.loads((planted / "run/config.json").read_text()))
    assert list(planted.glob("run/track/tensorboard/events.*"))  # else nothing was looked through
    assert len(list(planted.rglob("*"))) > 60 and holding(planted) == []
    said = capsys.readouterr()
    told = [said.out, said.err, *(record.getMessage() for record in caplog.records)]
    assert "finished: " in said.out and [text for text in told if CANARY in text] == []


def test_a_server_that_repeats_the_key_does_not_spread_it(serve, planted, capsys):
    server = serve()

    class Echoing(faulty.Handler):
        def answer(self, fault, reply):
            error = {"message": f"Incorrect API key provided: {CANARY}", "code": 401}
            self.send(401, json.dumps({"error": error}).encode())

    server.RequestHandlerClass = Echoing
    assert run(planted / "run", f"{server.url}#m") == 2
    said = capsys.readouterr()
    assert "Incorrect API key provided: ***" in said.err
    assert CANARY not in said.out + said.err and holding(planted) == []
    assert (planted / "run/config.json").exists()


@pytest.mark.parametrize(
    "address",
    [f"https://user:{CANARY}@host.example/v1#m", f"https://host.example/v1?key={CANARY}#m",
     f"https://{CANARY}@host.example/v1"],
)  # fmt: skip
def test_a_key_in_an_address_is_refused_before_anything_is_written(address, planted, capsys):
    assert run(planted / "run", address, "track=tensorboard") == 2
    ask = ["judge", "injection", f"--model={address}", f"--out={planted / 'bench'}"]
    assert cli.main(ask) == 2
    said = capsys.readouterr()
    assert CANARY not in said.out + said.err
    assert said.err.count("must not hold a user, a password or a query") == 2
    assert not (planted / "run").exists() and not (planted / "bench").exists()
    assert os.environ["TEACHER_KEY"] == CANARY and holding(planted) == []
