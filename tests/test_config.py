"""Configurations: overrides are typed, a misspelt key is refused with the nearest right one."""

import dataclasses
from pathlib import Path

import pytest

from selfevo_jax.config import changed_settings, defaults, load_config, plain
from selfevo_jax.errors import UserError
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.protocol import FitSettings
from selfevo_jax.models.lora import LoraConfig

QUICKSTART = f"{Path(__file__).parents[1] / 'configs' / 'quickstart.py'}:tiny"


def value(override: str):
    config = load_config(QUICKSTART, [override])
    for part in override.partition("=")[0].split("."):
        config = config[part]
    return config


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("learn.lr=1e-5", 1e-5),
        ("learn.lr=1", 1.0),
        ("rounds=3", 3),
        ("objective.reference_free=true", True),
        ("learn.steps=7", 7),
        ("learn.steps=none", None),
        ("objective.sft_weight=0.5", 0.5),
        ("sample.stop=['a','b']", ("a", "b")),
        ("model=17", "17"),
        ("task.args.max_terms=3", 3),
    ],
)
def test_an_override_has_the_type_of_its_setting(override, expected):
    found = value(override)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    "override",
    ["rounds=two", "rounds=1.5", "rounds=true", "learn.lr=fast", "learn.lr=none",
     "objective.reference_free=1", "sample.stop=a", "sample.stop=[{}]", "sample.stop=[[]]",
     "learn.steps=1.5", "rounds"],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(override):
    with pytest.raises(UserError, match=override.partition("=")[0]):
        value(override)


def test_the_values_in_a_tuple_have_the_type_of_those_before():
    refeval = QUICKSTART.replace("quickstart", "refeval")
    assert load_config(refeval, ["betas=(1,0.5)"]).betas == (1, 0.5)
    with pytest.raises(UserError, match=r"betas=\(1,'a'\): this setting is a tuple, as in \(0"):
        load_config(refeval, ["betas=(1,'a')"])
    with pytest.raises(
        UserError, match=r"stop=\[\{\}\]: this setting is a tuple of texts or numbers"
    ):
        load_config(QUICKSTART, ["sample.stop=[{}]"])


@pytest.mark.parametrize(
    ("override", "near"),
    [
        ("lern.lr=1", "learn.lr"),
        ("learn.zzz=1", "learn.lr"),
        ("lr=1", "learn.lr"),
        ("sample.temprature=1", "sample.temperature"),
        ("sample=1", "sample.n"),
    ],
)
def test_a_misspelt_override_names_the_nearest(override, near):
    with pytest.raises(UserError, match=f"unknown setting --config.*{near}|there is .*{near}"):
        value(override)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    config.lern = 1", 'Did you mean "learn"'),
        ("    config.learn.lrr = 1", 'Did you mean "lr"'),
        ("    config.rounds = 'a'", "rounds"),
        ("    raise ValueError('no such variant')", "no such variant"),
        ("    config.unlock().lists = [{}]", "Cannot contain a dict"),
        ("    config.rounds = (", r"broken\.py:6: "),
    ],
)
def test_a_mistake_in_a_config_file_is_one_message(tmp_path, body, message):
    file = tmp_path / "broken.py"
    head = "from selfevo_jax.config import defaults\n\n\ndef get_config(arg=None):\n"
    file.write_text(f"{head}    config = defaults()\n{body}\n    return config\n")
    with pytest.raises(UserError, match=message) as caught:
        load_config(str(file))
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_config_file_names_its_neighbours(tmp_path):
    (tmp_path / "quickstart.py").write_text("")
    with pytest.raises(UserError, match="does not exist; there is quickstart.py"):
        load_config(str(tmp_path / "quikstart.py"))
    with pytest.raises(UserError, match="defines no get_config"):
        load_config(str(tmp_path / "quickstart.py"))


def test_changes_are_named_with_both_values():
    old, new = plain(defaults()), plain(load_config(QUICKSTART, ["seed=3"]))
    assert "seed 0 -> 3" in changed_settings(old, new)
    assert changed_settings(old, old) == []


def test_the_settings_are_those_of_the_parts_that_use_them():
    """A setting that no part takes, or a wrong default type, would be found here."""
    config = defaults()
    known = {field.name for field in dataclasses.fields(Objective)}
    assert set(config.objective) <= known
    assert set(config.lora) == {field.name for field in dataclasses.fields(LoraConfig)}
    fit = {field.name for field in dataclasses.fields(FitSettings)}
    assert set(config.learn) == fit - {"seed", "lora"}
    Objective(**config.objective.to_dict())
