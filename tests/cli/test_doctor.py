"""`selfevo doctor` on this machine, and what it says of machines that are not here."""

import importlib.util
import subprocess
import sys
from dataclasses import replace

import pytest

from selfevo_jax import cli
from selfevo_jax.cli import doctor
from selfevo_jax.cli.doctor import (
    Finding,
    Hardware,
    examine,
    hiding,
    judge,
    mend,
    origin,
    sandbox_line,
)
from selfevo_jax.errors import UserError

NOTHING = Hardware((), 0, False)
ONE = Hardware(("NVIDIA H100 80GB HBM3, 81559 MiB, 550.54",), 0, False)
TWO = Hardware(ONE.gpus * 2, 0, False)
TPU = Hardware((), 4, False)
FILE = "file:" + "//"


def answer(
    platform: str, kind: str, works: bool = True, count: int = 1, memory: int | None = None
) -> dict:
    device = {"kind": kind, "memory": memory, "works": works}
    return {"platform": platform, "devices": [device] * count, "step": 1.0}


def test_it_tells_what_is_here_without_trying(capsys):
    assert cli.main(["doctor", "--list"]) == 0
    said = capsys.readouterr().out
    for word in ("system: ", " cores, ", "GiB free", "packages: selfevo-jax 0", "jax 0."):
        assert word in said


def test_the_real_jax_of_this_machine_works():
    found = examine("jax", NOTHING)
    assert found.extras is None
    assert found.text.startswith("works on 1 x cpu; a training step of a tiny model took ")


def test_it_tells_what_holds_programs(monkeypatch, capsys):
    from selfevo_jax.judge import sandbox

    monkeypatch.setattr(doctor, "examine", lambda name, hardware: Finding(name, "works"))
    assert cli.main(["doctor"]) == 0
    assert f"code sandbox: {sandbox.platform().report()}" in capsys.readouterr().out

    def unsafe():
        raise UserError("the code sandbox needs Linux")

    monkeypatch.setattr(sandbox, "platform", unsafe)
    assert sandbox_line() == "the code sandbox needs Linux"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_the_real_torch_of_this_machine_works():
    assert examine("torch", NOTHING).text.startswith("works on 1 x ")


def test_a_backend_that_ends_badly_is_reported(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "no_such_platform")
    found = examine("jax", NOTHING)
    assert found.broken and "no_such_platform" in found.text
    assert mend([found], NOTHING) == "unset JAX_PLATFORMS && selfevo doctor"
    monkeypatch.delenv("JAX_PLATFORMS")
    assert mend([replace(found, hiding=None)], NOTHING).endswith("--force-reinstall 'selfevo_jax'")


@pytest.mark.parametrize(
    ("name", "setting", "value", "hides"),
    [
        ("jax", "JAX_PLATFORMS", "cpu", True),
        ("torch", "JAX_PLATFORMS", "cpu", False),
        ("torch", "CUDA_VISIBLE_DEVICES", "", True),
        ("jax", "CUDA_VISIBLE_DEVICES", "-1", True),
        ("jax", "CUDA_VISIBLE_DEVICES", "3", False),
    ],
)
def test_what_hides_the_accelerators_is_named(name, setting, value, hides):
    assert hiding(name, {setting: value}) == (setting if hides else None)


@pytest.mark.parametrize(
    ("name", "found", "hardware", "remedy"),
    [
        ("jax", answer("cpu", "cpu"), NOTHING, None),
        ("jax", answer("gpu", "NVIDIA H100 80GB HBM3"), ONE, None),
        ("jax", answer("cpu", "cpu"), ONE, "pip install 'selfevo_jax[cuda]'"),
        ("jax", answer("cpu", "cpu"), TPU, "pip install 'selfevo_jax[tpu]'"),
        ("torch", answer("cpu", "CPU"), TPU, None),
        ("torch", answer("cpu", "CPU"), ONE, "pip install --force-reinstall 'selfevo_jax[torch]'"),
        ("jax", answer("gpu", "H100", False), ONE, "pip install --force-reinstall 'selfevo_jax'"),
    ],
)
def test_what_an_answer_means(name, found, hardware, remedy, monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda package: None)
    assert mend([judge(name, found, hardware)], hardware) == remedy


def test_a_plugin_that_is_there_and_sees_nothing_is_installed_anew(monkeypatch):
    monkeypatch.setattr(doctor, "version_of", lambda package: "1" if "cuda12" in package else None)
    seen = [judge("jax", answer("cpu", "cpu"), hardware) for hardware in (ONE, TPU)]
    assert mend(seen[:1], ONE) == "pip install --force-reinstall 'selfevo_jax[cuda]'"
    assert mend(seen[1:], TPU) == "pip install 'selfevo_jax[tpu]'"


def test_one_command_mends_all():
    ill = [Finding("jax", "blind", ("cuda",)), Finding("deepspeed", "missing", ("deepspeed",))]
    assert mend(ill, TWO) == "pip install 'selfevo_jax[cuda,deepspeed]'"
    assert "driver" in mend(ill, Hardware((), 0, True))


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ({"url": f"{FILE}/my%20code", "dir_info": {"editable": True}}, "-e '/my code[torch]'"),
        ({"url": f"{FILE}/code", "dir_info": {}}, f"'selfevo_jax[torch] @ {FILE}/code'"),
        ({"url": "https://a.b/c", "vcs_info": {"vcs": "git"}},
         "'selfevo_jax[torch] @ git+https://a.b/c'"),
    ],
)  # fmt: skip
def test_what_is_broken_is_reinstalled_from_where_it_came(source, wanted):
    """pip finds no `selfevo_jax` in an index that does not have it."""
    ill = [Finding("torch", "fails", ("torch",), broken=True)]
    assert mend(ill, ONE, source) == f"pip install --force-reinstall {wanted}"
    missing = [Finding("torch", "missing", ("torch",))]
    assert mend(missing, ONE, source) == "pip install 'selfevo_jax[torch]'"


def test_an_installation_from_a_folder_is_known_by_it(tmp_path, monkeypatch):
    about = tmp_path / "selfevo_jax-9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: selfevo-jax\nVersion: 9\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert origin() is None
    (about / "direct_url.json").write_text('{"url": "https://a.b/c", "dir_info": {}}')
    assert origin() == {"url": "https://a.b/c", "dir_info": {}}


def test_devices_of_a_kind_are_counted():
    text = judge("jax", answer("gpu", "H100", count=8, memory=80 * 2**30), TWO).text
    assert text.startswith("works on 8 x H100 (80 GiB); ")


WITHOUT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "jax", "transformers", "deepspeed"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocker())
from selfevo_jax import cli
sys.exit(cli.main(["doctor", "--list"]))
"""


def test_it_needs_neither_torch_nor_jax():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "packages: " in done.stdout
