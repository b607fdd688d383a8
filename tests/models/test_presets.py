"""Presets have the published numbers of parameters."""

import math

import jax
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.models.llama import abstract_params
from selfevo_jax.models.presets import PRESETS, preset

# Parameter counts as given on the models' own cards.
PUBLISHED = {
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1b7": 1_711_376_384,
    "tinyllama_1b": 1_100_048_384,
    "llama32_1b": 1_235_814_400,
    "llama32_3b": 3_212_749_824,
    "open_llama_3b": 3_426_473_600,
    "open_llama_7b": 6_738_415_616,
    "open_llama_13b": 13_015_864_320,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama3_8b": 8_030_261_248,
    "llama31_8b": 8_030_261_248,
    "mistral_7b": 7_241_732_096,
    "qwen2_7b": 7_615_616_512,
    "qwen25_7b": 7_615_616_512,
    "qwen25_0b5": 494_032_768,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count(name):
    shapes = [leaf.shape for leaf in jax.tree.leaves(abstract_params(preset(name)))]
    assert sum(math.prod(shape) for shape in shapes) == PUBLISHED[name]


def test_every_preset_is_counted():
    assert set(PRESETS) == set(PUBLISHED) | {"tiny"}


def test_an_unknown_name_offers_near_ones():
    with pytest.raises(UserError, match="llama3_8b"):
        preset("llama3-8b")
