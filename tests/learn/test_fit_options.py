"""Held-out prompts, early stop, shared reference sums, KTO, and training on a quantised base."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.learn.carried import Carried
from selfevo_jax.learn.checkpoints import Checkpoints
from selfevo_jax.learn.held_out import Course, split_by_prompt
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.trainer import FitSettings, JaxTrainer
from selfevo_jax.models.lora import LoraConfig
from selfevo_jax.models.quantize import quantize_base

SETTINGS = FitSettings(steps=3, batch_size=4, lr=3e-3, warmup=0.0, lora=LoraConfig(rank=4))


@pytest.fixture(scope="module")
def trainer(tiny, tiny_params):
    return JaxTrainer(tiny, tiny_params, base_hash="tiny")


def test_a_prompt_is_on_one_side_whatever_else_there_is(make_example):
    examples = [make_example(f"{i}", [1, i // 2], [3, i]) for i in range(60)]
    chosen, held = split_by_prompt(examples, 0.3, seed=1)
    assert {tuple(e.prompt.tokens) for e in chosen}.isdisjoint(tuple(e.prompt.tokens) for e in held)
    assert 0 < len(held) < 36 and len(chosen) + len(held) == 60
    fewer = split_by_prompt(examples[::3], 0.3, seed=1)[1]
    assert {e.id for e in fewer} == {e.id for e in held} & {e.id for e in examples[::3]}
    assert {e.id for e in split_by_prompt(examples, 0.3, seed=2)[1]} != {e.id for e in held}


def test_patience_counts_measurements_without_a_better_one():
    settings = FitSettings(eval_share=0.5, patience=2)
    course = Course(settings)
    losses = [3.0, 2.0, 2.5, None, 1.9, 2.0, 2.0]
    rows = [
        {"step": i} | ({} if loss is None else {"eval_loss": loss}) for i, loss in enumerate(losses)
    ]
    stopped = [course.add(row) or course.stopped for row in rows]
    assert stopped == [True, True, False, False, True, False, True]
    assert course.best_step == 5 and Course(settings, rows).stopped


def test_the_best_is_kept_and_the_fit_stops_early(trainer, pairs, tmp_path):
    """At a wild rate the held-out loss soon rises; the parameters given are those before."""
    settings = dataclasses.replace(
        SETTINGS, steps=30, lr=0.3, schedule="constant", eval_share=0.4, eval_every=1, keep="best",
        patience=2,
    )  # fmt: skip
    fit = trainer.fit(pairs, Objective("dpo"), settings, tmp_path)
    losses = [row["eval_loss"] for row in fit.metrics]
    assert fit.steps == len(losses) < 30 and fit.best_step == int(np.argmin(losses)) + 1
    assert len(losses) == fit.best_step + 2
    assert {"eval_accuracy", "eval_margin"} <= fit.metrics[0].keys()
    again = trainer.fit(pairs, Objective("dpo"), settings, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.trained, fit.trained)
    last = trainer.fit(
        pairs, Objective("dpo"), dataclasses.replace(settings, steps=fit.best_step, keep="last"),
        tmp_path / "last",
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, last.trained, fit.trained)


def test_the_best_is_whole_before_the_state_that_counts_on_it(
    trainer, pairs, tmp_path, monkeypatch
):
    """A kill after a checkpoint must find the parameters that its metrics call the best."""
    settings = dataclasses.replace(
        SETTINGS, steps=6, eval_share=0.4, eval_every=1, keep="best", checkpoint_every=1
    )
    save, seen = Checkpoints.save, {}

    def watched(self, step, state):
        if self._folder.name == "checkpoints":
            whole = [path.name for path in (tmp_path / "best").iterdir() if path.name.isdigit()]
            seen[step] = sorted(map(int, whole))
        save(self, step, state)

    monkeypatch.setattr(Checkpoints, "save", watched)
    fit = trainer.fit(pairs, Objective("dpo"), settings, tmp_path)
    losses = [row["eval_loss"] for row in fit.metrics]
    assert list(seen) == [1, 2, 3, 4, 5, 6]
    for step, whole in seen.items():
        assert whole[-1] == int(np.argmin(losses[:step])) + 1


def test_a_sweep_over_beta_computes_the_reference_once(trainer, pairs, tmp_path):
    store = tmp_path / "store"
    trainer.fit(pairs, Objective("dpo", beta=0.1), SETTINGS, tmp_path / "a", store=store)
    (path,) = store.iterdir()
    before = path.stat().st_mtime_ns
    trainer.fit(pairs, Objective("dpo", beta=0.5), SETTINGS, tmp_path / "b", store=store)
    assert [path] == list(store.iterdir()) and path.stat().st_mtime_ns == before
    assert not (tmp_path / "b/reference").exists()


def test_kto_begins_at_one_half_and_learns(trainer, pairs, tmp_path):
    """Log-ratios and KL are zero at the start: 1 - sigmoid(0) on both sides."""
    settings = dataclasses.replace(SETTINGS, steps=6, batch_size=12)
    fit = trainer.fit(pairs, Objective("kto", beta=0.5), settings, tmp_path)
    assert fit.metrics[0]["loss"] == pytest.approx(0.5, abs=1e-6)
    assert fit.metrics[-1]["loss"] < 0.499 and fit.metrics[-1]["kl"] > 0


def test_two_fits_over_which_the_optimiser_goes_on_are_one(trainer, pairs, tmp_path):
    """All pairs in every batch, so that the order in which they come makes no difference."""
    settings = dataclasses.replace(SETTINGS, batch_size=len(pairs), schedule="constant", steps=2)
    objective, (one, two) = Objective("sft"), (tmp_path / "one.file", tmp_path / "two.file")
    whole = trainer.fit(pairs, objective, dataclasses.replace(settings, steps=4), tmp_path / "all")
    first = trainer.fit(pairs, objective, settings, tmp_path / "a", carried=Carried(None, one))
    second = trainer.fit(
        pairs, objective, settings, tmp_path / "b", start=first.trained, carried=Carried(one, two)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), second.trained, whole.trained
    )
    fresh = trainer.fit(pairs, objective, settings, tmp_path / "c", start=first.trained)
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), fresh.trained, whole.trained)
    assert max(jax.tree.leaves(apart)) > 1e-4
    with pytest.raises(UserError, match="left by another"):
        other = dataclasses.replace(settings, optimizer="lion")
        trainer.fit(pairs, objective, other, tmp_path / "d", carried=Carried(one, two))


@pytest.mark.parametrize("kind", ["nf4", "int8", "fp8"])
def test_qlora(tiny, tiny_params, pairs, tmp_path, kind):
    trainer = JaxTrainer(tiny, quantize_base(tiny_params, kind), base_hash="tiny")
    assert trainer.base.hash == f"tiny+{kind}"
    fit = trainer.fit(pairs, Objective("dpo"), SETTINGS, tmp_path)
    assert fit.metrics[-1]["loss"] < fit.metrics[0]["loss"]
    with pytest.raises(UserError, match="train all parameters"):
        trainer.fit(pairs, Objective("dpo"), dataclasses.replace(SETTINGS, lora=None), tmp_path)


def test_a_fit_on_8_bit_floats_follows_the_full_one(tiny, tiny_params, pairs, tmp_path):
    """The same batches, learnt almost as well: gradients come through e5m2 without a bias."""
    settings = dataclasses.replace(SETTINGS, steps=20, batch_size=len(pairs), lr=1e-2)
    losses = [
        np.array([row["loss"] for row in JaxTrainer(tiny, tree, base_hash="tiny").fit(
            pairs, Objective("sft"), settings, tmp_path / name
        ).metrics])
        for name, tree in (("full", tiny_params), ("fp8", quantize_base(tiny_params, "fp8")))
    ]  # fmt: skip
    assert losses[0][0] - losses[0][-1] > 0.3  # there is something to follow
    assert 0 < np.abs(losses[1] - losses[0]).max() < 0.01


@pytest.mark.parametrize("name", ["lion", "adafactor"])
def test_lion_and_adafactor_descend(trainer, pairs, tmp_path, name):
    """All pairs in every batch, so the loss is one function and each small step lowers it. (With
    batches of a few, a step's loss is of pairs not trained on yet, and may go anywhere.)"""
    settings = dataclasses.replace(
        SETTINGS, optimizer=name, batch_size=len(pairs), lr=1e-3, schedule="constant", steps=4
    )
    losses = [
        row["loss"] for row in trainer.fit(pairs, Objective("dpo"), settings, tmp_path).metrics
    ]
    assert all(after < before for before, after in itertools.pairwise(losses)), losses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_share": 1.0}, "eval_share"),
        ({"keep": "first"}, "keep"),
        ({"keep": "best"}, "need learn.eval_share"),
        ({"patience": 0, "eval_share": 0.1}, "patience"),
        ({"optimizer": "sgd"}, "adafactor"),
    ],
)
def test_bad_settings_are_refused(trainer, pairs, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        trainer.fit(pairs, Objective("dpo"), dataclasses.replace(SETTINGS, **options), tmp_path)
