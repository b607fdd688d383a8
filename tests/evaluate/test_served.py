"""Asking a server: a question that it refuses is counted and listed, and stops nothing."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from selfevo_jax import cli
from selfevo_jax.evolve.journal import Entry, Journal

REASON = "maximum context length is 64 tokens"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.prompts.append(body["prompt"])
        refused = self.server.refuses in body["prompt"]
        status, content = (400, {"error": REASON}) if refused else (200, self.answer(body))
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def answer(self, body):
        """The reply 7; asked to echo, one token for every letter, none of them likely."""
        choice = {"index": 0, "finish_reason": "stop", "text": " So.\n#### 7"}
        if body.get("echo"):
            text = body["prompt"]
            choice["logprobs"] = {
                "tokens": list(text), "text_offset": list(range(len(text))),
                "token_logprobs": [None, *[-1.0] * (len(text) - 1)],
            }  # fmt: skip
        return {"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.prompts, server.refuses = [], "far far"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def command(server, tmp_path):
    gsm8k = [{"question": f"{'far ' * (1 + (n == 1))}{n}?", "answer": "#### 7"} for n in range(9)]
    boolq = [
        {"question": f"q{n}", "passage": "far " * (1 + n % 2), "answer": True} for n in range(4)
    ]
    for name, rows in (("gsm8k/test.jsonl", gsm8k), ("boolq/dev.jsonl", boolq)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    url = f"http://127.0.0.1:{server.server_port}/v1#m"
    out = tmp_path / "out"
    return ["eval", f"--model={url}", f"--data={tmp_path}", f"--out={out}", "--num_fewshot=0"]


def results(tmp_path):
    (path,) = (tmp_path / "out").glob("results_*.json")
    return json.loads(path.read_text())["results"]


def test_a_refused_question_is_wrong_listed_and_kept(server, command, tmp_path, capsys):
    """The tasks after it are asked, and the same command asks for nothing again."""
    assert cli.main([*command, "--tasks=gsm8k,boolq"]) == 0
    said = capsys.readouterr().out
    assert "gsm8k: 1 questions were refused by the server and count as wrong" in said
    assert f"gsm8k/test.jsonl:2), the first: http://127.0.0.1:{server.server_port}" in said
    found = results(tmp_path)["gsm8k"]
    (place,) = found["refused"]
    assert place == "gsm8k/test.jsonl:2" and REASON in found["refused"][place]
    rows = [
        row
        for line in next((tmp_path / "out").glob("samples_gsm8k*")).read_text().splitlines()
        if (row := json.loads(line))["filter"] == "strict-match"
    ]
    assert [row["exact_match"] for row in rows] == [float(not row["refused"]) for row in rows]
    assert found["exact_match,strict-match"] == pytest.approx(1 - 1 / len(rows))
    boolq = results(tmp_path)["boolq"]
    assert list(boolq["refused"]) == ["boolq/dev.jsonl:2", "boolq/dev.jsonl:4"]
    assert boolq["acc,none"] <= 0.5
    asked = len(server.prompts)
    assert cli.main([*command, "--tasks=gsm8k,boolq"]) == 0
    assert len(server.prompts) == asked and capsys.readouterr().out == said


def test_one_refused_of_several_replies_refuses_the_question(command, tmp_path):
    more = ["--tasks=gsm8k", "--repeats=2", "--gen_kwargs=temperature=1"]
    assert cli.main([*command, *more]) == 0
    assert list(results(tmp_path)["gsm8k"]["refused"]) == ["gsm8k/test.jsonl:2"]


def test_a_refused_question_that_is_left_over_ends_the_task(server, command, tmp_path):
    """As after a kill when all but it was answered: it alone is asked for, and is no error."""
    assert cli.main([*command, "--tasks=gsm8k"]) == 0
    folder, whole = tmp_path / "out" / "gsm8k", results(tmp_path)
    stage = json.loads((folder / "stage.json").read_text())
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    (folder / "stage.json").unlink()
    (folder / "records.jsonl").unlink()
    journal = Journal(folder / "records.part.jsonl", stage["key"])
    for place, row in enumerate(rows):
        if not row["refused"]:
            journal.append(Entry(place, str(row["number"]), [row]))
    journal.close()
    server.prompts.clear()
    assert cli.main([*command, "--tasks=gsm8k"]) == 0
    assert len(server.prompts) == 1 and results(tmp_path) == whole


def test_a_server_that_refuses_everything_is_no_result(server, command, tmp_path, capsys):
    """Such a server cannot do what is asked of it: an accuracy of 0 would be about something
    else. What it refused is not kept, so that a mended one is asked."""
    server.refuses = ""
    assert cli.main([*command, "--tasks=gsm8k", "--limit=3"]) == 2
    said = capsys.readouterr().err
    assert "gsm8k: every question was refused, the first by" in said and REASON in said
    server.refuses = "far far"
    assert cli.main([*command, "--tasks=gsm8k", "--limit=3"]) == 0
