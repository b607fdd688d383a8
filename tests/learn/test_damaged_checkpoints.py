"""A checkpoint in which a bit flipped is named and never trained on."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.learn.checkpoints import SUMS, Checkpoints

STATE = {"a": jnp.arange(600.0).reshape(20, 30), "b": {"c": jnp.ones(7, jnp.int32)}}


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints, as a fit leaves them."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", {"lr": 1.0})
    checkpoints.save(2, STATE)
    checkpoints.save(4, STATE)
    checkpoints.close()
    return tmp_path / "checkpoints"


def restored(folder):
    checkpoints = Checkpoints(folder, {"lr": 1.0})
    try:
        return checkpoints.restore(checkpoints.latest(), STATE)
    finally:
        checkpoints.close()


def flipped(content: bytes) -> bytes:
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 16]) + content[half + 1 :]


def test_a_damaged_checkpoint_is_named_and_never_used(folder):
    files = [path for path in (folder / "4").rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) > 4 and folder / "4" / SUMS in files
    for path in files:
        sound = path.read_bytes()
        for damaged in (flipped(sound), sound[: len(sound) // 2]):
            path.write_bytes(damaged)
            with pytest.raises(UserError, match=re.escape(str(folder / "4"))) as refused:
                restored(folder)
            assert str(path) in str(refused.value) or path.name == SUMS
        path.write_bytes(sound)
    np.testing.assert_array_equal(restored(folder)["a"], STATE["a"])


def test_a_kill_before_the_checksums_leaves_a_checkpoint_that_is_read(folder):
    (folder / "4" / SUMS).unlink()
    np.testing.assert_array_equal(restored(folder)["b"]["c"], STATE["b"]["c"])
    assert (folder / "4" / SUMS).is_file()  # closing gave it some
