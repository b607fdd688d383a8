"""What is shipped: dependencies, versions, the wheel, forbidden calls, and the set-up scripts."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "selfevo_jax"
PYTHONS = ("3.11", "3.12", "3.13")
TOP_LEVEL = {
    ".ci", ".editorconfig", ".gitignore", ".pre-commit-config.yaml", "AGENTS.md", "CHANGELOG.md",
    "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md", "benchmarks", "configs",
    "constraints", "docs", "mkdocs.yml", "notebooks", "pyproject.toml", "selfevo_jax", "setup.py",
    "tests", "third_party", "tpu_scripts",
}  # fmt: skip
NEVER_IN_BASE = re.compile(r"torch|tensorflow|libtpu|nvidia-.*|jax-cuda.*|jax-rocm.*|litellm")


def tracked() -> list[Path]:
    """The files that git tracks or would track, relative to the root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout: there is no list of files")
    listing = subprocess.check_output(command, cwd=ROOT, text=True)
    return [Path(name) for name in listing.split("\0") if name and (ROOT / name).exists()]


# ---- dependencies and versions


def base_requirements() -> list[Requirement]:
    lines = importlib.metadata.requires("selfevo_jax")
    return [r for r in map(Requirement, lines) if "extra" not in str(r.marker)]


def reachable(requirements: list[Requirement]) -> set[str]:
    """Names of everything that these requirements bring, as installed here."""
    names, waiting = set(), list(requirements)
    while waiting:
        requirement = waiting.pop()
        extras = {f"{canonicalize_name(requirement.name)}[{extra}]" for extra in requirement.extras}
        new = ({canonicalize_name(requirement.name)} | extras) - names
        if not new or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        names |= new
        inner = map(Requirement, importlib.metadata.requires(requirement.name) or ())
        waiting += [r for r in inner if wanted(r, requirement.extras)]
    return names


def wanted(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    if marker is None or not any(marker.evaluate({"extra": extra}) for extra in {"", *extras}):
        return marker is None
    requirement.marker = None
    return True


def pins(python: str) -> dict[str, str]:
    lines = (ROOT / "constraints" / f"py{python.replace('.', '')}.txt").read_text().splitlines()
    assert lines[0].startswith("#")
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", line) for line in lines[1:])
    pairs = (line.split("==") for line in lines[1:])
    return {canonicalize_name(name): version for name, version in pairs}


def test_base_install_brings_no_accelerator_and_no_torch() -> None:
    names = reachable(base_requirements())
    assert {"jax", "flax", "numpy", "reasoning-gym", "etils"} <= names  # the walk does walk
    assert [name for name in names if NEVER_IN_BASE.fullmatch(name)] == []


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_hold_every_base_requirement(python: str) -> None:
    versions = pins(python)
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    for requirement in base_requirements():
        if requirement.marker is None or requirement.marker.evaluate(environment):
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), (requirement, version)
    assert ("torch" in versions) == (python == "3.11")


# ---- the wheel

ZERO = ROOT / "third_party" / "deepspeed"
INSIDE = "selfevo_jax/torch_backend/deepspeed"  # where the wheel has those files


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of the tracked files, built without a network in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked():
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(folder / "source")], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        yield archive


def test_wheel_holds_the_package_with_its_data_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    shipped = {name for name in wheel.namelist() if ".dist-info/" not in name}
    own = {str(name) for name in tracked() if name.parts[0] == "selfevo_jax"}
    assert shipped == own | {f"{INSIDE}/{file.name}" for file in ZERO.glob("*.json")}


