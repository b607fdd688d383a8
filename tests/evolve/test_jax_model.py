"""The model behind a run: on which mesh it samples."""

import importlib.util

import pytest

from selfevo_jax.evolve.jax_model import JaxModel
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.parallel.topologies import devices, topology

COMPUTE = {"dtype": "float32", "remat": "none", "mesh": "1,-1,1"}


@pytest.fixture
def model() -> JaxModel:
    """Two key-value heads."""
    return JaxModel("random:tiny?seed=0", COMPUTE, Progress())


def test_a_cpu_samples_on_its_share_of_the_training_mesh(model):
    assert model.sampling_mesh == model.mesh == model.training_mesh


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu describes TPUs")
def test_a_tpu_samples_with_layers_split_over_its_chips(model):
    model.mesh = make_mesh("1,4,1", devices(topology("v5e-4")))
    assert model.sampling_mesh.devices.shape == (1, 2, 2, 1)
    assert set(model.sampling_mesh.devices.flat) == set(model.mesh.devices.flat)
