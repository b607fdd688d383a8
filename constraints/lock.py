"""Renew one file of exact versions by a real installation.

Run as: python3.12 constraints/lock.py            (writes constraints/py312.txt)
        make constraints                          (all Pythons that are on this machine)

A fresh virtual environment gets every extra that a processor without accelerators can install,
from the ranges in setup.py, and its versions are written down. Torch is installed for Python 3.11
only, where the parity tests run; where its CPU build is to be had is pip's own configuration.
"""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ["docs", "quant", "ray", "serve", "test", "tfds", "tpu-aot", "track"]
TORCH_LINE = (3, 11)


def install(python: Path, *requirements: str) -> None:
    command = [str(python), "-m", "pip", "install", "--upgrade", *requirements]
    print("+", " ".join(command), flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def frozen(python: Path) -> list[str]:
    """`name==version` lines, without local version labels (`+cpu`) and without our own package."""
    options = ["--format=freeze", "--exclude=selfevo_jax", "--exclude=pip"]
    command = [str(python), "-m", "pip", "list", *options]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return sorted((line.split("+")[0] for line in listing.splitlines()), key=str.lower)


def lock(folder: str) -> list[str]:
    """Install into a new environment under `folder` and return its versions."""
    venv.create(folder, with_pip=True)
    python = Path(folder) / "bin" / "python"
    install(python, "pip", "setuptools")
    if sys.version_info[:2] == TORCH_LINE:
        # First and exactly: a later release would bring gigabytes of CUDA libraries.
        install(python, f"torch=={os.environ.get('TORCH_VERSION', '2.13.0')}")
    install(python, "--editable", f"{ROOT}[{','.join(EXTRAS)}]")
    return frozen(python)


def main() -> None:
    name = f"py{sys.version_info.major}{sys.version_info.minor}"
    with tempfile.TemporaryDirectory() as folder:
        versions = lock(folder)
    python = sys.version.split()[0]
    header = f"# Versions tested with Python {python}; made by constraints/lock.py."
    target = ROOT / "constraints" / f"{name}.txt"
    target.write_text("\n".join([header, *versions]) + "\n", encoding="utf-8")
    print(f"{target}: {len(versions)} packages")


if __name__ == "__main__":
    main()
