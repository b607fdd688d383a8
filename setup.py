"""Packaging of selfevo_jax: the one place where dependencies are written down.

The ranges below have both ends tested: Python 3.11 resolves to the lower line (jax 0.10, flax
0.12.8), Python 3.12 and later to the upper one. The exact versions that were tested lie in
`constraints/`, one file per Python; `make constraints` renews them.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent

# flax 0.12.8 and 0.12.9 fail on jax 0.11 (`import flax.nnx`), and flax 0.12.9+ needs Python 3.12:
# hence two lines that must not be mixed.
OLD, NEW = 'python_version < "3.12"', 'python_version >= "3.12"'


def jax(extra: str = "") -> list[str]:
    """The jax requirement, with an extra of its own such as `tpu`, for both Python lines."""
    return [f"jax{extra}>=0.10,<0.11; {OLD}", f"jax{extra}>=0.11,<0.13; {NEW}"]


BASE = [
    *jax(),
    f"flax>=0.12.8,<0.13; {OLD}",
    f"flax>=0.12.10,<0.13; {NEW}",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "ml-collections>=1.1,<2",
    "absl-py>=2.1,<3",
    "numpy>=2.0,<3",
    "tokenizers>=0.22,<0.24",
    "sentencepiece>=0.2,<0.3",
    "grain>=0.2.16,<0.3",
    "protobuf>=5.28.3,<8",
    "safetensors>=0.5,<0.9",
    "gguf>=0.17,<0.20",
    "jinja2>=3.1.6,<4",  # earlier ones have sandbox escapes (CVE-2025-27516)
    "httpx>=0.28,<0.29",
    "huggingface-hub>=1.0,<3",
    "reasoning-gym>=0.1.25,<0.2",
    "rich>=14,<16",
    "scikit-learn>=1.5,<2",
    "scipy>=1.14,<2",
    "shtab>=1.7,<2",
    "sympy>=1.12,<2",
    "tenacity>=9,<10",
]

# Reads prepared data without tensorflow. It imports importlib_resources without asking for it.
TFDS = ["tensorflow-datasets>=4.9.7,<5", "importlib_resources>=6,<8"]
SERVE = [
    "prometheus-client>=0.21,<1",
    "starlette>=0.46,<2",
    "uvicorn>=0.34,<1",
]

# Workdirs on gs://. The two are released together, and must be of about the same month.
GCS = ["fsspec>=2025.3,<2028", "gcsfs>=2025.3,<2028"]

TORCH = [
    "accelerate>=1.1,<2",
    "peft>=0.18,<0.22",
    "torch>=2.6,<2.14",  # torch.load was unsafe before 2.6 (CVE-2025-32434)
    "transformers>=5.3,<6",  # a config could pull code before 5.3 (CVE-2026-4372)
]

NF4 = ["bitsandbytes>=0.48,<0.50"]  # packs the base of backend=torch in 4 bits

DEEPSPEED = ["deepspeed>=0.19,<0.20"]  # trains with several processes, see docs/gpus.md

PARITY = [
    *TORCH,
    *NF4,
    "datasets>=4,<6",
    "lm-eval[api]>=0.4.9,<0.5",
    "rouge-score>=0.1.2,<0.2",
    "sacrebleu>=2.4,<3",
    "trl>=1.0,<2",
]  # what the tests compare us with

DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10"]

TRACK = ["tensorboard>=2.18,<3", "wandb>=0.20,<0.40"]

RAY = ["ray>=2.50,<3"]

AUDIT = ["pip-audit>=2.8,<3", "pip-licenses>=5,<6"]

TEST = [
    *DOCS,  # the site must build without warnings
    *GCS,
    "gcp-storage-emulator>=2024.8.3,<2028",
    *TRACK,
    *RAY,
    "hypothesis>=6.100,<7",
    "mypy>=1.15,<3",
    "openai>=2,<4",  # the official client against our server
    "pytest>=8.3,<10",
    "pytest-cov>=6,<8",
    "pytest-timeout>=2.3,<3",
    "pytest-xdist>=3.6,<4",
    "ruff>=0.14,<0.18",
    "selenium>=4.30,<5",  # drives Chromium over the run's page
    "selenium-axe-python>=2.2,<3",  # brings axe-core, which looks for what shuts readers out
    "setuptools>=77,<90",  # the packaging test builds a wheel
    *(f"{requirement}; {OLD}" for requirement in DEEPSPEED),
    f"xllamacpp>=2026,<2027; {OLD}",  # llama.cpp, which must read our GGUF files
    *SERVE,
    *(f"{requirement}; {OLD}" for requirement in TFDS),
    # The parity tests and those that compile for TPUs run on one Python; on the others they skip
    # unless `parity` and `tpu-aot` are installed.
    *(f"{requirement}; {OLD}" for requirement in PARITY),
    f"jax[tpu]>=0.10,<0.11; {OLD}",
]

EXTRAS = {
    "tpu": jax("[tpu]"),
    "tpu-aot": jax("[tpu]"),  # libtpu compiles for real topologies on a machine without a TPU
    "cuda": jax("[cuda12]"),
    "torch": TORCH,
    "deepspeed": [*TORCH, *DEEPSPEED],
    "nf4": [*TORCH, *NF4],
    "quant": ["qwix>=0.1.8,<0.2"],
    "serve": SERVE,
    "gcs": GCS,
    "tfds": TFDS,
    "track": TRACK,
    "ray": RAY,
    "test": TEST,
    "parity": PARITY,
    "docs": DOCS,
    "audit": AUDIT,
}


class Build(build_py):
    """Puts DeepSpeed's configurations into the package; a checkout has them beside it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            inside = Path(self.build_lib, "selfevo_jax", "torch_backend", "deepspeed")
            shutil.copytree(HERE / "third_party" / "deepspeed", inside, dirs_exist_ok=True)


def version() -> str:
    text = (HERE / "selfevo_jax" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE).group(1)


setup(
    name="selfevo_jax",
    version=version(),
    description="Train language models on what they themselves produce, in JAX.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "third_party/NOTICE"],
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["selfevo_jax", "selfevo_jax.*"]),
    package_data={"selfevo_jax": [f"**/*.{kind}" for kind in ("txt", "html", "css", "js", "json")]},
    include_package_data=False,
    cmdclass={"build_py": Build},
    install_requires=BASE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["selfevo=selfevo_jax.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
