"""Every config file in every variant is complete, locked, and says what the papers used."""

from pathlib import Path

import pytest

from selfevo_jax.config import load_config
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.launch import check_config
from selfevo_jax.evolve.methods import defaults

CONFIGS = Path(__file__).parents[2] / "configs"
VARIANTS = {
    "elite": ("3b", "7b", "13b", "cpu", "tiny"),
    "reflectevo": ("llama3_8b", "mistral_7b", "gemma2_9b", "cpu", "tiny"),
    "active": ("llama32_1b", "7b", "cpu", "tiny"),
}


@pytest.mark.parametrize(
    ("name", "variant"), [(name, variant) for name in VARIANTS for variant in VARIANTS[name]]
)
def test_a_variant_is_whole(name, variant):
    config = load_config(f"{CONFIGS / name}.py:{variant}")
    check_config(config)
    assert config.method == name and (config.model.startswith("hf:") == (variant not in TESTS))


TESTS = ("cpu", "tiny")


def test_elite_has_the_papers_numbers_of_critiques():
    found = {v: load_config(f"{CONFIGS / 'elite.py'}:{v}").critique.n for v in ("3b", "7b", "13b")}
    assert found == {"3b": 3, "7b": 5, "13b": 1}


def test_an_unknown_variant_names_the_known(tmp_path):
    with pytest.raises(UserError, match="use 3b, 7b, 13b, cpu or tiny"):
        load_config(f"{CONFIGS / 'elite.py'}:8b")


def test_a_method_has_its_own_keys_only():
    assert "vote" in defaults("elite") and "vote" not in defaults("verified")
    with pytest.raises(UserError, match="unknown setting --config.vote"):
        load_config(f"{CONFIGS / 'quickstart.py'}:tiny", ["vote.by=medoid"])
    with pytest.raises(UserError, match="is for another method"):
        check_config(load_config(f"{CONFIGS / 'elite.py'}:tiny", ["method=verified"]))
