"""Keys: where they may come from, and that they are nowhere to be found afterwards."""

import contextlib
import importlib.util
import json
import logging
import os
import random
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.sample.http.endpoint import Endpoint
from selfevo_jax.sample.http.secret import Secret, secret_from_environment, secret_from_file
from selfevo_jax.sample.protocol import Request

spec = importlib.util.spec_from_file_location(
    "faulty_server", Path(__file__).with_name("faulty_server.py")
)
faulty = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faulty)

CANARY = "sk-canary-0f3e9a7711d24c"
serve, asks, client, collect = faulty.serve, faulty.asks, faulty.client, faulty.collect


def test_addresses_that_a_key_must_not_go_to():
    key = Secret(CANARY)
    assert Endpoint("http://127.0.0.1:1/v1", "m", key=key).loopback
    for url in (
        f"https://user:{CANARY}@example.org/v1", f"https://example.org/v1?key={CANARY}",
        "ftp://example.org", "example.org/v1", "http://example.org/v1", "http://[::1/v1",
        "http://localhost:80a/v1",
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            Endpoint(url, "m", key=key)
        assert CANARY not in str(caught.value)


@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
def test_a_redirect_takes_no_key_to_another_server(serve, status):
    asked, other = serve(lambda number: status), serve()

    class Moved(faulty.Handler):
        def answer(self, fault, reply):
            self.send(int(fault), b"", {"Location": f"{other.url}/chat/completions"})

    asked.RequestHandlerClass = Moved
    generator = client(asked, key=Secret(CANARY))
    with pytest.raises(UserError, match=f"status {status}"):
        collect(generator.generate(asks(1)))
    generator.close()
    assert len(asked.headers) == 1 and other.headers == []


def test_keys_come_from_the_environment_or_a_private_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", f" {CANARY}\n")
    assert secret_from_environment("SOME_KEY").reveal() == CANARY
    with pytest.raises(UserError, match="NO_KEY"):
        secret_from_environment("NO_KEY")
    path = tmp_path / "key"
    path.write_text(f"{CANARY}\n")
    path.chmod(0o600)
    assert secret_from_file(path).reveal() == CANARY
    for mode in (0o644, 0o640, 0o660, 0o700):
        path.chmod(mode)
        with pytest.raises(UserError, match="chmod 600"):
            secret_from_file(path)
    with pytest.raises(UserError, match="cannot be read"):
        secret_from_file(tmp_path / "none")


def test_a_secret_does_not_print_copy_or_compare():
    import copy
    import pickle

    secret = Secret(CANARY)
    assert (
        CANARY
        not in f"{secret} {secret!r} {[secret]} {Endpoint('https://a.b/v1', 'm', key=secret)}"
    )
    assert secret != CANARY
    for leak in (pickle.dumps, copy.deepcopy, json.dumps):
        with pytest.raises(TypeError):
            leak(secret)


def test_the_canary_is_nowhere(serve, tmp_path, caplog, monkeypatch):
    """7.1 l: every log at its most talkative, the cache, records, errors with their locals."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SOME_KEY", CANARY)
    server = serve(lambda number: random.Random(number).choice(["", "500", "429", "cut"]))
    told = []
    generator = client(server, cache=tmp_path / "c.db", key=secret_from_environment("SOME_KEY"))
    told.append(repr(collect(generator.generate(asks(30)))))
    assert {h["Authorization"] for h in server.headers} == {f"Bearer {CANARY}"}

    class Echoing(faulty.Handler):
        def answer(self, fault, reply):
            status = 401 if fault else 200
            error = {"message": f"Incorrect API key provided: {CANARY}", "code": 400}
            self.send(status, json.dumps({"error": error}).encode())

    server.RequestHandlerClass = Echoing
    generator.close()
    generator = client(server, cache=tmp_path / "c.db", key=secret_from_environment("SOME_KEY"))
    for fault in ("401", ""):
        server.fault = lambda number, fault=fault: fault
        with pytest.raises(UserError) as caught:
            collect(generator.generate([Request("new", asks(1)[0].messages, seed=77)]))
        trace = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        told += [str(caught.value), "".join(trace.format()), repr(caught.value.__dict__)]
        assert "***" in told[-3]
    generator.close()
    told += [record.getMessage() for record in caplog.records]
    assert any("httpcore" in record.name for record in caplog.records)
    told += [path.read_bytes().decode("latin-1") for path in tmp_path.iterdir()]
    assert [text for text in told if CANARY in text] == []


def test_a_command_keeps_the_key_off_command_lines_files_and_code_that_it_runs(serve, tmp_path):
    """7.1 l: looked at while the server is asked, and after; the reply is code, and looks too."""
    server, command_lines = serve(), []

    def reply(body: dict) -> dict:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended
                command_lines.append(path.read_text())
        whole = faulty.good_reply(body)
        whole["choices"][0]["text"] = "    import os\n    return str(os.environ)\n"
        return whole

    server.reply = reply
    data = tmp_path / "humaneval/HumanEval.jsonl"
    data.parent.mkdir()
    row = {
        "task_id": "one", "prompt": "def f():\n    'What is around us.'\n", "entry_point": "f",
        "canonical_solution": "    return ''\n",
        "test": "def check(f):\n    assert f().startswith('environ') and 'canary' not in f()\n",
    }  # fmt: skip
    data.write_text(json.dumps(row))
    command = f"--model {server.url}#HumanEval --tasks humaneval --data {tmp_path}"
    ran = subprocess.run(
        [sys.executable, "-m", "selfevo_jax.cli", "eval", *command.split(), "--log_samples",
         f"--out={tmp_path / 'out.json'}"],
        capture_output=True, text=True, timeout=120,
        env=os.environ | {"SELFEVO_API_KEY": CANARY, "HOME": str(tmp_path / "home")},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert server.headers[0]["Authorization"] == f"Bearer {CANARY}"
    assert any("HumanEval" in line for line in command_lines)
    assert not any(CANARY in line for line in command_lines)
    (samples,) = tmp_path.rglob("samples_humaneval*.jsonl")
    assert json.loads(samples.read_text())["pass@1"] == 1.0
    left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) > 4
    told = [ran.stdout, ran.stderr, *(content.decode("latin-1") for content in left)]
    assert not any(CANARY in text for text in told)
