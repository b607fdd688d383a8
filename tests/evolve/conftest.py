"""A miniature run in this process: config, workdir, and what it printed."""

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from selfevo_jax.config import load_config
from selfevo_jax.evolve.journal import Journal
from selfevo_jax.evolve.launch import launch
from selfevo_jax.evolve.progress import Progress

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"
SMALL = ["rounds=1", "prompts.n=24", "sample.n=16", "evaluate.n=4"]


@dataclass
class Mini:
    """Runs a tiny config with overrides in one workdir; returns what was said."""

    workdir: Path
    config: str = f"{QUICKSTART}:tiny"
    small: tuple[str, ...] = tuple(SMALL)

    def __call__(self, *overrides: str, dry_run: bool = False) -> str:
        said = io.StringIO()
        progress = Progress(Console(file=said, width=200))
        config = load_config(self.config, [*self.small, *overrides])
        launch(config, self.workdir, progress, command="a test", dry_run=dry_run)
        return said.getvalue()

    def rows(self, stage: str) -> list[dict]:
        """The records of a stage."""
        lines = (self.workdir / stage / "records.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A cache of its own for the random model."""
    return tmp_path_factory.mktemp("cache")


class Killed(BaseException):
    """Stands for a kill: nothing after it runs but what Python itself unwinds."""


class Method:
    """Miniature runs of one method: whole ones, and killed ones."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder

    def __call__(self, label: str = "run") -> Mini:
        """The runner in a workdir of its own."""
        return Mini(self.folder / label, f"{QUICKSTART.parent / self.name}.py:tiny", ())

    def killed(self, label: str, after: int, *overrides: str) -> Mini:
        """A run that dies after so many finished inputs and steps, and is then gone on with."""
        run, left, real = self(label), [after], Journal.append

        def append(journal: Journal, entry) -> None:
            real(journal, entry)
            left[0] -= 1
            if not left[0]:
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "append", append)
            with pytest.raises(Killed):
                run(*overrides)
        run(*overrides)
        return run


TIMES = {"timings.jsonl", "goodput.jsonl", "log.jsonl", ".lock"}


def content(workdir: Path) -> dict[str, bytes]:
    """Every file of a run that must not depend on when it was killed."""
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(workdir.rglob("*"))
        if path.is_file() and path.name not in TIMES and "reference" not in path.parts
    }


@pytest.fixture
def content_of() -> Callable[[Mini], dict[str, bytes]]:
    """What must be equal of two runs; they must have done something."""

    def found(run: Mini) -> dict[str, bytes]:
        files = content(run.workdir)
        assert not [name for name in files if name.endswith((".part.jsonl", ".tmp"))]
        return files

    return found


@pytest.fixture(scope="module")
def method(request, tmp_path_factory, cache) -> Iterator[Method]:
    """The method after which the test file is named."""
    name = Path(request.path).stem.removeprefix("test_")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFEVO_CACHE", str(cache))
        yield Method(name, tmp_path_factory.mktemp(name))


@pytest.fixture
def mini(tmp_path, cache, monkeypatch) -> Callable[..., str]:
    """The miniature run of this test."""
    monkeypatch.setenv("SELFEVO_CACHE", str(cache))
    return Mini(tmp_path / "run")


EASY = """
import runpy

def get_config(arg=None):
    config = runpy.run_path({config!r})["get_config"](arg)
    config.task.name, config.task.args = "ifeval", {{"data_dir": {data!r}}}
    return config
"""


@pytest.fixture
def easy(tmp_path) -> Callable[[Mini], Mini]:
    """Gives a run a task whose every reply is right: fewer than 999 words are asked for."""
    asked = {"instruction_id_list": ["length_constraints:number_words"]}
    asked["kwargs"] = [{"num_words": 999, "relation": "less than"}]
    rows = [{"key": n, "prompt": f"Say {n} in a few words."} | asked for n in range(60)]
    (tmp_path / "ifeval").mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "ifeval" / "input_data.jsonl").write_text(lines)

    def changed(run: Mini) -> Mini:
        config, _, variant = run.config.rpartition(":")
        file = tmp_path / "easy.py"
        file.write_text(EASY.format(config=config, data=str(tmp_path)))
        run.config = f"{file}:{variant}"
        return run

    return changed
