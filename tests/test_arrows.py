"""Imports point down only: no package of selfevo_jax imports one that stands above it."""

import ast
import re
from pathlib import Path

import selfevo_jax
from selfevo_jax.evolve.methods import METHODS

PACKAGE = Path(selfevo_jax.__file__).parent
# Each line may import from the lines above it, and a package from itself.
ORDER = (
    {"errors", "records", "config"},
    {"parallel"},
    {"models"},
    {"weights"},
    {"text", "remote"},
    {"learn", "sample"},
    {"judge"},
    {"evaluate"},
    {"evolve", "report", "aot"},
    {"serve", "torch_backend"},
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


# What of the engine a method file may not use: it has the run, and pure functions over records.
ENGINE = set(
    """backend embedding engine evaluated evaluation exporting files gauges jax_model journal keys
    launch meter methods model_stages plan policy progress pure ray_pool stages tiny training
    uncertainty views work""".split()
)
MACHINERY = re.compile(r"\b(backend|shard\w*|mesh|path|retry|retries|folder|jax|torch)\b", re.I)


def modules(source: str) -> set[str]:
    """The modules of ours that a file imports from, also where it imports them whole."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("selfevo_jax."):
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= set(whole) if node.module == "selfevo_jax.evolve" else {node.module}
    return found


def test_methods_know_no_backend():
    """A method file reads like its paper: the run and pure helpers, none of the machinery."""
    for name in METHODS:
        source = (PACKAGE / "evolve" / f"{name}.py").read_text()
        found = modules(source)
        assert all(n.startswith("selfevo_jax.evolve.") for n in found), name
        assert not {n.removeprefix("selfevo_jax.evolve.") for n in found} & ENGINE, name
        words = MACHINERY.findall(source.replace("selfevo_jax.", ""))
        assert not words, f"{name} speaks of {words}"
        assert len(source.splitlines()) <= 210, name  # about 200
