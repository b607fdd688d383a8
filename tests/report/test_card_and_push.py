"""Exports carry a card of their run, and go to a hub that speaks its protocol."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard

from selfevo_jax import cli
from selfevo_jax.report.card import model_card

TOKEN = "hf_" + "planted" * 5


@pytest.fixture
def changed_run(run_folder, tmp_path):
    """A copy of the run's two documents beside its rounds, with a hostile model name."""
    for path in run_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    run = json.loads((run_folder / "run.json").read_text())
    (tmp_path / "run.json").unlink()
    kept = {"round_02": {"parent": "round_01", "adapter": "a", "hash": "0"}}
    run |= {"model": "hf:org/base@main\nlicense: mit | x` y", "method": "verified"}
    run |= {"task": "rg:chain_sum", "policies": kept}
    (tmp_path / "run.json").write_text(json.dumps(run))
    return tmp_path


def test_the_card_is_what_the_hub_reads(changed_run):
    """huggingface_hub parses the front matter; the figures are those of summary.json."""
    card = ModelCard(model_card(changed_run, "round_02", "peft", "apache-2.0"))
    assert card.data.library_name == "peft" and card.data.license == "apache-2.0"
    assert card.data.base_model == "org/base" and card.data.tags == ["selfevo_jax", "verified"]
    rows = [line for line in card.text.splitlines() if "| `rg:chain_sum` | 300 |" in line]
    assert len(rows) == 3 and [row.startswith("| **") for row in rows] == [False, False, True]
    answers = (changed_run / "round_02/evaluate/records.jsonl").read_text().splitlines()
    share = sum(json.loads(line)["correct"] for line in answers) / 300
    assert f"{share:.1%}" in rows[2] and " to " in rows[2]
    made = dict(re.findall(r"^\| ([A-Z][\w -]+) \| `+ ?(.*?) ?`+ \|$", card.text, re.M))
    assert made["Method"] == "verified" and made["Started from"] == "round_01"
    assert '"task": "rg:chain_sum"' in made["Data"] and '"max_terms": 3' in made["Data"]
    assert made["Command"].startswith("selfevo run --config=configs/quickstart.py")
    assert "\nlicense: mit" not in card.text


def test_an_unknown_licence_is_not_made_up(changed_run):
    card = ModelCard(model_card(changed_run, "round_02", "gguf"))
    assert card.data.license is None and "terms of the base model" in card.text


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's API as one commit of small files needs."""

    def do_POST(self):
        self.server.tokens.append(self.headers["Authorization"])
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        if self.server.refuses:
            return self.answer(403, {"error": "no write access"})
        if self.path.endswith("/repos/create"):
            self.server.asked.append(json.loads(body))
            return self.answer(200, {"url": f"{self.server.url}/me/tiny"})
        if self.path.endswith("/validate-yaml"):
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files
            ]
            return self.answer(200, {"files": modes})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.server.files[line["value"]["path"]] = content
        return self.answer(
            200, {"commitUrl": f"{self.server.url}/me/tiny/commit/1", "commitOid": "1"}
        )

    def answer(self, status, value):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.tokens, server.asked, server.refuses = {}, [], [], False
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "export"
    folder.mkdir()
    for name in ("README.md", "adapter_config.json", "adapter_model.safetensors"):
        (folder / name).write_text(name)
    (folder / "notes.txt").write_text("not a part of it")
    return folder


def test_push_sends_the_export_and_nothing_else(hub, exported, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert cli.main(["push", str(exported), "--repo=me/tiny"]) == 0
    assert cli.main(["push", str(exported), "--repo=me/tiny", "--private"]) == 0
    assert [asked.get("visibility") == "private" for asked in hub.asked] == [False, True]
    assert {(asked["name"], asked["organization"]) for asked in hub.asked} == {("tiny", "me")}
    assert set(hub.files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert hub.files["README.md"] == b"README.md"
    assert set(hub.tokens) == {f"Bearer {TOKEN}"}
    said = capsys.readouterr()
    assert "/commit/1" in said.out and TOKEN not in said.out + said.err


def test_a_dry_run_sends_nothing_and_needs_no_token(hub, exported, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert cli.main(["push", str(exported), "--repo=me/tiny", "--dry-run"]) == 0
    assert "adapter_model.safetensors" in capsys.readouterr().out
    assert not hub.tokens


def test_push_refuses_in_one_line(hub, exported, monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub.refuses = True
    cases = [(exported, "HF_TOKEN is not set"), (tmp_path, "is no export")]
    for folder, message in cases:
        assert cli.main(["push", str(folder), "--repo=me/tiny"]) == 2
        assert message in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for repo, message in (("me/tiny", "no write access"), ("a/b/c", "did not take a/b/c")):
        assert cli.main(["push", str(exported), f"--repo={repo}"]) == 2
        said = capsys.readouterr().err
        assert message in said and TOKEN not in said and len(said.splitlines()) == 1
