"""A miniature run in this process: config, workdir, and what it printed."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from selfevo_jax.config import load_config
from selfevo_jax.evolve.launch import launch
from selfevo_jax.evolve.progress import Progress

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"
SMALL = ["rounds=1", "prompts.n=24", "sample.n=16", "evaluate.n=4"]


@dataclass
class Mini:
    """Runs the tiny quickstart with overrides in one workdir; returns what was said."""

    workdir: Path

    def __call__(self, *overrides: str, dry_run: bool = False) -> str:
        said = io.StringIO()
        progress = Progress(Console(file=said, width=200))
        config = load_config(f"{QUICKSTART}:tiny", [*SMALL, *overrides])
        launch(config, self.workdir, progress, command="a test", dry_run=dry_run)
        return said.getvalue()


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """A cache of its own for the random model."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def mini(tmp_path, cache, monkeypatch) -> Callable[..., str]:
    """The miniature run of this test."""
    monkeypatch.setenv("SELFEVO_CACHE", str(cache))
    return Mini(tmp_path / "run")
