"""Names of TPU slices, and of machines with NVIDIA cards."""

import importlib.util

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.parallel.cards import CARDS
from selfevo_jax.parallel.topologies import devices, topology


@pytest.mark.parametrize(
    ("name", "shape", "chips"),
    [
        ("v4-8", "v4:2x2x1", 4),  # numbers of v4 and v5p count cores
        ("v4-32", "v4:2x2x4", 16),
        ("v5p-32", "v5p:2x2x4", 16),
        ("v5e-16", "v5e:4x4", 16),
        ("v5e:16", "v5e:4x4", 16),
        ("v5p:16", "v5p:2x2x4", 16),  # after a colon they are chips
        ("V5E:4X4", "v5e:4x4", 16),
        ("v6e-8", "v6e:2x4", 8),
        ("v6e-64", "v6e:8x8", 64),
        ("h200:1", "h200:1", 1),
        ("H100-8", "h100:8", 8),
    ],
)
def test_names(name, shape, chips):
    found = topology(name)
    assert (found.name, found.chips) == (shape, chips)


@pytest.mark.parametrize(
    "name", ["v3-8", "v5e-7", "v4-7", "v5e:3x5", "v5e", "gpu:8", "v4-16x", "h100:3", "h100:2x4"]
)
def test_a_wrong_name_is_refused(name):
    with pytest.raises(UserError, match="topology"):
        topology(name)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu describes TPUs; not installed"
)
@pytest.mark.parametrize(
    ("name", "kind"),
    [("v4-8", "TPU v4"), ("v5e-16", "TPU v5 lite"), ("v5p-8", "TPU v5"), ("v6e-8", "TPU v6 lite")],
)
def test_devices_are_chips_of_that_kind(name, kind):
    found = devices(topology(name))
    assert len(found) == topology(name).chips
    assert {device.device_kind for device in found} == {kind}


CUDA = importlib.util.find_spec("jax_cuda12_plugin") is not None


@pytest.mark.skipif(not CUDA, reason="JAX's plugin describes cards; not installed")
@pytest.mark.parametrize("name", CARDS)
def test_devices_are_cards_of_that_kind(name):
    found = devices(topology(f"{name}:4"))
    number = ".".join(map(str, CARDS[name].capability))
    assert {(d.platform, d.device_kind) for d in found} == {("gpu", CARDS[name].kind)}
    assert ([d.id for d in found], {d.compute_capability for d in found}) == ([*range(4)], {number})


@pytest.mark.skipif(CUDA, reason="JAX's plugin is installed")
def test_a_card_without_the_plugin_is_refused():
    with pytest.raises(UserError, match=r"h100:8.*pip install 'selfevo_jax\[cuda\]'"):
        devices(topology("h100:8"))
