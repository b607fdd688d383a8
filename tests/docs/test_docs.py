"""The documents are true: commands parse or run, code runs, names exist, the site builds."""

import argparse
import contextlib
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from selfevo_jax import cli, records
from selfevo_jax.cli.run import split_overrides
from selfevo_jax.config import defaults as common
from selfevo_jax.config import flat, load_config
from selfevo_jax.evaluate.tasks import get_task
from selfevo_jax.evolve.methods import METHODS
from selfevo_jax.judge.pairwise import PROTOCOLS, Comparison

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BLOCK = re.compile(r"^(?:<!-- ([^\n]*) -->\n)?```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Pages about machines that are not here, and those whose code has tests of their own.
UNMARKED = {"pods.md", "gpus.md", "from-the-papers.md", "log.md", "write-a-method.md"}


def blocks(path: Path) -> list[tuple[str, str, str]]:
    """(marker, language, content) of every block of code."""
    return BLOCK.findall(path.read_text())


def commands(content: str) -> list[list[str]]:
    lines = content.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_pages_with_commands():
    assert len(PAGES) > 12 and sum(len(blocks(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in UNMARKED], ids=named)
def test_every_block_is_executed_or_says_why_not(page):
    for marker, _, content in blocks(page):
        assert marker == "executed" or re.match(r"parsed: \w.{9}", marker), content


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=named)
def test_every_command_parses(page, monkeypatch):
    """Options, config files, settings and their values, tasks, targets of make."""
    monkeypatch.chdir(ROOT)
    for _, language, content in blocks(page):
        for words in commands(content) if language == "sh" else []:
            if words[0] == "selfevo":
                parses(words[1:])
            if words[0] == "make":
                assert re.search(rf"^{words[1]}:", Path("Makefile").read_text(), re.MULTILINE)


def parses(words: list[str]) -> None:
    with contextlib.redirect_stderr(sys.stdout):
        arguments, rest = cli.parser().parse_known_args(words)
    if arguments.verb != "run":
        assert rest == [], words
        return
    overrides, others = split_overrides(rest)
    assert others == []
    task = load_config(arguments.config, overrides).task
    if "data_dir" not in task.args:
        with contextlib.suppress(KeyError):
            get_task(task.name, **task.args.to_dict())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder in which the first page's commands were executed, as a reader would have it."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "configs").symlink_to(ROOT / "configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFEVO_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        execute(DOCS / "index.md")
        yield folder


def execute(page: Path) -> None:
    for marker, language, content in blocks(page):
        if marker != "executed":
            continue
        if language == "python":
            exec(compile(content, str(page), "exec"), {"__name__": "page"})
            continue
        for words in commands(content):
            assert words[0] == "selfevo"
            assert cli.main(words[1:]) == 0, words


@pytest.mark.parametrize(
    "page", [p for p in PAGES if any(b[0] == "executed" for b in blocks(p))], ids=named
)
def test_what_is_marked_executed_works(page, place):
    if page.name != "index.md":  # which the fixture has executed
        execute(page)
    assert (place / "runs/tiny/report.html").is_file()


@pytest.mark.parametrize("method", METHODS)
def test_a_method_s_page_names_exactly_its_settings(method):
    """Of the first column of its table; `a.*` stands for all settings below a."""
    page = (DOCS / f"methods/{method}.md").read_text()
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `")]
    told = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    own = flat(import_module(f"selfevo_jax.evolve.{method}").defaults())
    for key in own:
        assert any(key == name or key.startswith(name.removesuffix("*")) for name in told), key
    for name in told:
        assert any(key == name or key.startswith(name.removesuffix("*")) for key in own), name
    for config in re.findall(r"--config=(\S+)", page):
        assert load_config(str(ROOT / config)).method == method


def test_the_records_page_names_every_field_and_marks_identity():
    page = (DOCS / "records.md").read_text()
    kinds = [k for k in vars(records).values() if isinstance(k, type)]
    kinds = [k for k in kinds if issubclass(k, records.Record) and k is not records.Record]
    for kind in [*kinds, Comparison]:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{kind.__name__}` |"))
        told = dict(re.findall(r"`(\w+)`(\*?)", re.sub(r"\([^)]*\)", "", row.split("|")[3])))
        fields = {f.name for f in dataclasses.fields(kind)} - {"id"}
        assert set(told) == fields, kind
        assert {name for name, star in told.items() if star} == set(kind.identity), kind


def test_settings_and_protocols_that_pages_name_exist():
    known = flat(common())
    page = (DOCS / "performance.md").read_text()
    for name in re.findall(r"`((?:compute|learn)\.\w+)`", page):
        assert name in known, name
    judges = (DOCS / "judges.md").read_text()
    assert all(f"`{name}`" in judges for name in PROTOCOLS)


def test_every_kind_of_failure_names_tests_that_exist():
    rows = [line for line in (DOCS / "failures.md").read_text().splitlines() if line[:2] == "| "]
    kinds = [row for row in rows if not row.startswith(("| failure |", "| --- |"))]
    assert len(kinds) >= 29
    for row in kinds:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert re.search(rf"^def {test}\(", (ROOT / file).read_text(), re.MULTILINE), test


def test_links_between_documents_lead_somewhere():
    for page in [*PAGES, *ROOT.glob("*.md")]:
        if page.name in {"CHANGELOG.md", *UNMARKED}:
            continue
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)
        for path in re.findall(
            r"`((?:selfevo_jax|configs|tests|docs)/[\w./-]+)`", page.read_text()
        ):
            if not re.search(r"NAME|PART", path):
                assert (ROOT / path).exists(), (page, path)


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("material", reason="mkdocs-material is not installed (the extra `docs`)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    page = (tmp_path / "index.html").read_text()
    assert "Ten minutes" in page and "fonts.googleapis.com" not in page


def test_the_parser_is_the_one_that_is_documented():
    """A command that exists stands on some page."""
    text = "\n".join(page.read_text() for page in PAGES)
    (verbs,) = (a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert [verb for verb in verbs.choices if f"selfevo {verb}" not in text] == []


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
