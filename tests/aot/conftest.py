"""Compiling for TPUs needs libtpu, which only the extra `tpu-aot` installs."""

import importlib.util

import pytest


@pytest.fixture(scope="session")
def libtpu() -> str:
    """The version of libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install 'selfevo_jax[tpu-aot]'")
    from importlib.metadata import version

    return version("libtpu")
