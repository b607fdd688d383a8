"""docs/from-the-papers.md names what exists, and leaves out no script or flag of the READMEs."""

import argparse
import os
import re
import shlex
from pathlib import Path

import pytest

from selfevo_jax import cli
from selfevo_jax.config import flat, load_config
from selfevo_jax.evaluate.tasks import get_benchmarks
from selfevo_jax.evolve.methods import METHODS, defaults

ROOT = Path(__file__).parents[1]
DOC = (ROOT / "docs" / "from-the-papers.md").read_text(encoding="utf-8")
SYSTEMS = dict(re.findall(r"^## [^\n]+\n\n`(\w+)`(.*?)(?=^## |\Z)", DOC, re.MULTILINE | re.DOTALL))
KEY = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*")
OTHER = ("RUN", "make ", "metrics.jsonl", "--workdir")  # names that are no keys


def rows(text: str) -> list[tuple[str, str]]:
    """(theirs, here) of every table in a text."""
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    found = [tuple(cell) for cell in cells if cell[0] not in ("theirs", "---")]
    assert found and all(len(cell) == 2 for cell in found)
    return found


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def options(words: list[str]) -> None:
    """Every option of a `selfevo ...` line is one of the command's."""
    verbs = next(
        a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)
    ).choices
    known = {name for action in verbs[words[1]]._actions for name in action.option_strings}
    given = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
    assert given <= known, f"{' '.join(words)}: {given - known}"
    values = dict(word.split("=", 1) for word in words if "=" in word)
    if "--tasks" in values:
        get_benchmarks(values["--tasks"])


def stages_of(system: str) -> set[str]:
    """The names a method's source gives to stages."""
    source = (ROOT / "selfevo_jax" / "evolve" / f"{system}.py").read_text()
    return set(re.findall(r'"(\w+)"', source)) | {"train"}


def test_every_system_has_its_table():
    assert set(SYSTEMS) == set(METHODS) - {"verified", "combined", "offline"}


@pytest.mark.parametrize("system", SYSTEMS)
def test_what_is_named_here_exists(system):
    keys = set(flat(defaults(system)))
    keys |= {key.rpartition(".")[0] for key in keys}
    for _, here in rows(SYSTEMS[system]):
        known = keys | (stages_of(system) if "stage" in here else set())
        for name in named(here):
            check(name, known)


def check(name: str, known: set[str]) -> None:
    """A command with its options, a config with its argument, or a key or stage."""
    if name.startswith("selfevo "):
        words = shlex.split(name)
        options(words)
        for word in words:
            if word.startswith("--config=configs/"):
                load_config(str(ROOT / word.partition("=")[2]))
    elif name.startswith("configs/"):
        load_config(str(ROOT / name))
    elif not name.startswith((*OTHER, "--prompts")):
        assert KEY.fullmatch(name) and name in known, name


def test_the_common_table_names_keys_of_all_systems():
    common = DOC.partition("## ELITE")[0]
    for _, here in rows(common):
        for name in named(here):
            name = name.partition("=")[0] if name.startswith("backend=") else name
            for system in SYSTEMS if name != "key_env" else ():
                check(name, set(flat(defaults(system))))


def test_nothing_of_the_readmes_is_left_out():
    """Every flag and script that the systems' own READMEs name has its row."""
    folder = Path(os.environ.get("SELFEVO_SHARED", ROOT.parent / "shared")) / "seeds"
    if not folder.is_dir():
        pytest.skip(f"no READMEs of the five systems at {folder}")
    order = ("elite", "meteor", "reflectevo", "refeval", "active")
    for system, path in zip(order, sorted(folder.glob("*.txt")), strict=True):
        text = path.read_text(encoding="utf-8")
        wanted = set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]+", text))
        wanted |= set(re.findall(r"\b[\w/]+\.(?:py|sh)\b", text)) - {"b.sh"}
        theirs = " ".join(cell for cell, _ in rows(SYSTEMS[system]))
        missing = {name for name in wanted if not re.search(rf"(?<![\w-]){name}(?![\w-])", theirs)}
        assert not missing, f"{system}: {sorted(missing)}"