def test_an_installed_wheel_finds_its_deepspeed_configurations(wheel, tmp_path) -> None:
    pytest.importorskip("transformers", reason="pip install 'selfevo_jax[torch]'")
    wheel.extractall(tmp_path)
    asked = (
        "from selfevo_jax.torch_backend.group import NAMES, config_file, zero_settings\n"
        "for name in NAMES: print(config_file(name), zero_settings(config_file(name)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    lines = subprocess.run(
        [sys.executable, "-c", asked],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    files = {file.name: json.loads(file.read_text()) for file in ZERO.glob("*.json")}
    wanted = {f"{tmp_path / INSIDE / name} {content}" for name, content in files.items()}
    assert set(lines) == wanted and len(lines) == 4


def test_wheel_has_version_command_and_licence(wheel: zipfile.ZipFile) -> None:
    import selfevo_jax

    inside = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
    metadata = wheel.read(inside["METADATA"]).decode()
    assert f"\nVersion: {selfevo_jax.__version__}\n" in metadata
    python = re.search("^Requires-Python: (.*)$", metadata, re.MULTILINE).group(1)
    assert set(python.split(",")) == {">=3.11", "<3.14"}
    assert b"selfevo = selfevo_jax.cli:main" in wheel.read(inside["entry_points.txt"])
    assert {"LICENSE", "NOTICE"} <= set(inside)


def test_every_requirement_has_both_ends(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = re.findall("^Requires-Dist: (.*)$", wheel.read(name).decode(), re.MULTILINE)
    assert len(lines) > 20
    for line in lines:
        operators = {specifier.operator for specifier in Requirement(line).specifier}
        assert operators == {">=", "<"}, line


@pytest.mark.parametrize(
    ("name", "holed"), [("torch", "2.5.1"), ("transformers", "5.2.0"), ("jinja2", "3.1.5")]
)
def test_versions_with_known_holes_are_refused(wheel, name: str, holed: str) -> None:
    """torch.load ran code (CVE-2025-32434), so did a config (CVE-2026-4372); the sandbox of chat
    templates could be left (CVE-2025-27516)."""
    (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    lines = re.findall("^Requires-Dist: (.*)$", wheel.read(metadata).decode(), re.MULTILINE)
    found = [one for one in map(Requirement, lines) if one.name == name]
    assert found and not any(one.specifier.contains(holed) for one in found)


# ---- gates on the sources

# Modules that run code while they read data.
UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "torch.load"}
UNSAFE_OPTIONS = {"allow_pickle", "trust_remote_code"}
# Path inside the package -> {name: why it is safe there}. Keep it empty if at all possible.
ALLOWED: dict[str, dict[str, str]] = {
    "selfevo_jax/judge/sandbox/inside/programs.py": {
        "exec": "runs only inside a cage: no network, no host files, unprivileged"
    },
}


def unsafe(source: str) -> set[str]:
    """What a Python source does that could run code found in data."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[0] for a in node.names} & UNSAFE_MODULES
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").split(".")[0]} & UNSAFE_MODULES
        elif isinstance(node, ast.Call):
            found |= {ast.unparse(node.func)} & UNSAFE_CALLS
            found |= {k.arg for k in node.keywords if not is_false(k.value)} & UNSAFE_OPTIONS
    return found


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


@pytest.mark.parametrize(
    "source, name",
    [
        ("from pickle import loads", "pickle"),
        ("def f():\n    import joblib.memory", "joblib"),
        ("torch.load(path)", "torch.load"),
        ("np.load(path, allow_pickle=True)", "allow_pickle"),
        ("load(x, trust_remote_code=flag)", "trust_remote_code"),
        ("eval('1')", "eval"),
        ("exec(code)", "exec"),
    ],
)
def test_the_gate_sees(source: str, name: str) -> None:
    assert unsafe(source) == {name}
    assert unsafe("model.eval()\nnp.load(path, allow_pickle=False)\n'pickle'") == set()


def test_package_runs_no_code_from_data() -> None:
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "configs").rglob("*.py")]
    found = {str(path.relative_to(ROOT)): unsafe(path.read_text()) for path in files}
    left = {name: sorted(words - set(ALLOWED.get(name, ()))) for name, words in found.items()}
    assert {name: words for name, words in left.items() if words} == {}


def test_every_folder_of_sources_is_a_package() -> None:
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


# Written so that the patterns do not match themselves.
PRIVATE = re.compile(
    r"(?<![\w~.}/$])/(?:roo[t]|wor[k]|hom[e]|op[t])/[\w.]|fil[e]:///"
    r"|pypi[.]org|pythonhosted[.]org|npmjs[.]|pytorch[.]org/whl|deb[.]debian|--(?:extra-)?index-ur[l]"
)


def test_no_machine_path_and_no_package_host_is_tracked() -> None:
    found = []
    for name in tracked():
        data = (ROOT / name).read_bytes()
        if b"\0" not in data:
            found += [(str(name), m.group()) for m in PRIVATE.finditer(data.decode("utf-8"))]
    assert found == []


def test_the_private_pattern_sees() -> None:
    machine, host = "/" + "root/.pyenv", "https://pypi" + ".org/simple"
    assert PRIVATE.search(f"run {machine}") and PRIVATE.search(host)
    assert not PRIVATE.search("~/work/runs, $HOME/opt/x and s3://home/x")


def test_top_level_is_the_design() -> None:
    assert {name.parts[0] for name in tracked()} <= TOP_LEVEL


# ---- setting up an environment


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The set-up files, and an environment whose pip only writes down what it is asked."""
    shutil.copytree(ROOT / "constraints", tmp_path / "constraints")
    for name in ("setup.py", "pyproject.toml", "Makefile"):
        shutil.copy(ROOT / name, tmp_path / name)
    venv.create(tmp_path / "my venv", symlinks=True)
    (site,) = (tmp_path / "my venv").glob("lib/python3*/site-packages")
    (site / "pip.py").write_text(
        "import sys, pathlib\n"
        "if sys.argv[1] == 'install':\n"
        f"    with open({str(tmp_path / 'calls')!r}, 'a') as f: print(*sys.argv[1:], file=f)\n"
        f"    sys.exit(pathlib.Path({str(tmp_path / 'offline')!r}).exists())\n"
    )
    return tmp_path


def install(checkout: Path, *extras: str) -> subprocess.CompletedProcess:
    command = [str(checkout / "constraints/install.sh"), str(checkout / "my venv"), *extras]
    clean = {key: value for key, value in os.environ.items() if key != "PYTHON"}
    return subprocess.run(command, capture_output=True, text=True, env=clean)


def calls(checkout: Path) -> list[str]:
    """The installations of the package; each is built with the setuptools installed before it."""
    lines = (checkout / "calls").read_text().splitlines()
    assert all(line.endswith(" setuptools") for line in lines[::2])
    return lines[1::2]


def test_install_is_constrained_and_repeated_only_when_needed(checkout: Path) -> None:
    assert install(checkout).returncode == 0
    assert install(checkout).stdout == ""
    (call,) = calls(checkout)
    pin = f"py{sys.version_info.major}{sys.version_info.minor}.txt"
    assert f"--constraint {checkout}/constraints/{pin}" in call
    assert call.endswith(f"--editable {checkout}")
    install(checkout, "test")
    install(checkout)
    assert [line.rsplit("/", 1)[1] for line in calls(checkout)[1:]] == [f"{checkout.name}[test]"]


def test_a_changed_requirement_installs_again_with_the_extras_that_were_there(checkout) -> None:
    install(checkout, "test")
    with open(checkout / "setup.py", "a") as file:
        file.write("# changed\n")
    install(checkout)
    assert [line.endswith("[test]") for line in calls(checkout)] == [True, True]


def test_a_failed_install_says_so_and_forgets_the_one_before(checkout: Path) -> None:
    install(checkout)
    setup = (checkout / "setup.py").read_text()
    (checkout / "setup.py").write_text(setup + "# changed\n")
    (checkout / "offline").touch()
    failed = install(checkout)
    assert failed.returncode != 0 and "pip could not install" in failed.stderr
    (checkout / "setup.py").write_text(setup)
    (checkout / "offline").unlink()
    assert install(checkout).returncode == 0
    tries = (checkout / "calls").read_text().splitlines()
    assert [line.endswith(" setuptools") for line in tries] == [True, False, True, True, False]


def find_python(path: Path, *versions: str, **settings: str) -> subprocess.CompletedProcess:
    command = ["/bin/bash", str(ROOT / "constraints/find_python.sh"), *versions]
    environment = {"PATH": str(path), **settings}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_find_python_takes_the_first_usable_version(tmp_path: Path) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "python3").symlink_to(sys.executable)
    found = find_python(tmp_path, "3.99", version)
    assert found.stdout.strip() == str(tmp_path / "python3")
    (tmp_path / "python3").unlink()
    missing = find_python(tmp_path, version)
    assert missing.returncode == 1 and "Install Python 3.11" in missing.stderr
    wrong = find_python(tmp_path, "3.99", PYTHON=sys.executable)
    assert wrong.returncode == 1 and "is not a Python 3.99" in wrong.stderr


def test_find_python_tells_a_missing_venv_from_a_missing_python(tmp_path: Path) -> None:
    broken = tmp_path / "python3.11"
    broken.write_text('#!/bin/bash\ncase "$2" in *version_info*) echo 3.11 ;; *) exit 1 ;; esac\n')
    broken.chmod(0o755)
    result = find_python(tmp_path)
    assert result.returncode == 1 and "apt-get install python3-venv" in result.stderr


WEAK = "Found 1 known vulnerability in 1 package\\nName Version ID\\njinja2 3.1.0 PYSEC-1"


@pytest.mark.parametrize(
    ("said", "status", "expected"),
    [
        ("No known vulnerabilities found", 0, (0, "No known vulnerabilities found")),
        (WEAK, 1, (1, "jinja2 3.1.0 PYSEC-1")),
        ("ERROR: no answer", 1, (0, "SKIPPED, nothing was looked up: ERROR: no answer")),
        ("", 3, (0, "SKIPPED, nothing was looked up: pip-audit ended with status 3")),
    ],
)
def test_the_audit_is_never_left_out_in_silence(tmp_path, said, status, expected):
    """A weakness fails; where the index does not answer, the last line says that and why."""
    (tmp_path / "bin").mkdir()
    audit = tmp_path / "bin/pip-audit"
    audit.write_text(f"#!/bin/bash\nprintf '{said}' >&2\nexit {status}\n")
    audit.chmod(0o755)
    command = [str(ROOT / "constraints/audit.sh"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()[-1].endswith(expected[1])) == (
        expected[0],
        True,
    ), done


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_install_is_constrained_and_repeated_only_when_needed(checkout: Path) -> None:
    for _ in range(2):
        subprocess.run(["make", "install", "VENV=my venv"], cwd=checkout, check=True)
    (call,) = calls(checkout)
    assert f"--constraint {checkout}/constraints/" in call
    assert call.endswith(f"--editable {checkout}")


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_targets_use_the_environment_they_made() -> None:
    dry = ["make", "--dry-run", "--no-print-directory", "VENV=else where", "WORKDIR=my run"]
    lines = subprocess.check_output([*dry, "quickstart"], cwd=ROOT, text=True).splitlines()
    assert lines[0].endswith('constraints/install.sh "else where"')
    run = '"else where/bin/selfevo" run --config=configs/quickstart.py --workdir="my run"'
    assert lines[1] == run
