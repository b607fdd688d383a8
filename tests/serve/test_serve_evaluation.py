"""`selfevo eval` against a server of ours gives what the model itself gives."""

import json

import pytest

from selfevo_jax import cli

MODEL = "random:tiny?seed=0"
BOOLQ = [
    {"question": f"is {n} even", "passage": f"Numbers like {n} are said to be so.", "answer": True}
    for n in range(4)
]
SVAMP = [
    {"Body": f"A hen has {n} eggs", "Question": "How many eggs are there?", "Answer": n}
    for n in range(24)
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, rows in {"boolq/dev.jsonl": BOOLQ, "svamp/svamp.jsonl": SVAMP}.items():
        (folder / name).parent.mkdir()
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def rows_of(out, task):
    (path,) = out.glob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def evaluated(model, data, out, *options):
    command = ["eval", f"--model={model}", f"--data={data}", f"--out={out}", "--limit=4"]
    command += ["--gen_kwargs=max_gen_toks=5", "--batch_size=4", "--max-length=256", *options]
    assert cli.main(command) == 0
    return out


def test_choices_and_replies_are_those_of_the_model_itself(server, data, tmp_path):
    tasks = "--tasks=boolq,svamp"
    remote = evaluated(f"{server.url}/v1#{MODEL}", data, tmp_path / "remote", tasks)
    local = evaluated(MODEL, data, tmp_path / "local", tasks)
    for there, here in zip(rows_of(remote, "boolq"), rows_of(local, "boolq"), strict=True):
        assert there["place"] == here["place"] and there["acc"] == here["acc"]
        assert there["filtered_resps"] == pytest.approx(here["filtered_resps"], abs=1e-3)
    (results,) = remote.glob("results_*.json")
    assert json.loads(results.read_text())["results"]["boolq"]["alias"] == "boolq"


def test_in_turns_the_server_s_template_is_used(server, data, tmp_path):
    options = ["--tasks=svamp", "--apply_chat_template"]
    remote = evaluated(f"{server.url}/v1#{MODEL}", data, tmp_path / "remote", *options)
    local = evaluated(MODEL, data, tmp_path / "local", *options)
    said = [[row["resps"] for row in rows_of(out, "svamp_plain")] for out in (remote, local)]
    assert said[0] == said[1] and len(said[0]) == 4


def test_an_adapter_is_another_model(server, data, tmp_path):
    options = ["--tasks=svamp", "--apply_chat_template"]
    tuned = evaluated(f"{server.url}/v1#tuned", data, tmp_path / "tuned", *options)
    base = evaluated(f"{server.url}/v1#{MODEL}", data, tmp_path / "base", *options)
    assert rows_of(tuned, "svamp_plain") != rows_of(base, "svamp_plain")


def test_a_model_that_is_not_served_is_said(server, data, tmp_path, capsys):
    command = ["eval", f"--model={server.url}/v1#nobody", f"--data={data}", "--tasks=boolq"]
    assert cli.main([*command, f"--out={tmp_path / 'out'}"]) == 2
    assert "no such model; see /v1/models" in capsys.readouterr().err
