"""Every setting of a training changes what comes out of it: numbers, measurements, or files.

A stage's key holds all of them, so that a plan cannot show an idle one: here each is changed alone
and a small fit is run with it. (Those of runs and methods: tests/evolve/test_settings_matter.py.)
"""

import dataclasses

import jax
import numpy as np
import pytest

from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.protocol import FitSettings
from selfevo_jax.learn.trainer import JaxTrainer
from selfevo_jax.models.lora import LoraConfig, adapter, init_lora

LORA = LoraConfig(rank=2)
SETTINGS = FitSettings(steps=3, batch_size=4, lr=3e-3, clip=0.05, warmup=0.4, lora=LORA)
HELD = {"eval_share": 0.4, "eval_every": 1}  # where measurements on held-out prompts matter
WILD = HELD | {"steps": 8, "lr": 0.3, "schedule": "constant", "warmup": 0.0, "clip": None}
# field -> (what else is set, another value)
FIT = {
    "epochs": ({"steps": None}, 2),
    "steps": ({}, 4),
    "batch_size": ({}, 3),
    "micro_rows": ({"batch_size": 12}, 3),
    "row_length": ({}, 64),
    "lr": ({}, 1e-3),
    "schedule": ({}, "cosine"),
    "warmup": ({}, 0.0),
    "weight_decay": ({}, 0.5),
    "clip": ({}, 0.01),
    "seed": ({}, 1),
    "lora": ({}, None),
    "checkpoint_every": ({}, 1),
    "checkpoint_seconds": ({}, 0.0),
    "profile_steps": ({}, 1),
    "optimizer": ({}, "lion"),
    "eval_share": ({"eval_every": 1}, 0.4),
    "eval_every": (HELD, 2),
    "keep": (WILD, "best"),
    "patience": (WILD, 1),
}
ADAPTER = {
    "rank": 4,
    "alpha": 32.0,
    "dropout": 0.5,
    "rslora": True,
    "targets": "layers/attn/.*_proj",
}
OBJECTIVE = {
    "loss": ({}, "ipo"),
    "beta": ({}, 0.5),
    "label_smoothing": ({}, 0.2),
    "margin": ({"loss": "simpo"}, 0.7),
    "ratio": ({"loss": "inpo"}, 0.4),
    "desirable": ({"loss": "kto"}, 2.0),
    "undesirable": ({"loss": "kto"}, 2.0),
    "ld_alpha": ({}, 0.3),
    "reference_free": ({}, True),
    "sft_weight": ({}, 0.5),
}


@pytest.fixture(scope="module")
def outcome(tiny, tiny_params, pairs, tmp_path_factory):
    """What a fit leaves: parameters, metrics without times, and the names of its files."""
    trainer, known = JaxTrainer(tiny, tiny_params, base_hash="tiny"), {}
    tree = jax.tree.map(lambda leaf: leaf + 0.1, init_lora(tiny, LORA, jax.random.key(2)))
    other = adapter(tree, LORA)  # a reference that is not the base, against inpo's anchor

    def fitted(objective: Objective, settings: FitSettings):
        if (objective, settings) not in known:
            folder = tmp_path_factory.mktemp("fit")
            reference = other if objective.loss == "inpo" else None
            fit = trainer.fit(pairs, objective, settings, folder, reference=reference)
            files = {str(path.relative_to(folder)) for path in folder.rglob("*")}
            steps = {name for name in files if name.startswith(("checkpoints", "profile"))}
            known[objective, settings] = jax.tree.leaves(fit.trained), fit.metrics, steps
        return known[objective, settings]

    return fitted


def same(one, other) -> bool:
    (a, told, files), (b, said, others) = one, other
    if len(a) != len(b) or told != said or files != others:
        return False
    return all(x.shape == y.shape and np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def felt(outcome, objective, other, settings=SETTINGS, changed=None) -> bool:
    return not same(outcome(objective, settings), outcome(other, changed or settings))


def test_the_table_names_every_field():
    for kind, names in ((FitSettings, FIT), (LoraConfig, ADAPTER), (Objective, OBJECTIVE)):
        assert {field.name for field in dataclasses.fields(kind)} == set(names)


def test_nothing_changed_is_not_felt(outcome, tiny, tiny_params, pairs, tmp_path):
    """The teeth: the same settings give the same outcome, computed twice."""
    again = JaxTrainer(tiny, tiny_params, base_hash="tiny")
    fit = again.fit(pairs, Objective(), SETTINGS, tmp_path)
    found = outcome(Objective(), SETTINGS)
    assert same((jax.tree.leaves(fit.trained), fit.metrics, found[2]), found)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIT)
def test_a_setting_of_a_fit_is_felt(outcome, name):
    besides, value = FIT[name]
    settings = dataclasses.replace(SETTINGS, **besides)
    changed = dataclasses.replace(settings, **{name: value})
    assert felt(outcome, Objective(), Objective(), settings, changed)


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTER)
def test_a_setting_of_the_adapter_is_felt(outcome, name):
    lora = dataclasses.replace(LORA, **{name: ADAPTER[name]})
    changed = dataclasses.replace(SETTINGS, lora=lora)
    assert felt(outcome, Objective(), Objective(), SETTINGS, changed)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVE)
def test_a_setting_of_the_objective_is_felt(outcome, name):
    besides, value = OBJECTIVE[name]
    objective = Objective(**besides)
    assert felt(outcome, objective, dataclasses.replace(objective, **{name: value}))
