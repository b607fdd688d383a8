"""Imports point down only: no package of selfevo_jax imports one that stands above it."""

import ast
from pathlib import Path

import selfevo_jax

PACKAGE = Path(selfevo_jax.__file__).parent
# Each line may import from the lines above it, and a package from itself.
ORDER = (
    {"errors", "records", "config"},
    {"parallel"},
    {"models"},
    {"weights"},
    {"text"},
    {"learn", "sample", "judge"},
    {"evaluate"},
    {"evolve", "report"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


def imports(source: str) -> set[str]:
    """The parts of selfevo_jax that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("selfevo_jax.")}
    return found


def upward(part: str, source: str) -> set[str]:
    """What a file of `part` imports from its own height or above it, other than itself."""
    wrong = {name for name in imports(source) - {part} if LEVEL[name] >= LEVEL[part]}
    return wrong - ({"errors"} if LEVEL[part] == 0 else set())


def files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE) + [
        PACKAGE / f"{name}.py" for name in ORDER[0]
    ]


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_has_a_place():
    assert {part_of(path) for path in files()} <= set(LEVEL)


def test_imports_point_down():
    wrong = {
        str(path.relative_to(PACKAGE)): upward(part_of(path), path.read_text()) for path in files()
    }
    assert {name: parts for name, parts in wrong.items() if parts} == {}


def test_no_relative_import_hides_an_arrow():
    for path in files():
        nodes = ast.walk(ast.parse(path.read_text()))
        assert not [n for n in nodes if isinstance(n, ast.ImportFrom) and n.level], path


def test_an_upward_import_is_seen():
    assert upward("models", "from selfevo_jax.learn.losses import dpo") == {"learn"}
    assert upward("learn", "def f():\n    import selfevo_jax.sample.engine") == {"sample"}
    assert upward("evolve", "from selfevo_jax import report") == {"report"}
    assert upward("learn", "from selfevo_jax.models.llama import forward") == set()


def test_methods_know_no_backend():
    """A method file reads like its paper: it imports the run and nothing below it."""
    for name in ("verified",):
        source = (PACKAGE / "evolve" / f"{name}.py").read_text()
        modules = [n.module for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ImportFrom)]
        assert modules == ["selfevo_jax.evolve.run"]
        assert len(source.splitlines()) <= 200
