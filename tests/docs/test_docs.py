"""The documents are true: settings, fields, tests and links exist, the site builds."""

import dataclasses
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from selfevo_jax import records
from selfevo_jax.config import defaults as common
from selfevo_jax.config import flat, load_config
from selfevo_jax.evolve.methods import METHODS
from selfevo_jax.judge.pairwise import PROTOCOLS, Comparison

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# Pages that name files which are to be written, or were, and addresses.
UNMARKED = {"pods.md", "gpus.md", "from-the-papers.md", "log.md", "write-a-method.md"}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_s_page_says_what_when_what_it_costs_and_gives(method):
    page = (DOCS / f"methods/{method}.md").read_text()
    for part in ("**What.**", "**When.**", "| setting |", "**Cost", "**Results.**"):
        assert part in page, part


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
