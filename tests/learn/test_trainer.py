"""`JaxTrainer.fit`: what it learns, records, refuses, and what is on disk afterwards."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.trainer import FitSettings, JaxTrainer
from selfevo_jax.models.flops import PEAKS
from selfevo_jax.models.lora import LoraConfig, adapter

LORA = LoraConfig(rank=4)
SETTINGS = FitSettings(steps=4, batch_size=4, lr=3e-3, warmup=0.0, lora=LORA, checkpoint_every=2)


@pytest.fixture(scope="module")
def trainer(tiny, tiny_params):
    return JaxTrainer(tiny, tiny_params, base_hash="tiny")


@pytest.fixture(scope="module")
def fitted(trainer, pairs, tmp_path_factory):
    """One DPO fit that several tests look at: (result, folder)."""
    folder = tmp_path_factory.mktemp("fit")
    settings = dataclasses.replace(SETTINGS, steps=8)
    return trainer.fit(pairs, Objective("dpo"), settings, folder), folder


def test_dpo_begins_at_log_two_and_learns(fitted):
    result, _ = fitted
    first, last = result.metrics[0], result.metrics[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(first["margin"]) < 1e-6
    assert last["loss"] < first["loss"] and last["margin"] > 0
    assert result.adapter_shift > 0


def test_metrics_hold_each_step_once_and_no_clock(fitted):
    result, folder = fitted
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.metrics and [row["step"] for row in rows] == list(range(8))
    sides = {f"{a}_{b}" for a in ("reward", "logps", "tokens") for b in ("chosen", "rejected")}
    wanted = {"loss", "grad_norm", "lr", "margin", "accuracy", "kl", "examples", "loss_tokens",
              "tokens", "padding_share"}  # fmt: skip
    assert wanted | sides <= rows[0].keys()
    assert not any("second" in name for name in rows[0])
    assert 0 <= rows[0]["padding_share"] < 1
    assert abs(rows[0]["kl"]) < 1e-9 < rows[-1]["kl"]


def test_timings_hold_speed_and_share_of_the_peak(trainer, pairs, monkeypatch, tmp_path):
    """Useful tokens a second, and MFU where the device's peak is known: here one is made up. A
    fit with LoRA needs at least two passes of two operations for every kernel value and token."""
    peak, values = 1e15, 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64)
    monkeypatch.setitem(PEAKS, jax.devices()[0].device_kind, peak)
    rows = trainer.fit(pairs, Objective("dpo"), SETTINGS, tmp_path).metrics
    lines = (tmp_path / "timings.jsonl").read_text().splitlines()
    assert len(lines) == len(rows) == 4
    for row, line in zip(rows, map(json.loads, lines), strict=True):
        assert line["step"] == row["step"]
        assert line["tokens_per_second"] == pytest.approx(row["tokens"] / line["seconds"])
        operations = line["mfu"] * line["seconds"] * peak
        assert 4 * values * row["tokens"] < operations < 12 * values * row["tokens"]


def test_the_same_call_on_a_finished_folder_trains_no_more(trainer, pairs, fitted):
    result, folder = fitted
    seen = []
    settings = dataclasses.replace(SETTINGS, steps=8)
    again = trainer.fit(pairs, Objective("dpo"), settings, folder, on_step=seen.append)
    assert seen == [] and again.metrics == result.metrics
    jax.tree.map(np.testing.assert_array_equal, again.trained, result.trained)


def test_other_settings_on_the_same_folder_are_refused(trainer, pairs, fitted):
    _, folder = fitted
    with pytest.raises(UserError, match=r"learn.lr \(saved 0.003, now 0.1\)"):
        settings = dataclasses.replace(SETTINGS, steps=8, lr=0.1)
        trainer.fit(pairs, Objective("dpo"), settings, folder)


def test_changed_reference_is_not_read_from_the_store(trainer, pairs, fitted, tmp_path):
    """The same folder of reference sums, another reference policy: a file of its own."""
    result, folder = fitted
    before = set((folder / "reference").iterdir())
    (tmp_path / "reference").symlink_to(folder / "reference")
    policy = adapter(result.trained, LORA)
    fit = trainer.fit(
        pairs, Objective("dpo"), dataclasses.replace(SETTINGS, steps=1), tmp_path,
        start=result.trained, reference=policy,
    )  # fmt: skip
    assert fit.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert len(set((folder / "reference").iterdir()) - before) == 1


def test_going_on_from_an_adapter_keeps_the_base_as_reference(trainer, pairs, fitted, tmp_path):
    result, _ = fitted
    fit = trainer.fit(
        pairs,
        Objective("dpo"),
        dataclasses.replace(SETTINGS, steps=1),
        tmp_path,
        start=result.trained,
    )
    assert fit.metrics[0]["loss"] < math.log(2) - 0.01


@pytest.mark.parametrize("objective", [Objective("sft"), Objective("dpo")], ids=["sft", "dpo"])
def test_all_parameters(tiny, tiny_params, pairs, tmp_path, objective):
    """Full fine-tuning by the same code, and the caller's parameters stay as they were."""
    kept = jax.tree.map(np.array, tiny_params)
    settings = dataclasses.replace(SETTINGS, steps=6, lora=None, lr=1e-3)
    fit = JaxTrainer(tiny, tiny_params, base_hash="tiny").fit(pairs, objective, settings, tmp_path)
    assert fit.metrics[-1]["loss"] < fit.metrics[0]["loss"]
    jax.tree.map(np.testing.assert_array_equal, tiny_params, kept)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), fit.trained, kept)
    assert all(jax.tree.leaves(moved))


def test_inpo_uses_its_anchor(trainer, pairs, fitted, tmp_path):
    """Start = anchor: with ratio 0 h is zero, with ratio 0.5 half the log-ratio difference."""
    result, _ = fitted
    policy = adapter(result.trained, LORA)
    settings = dataclasses.replace(SETTINGS, steps=1, batch_size=12)
    options = {"start": result.trained, "anchor": policy}
    inpo = trainer.fit(
        pairs, Objective("inpo", beta=0.5, ratio=0.5), settings, tmp_path / "a", **options
    )
    only = trainer.fit(
        pairs, Objective("inpo", beta=0.5, ratio=0.0), settings, tmp_path / "b", **options
    )
    assert only.metrics[0]["loss"] == pytest.approx(1.0, abs=1e-4)  # (0 - 1/(2*0.5))^2
    assert inpo.metrics[0]["loss"] != pytest.approx(1.0, abs=1e-2)


def test_dropout_draws_anew_each_step_and_spares_the_reference(trainer, pairs, tmp_path):
    settings = dataclasses.replace(SETTINGS, lora=LoraConfig(rank=4, dropout=0.5))
    fit = trainer.fit(pairs, Objective("dpo"), settings, tmp_path)
    assert fit.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    plain = trainer.fit(pairs, Objective("dpo"), SETTINGS, tmp_path / "plain")
    assert fit.metrics[1]["loss"] != plain.metrics[1]["loss"]


def test_a_loss_that_is_not_finite_stops_with_the_batch_saved(trainer, pairs, tmp_path):
    """A rate that breaks the second step: the file holds that batch, token by token, and nothing
    of the broken step is kept as trained."""
    settings = dataclasses.replace(SETTINGS, steps=3, lr=1e30, schedule="constant")
    with pytest.raises(UserError, match="at step 1: training stopped"):
        trainer.fit(pairs, Objective("dpo"), settings, tmp_path)
    saved = json.loads((tmp_path / "not_finite.json").read_text())
    by_id = {pair.id: pair for pair in pairs}
    assert saved["step"] == 1 and len(saved["examples"]) == 4
    for one in saved["examples"]:
        pair = by_id[one["id"]]
        assert one["prompt"] == pair.prompt.tokens.tolist()
        assert one["completions"] == [c.tokens.tolist() for c in pair.completions]
        assert np.isfinite(one["frozen"]["reference"]).all()
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_a_reference_that_is_not_finite_is_refused_and_not_kept(tiny, tiny_params, pairs, tmp_path):
    broken = jax.tree.map(np.array, tiny_params)
    broken["final_norm"]["scale"][0] = np.inf
    trainer = JaxTrainer(tiny, broken, base_hash="broken")
    with pytest.raises(UserError, match=r"reference's log-probs of 12 examples are not finite"):
        trainer.fit(pairs, Objective("dpo"), SETTINGS, tmp_path)
    assert not (tmp_path / "reference").exists()


def test_a_fit_that_changes_nothing_is_an_error(trainer, pairs, tmp_path):
    with pytest.raises(UserError, match="changed nothing"):
        trainer.fit(pairs, Objective("dpo"), dataclasses.replace(SETTINGS, lr=0.0), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"steps": 0}, "steps"),
        ({"schedule": "cosin"}, "schedule"),
        ({"warmup": 1.0}, "warmup"),
    ],
)
def test_bad_settings_are_refused(trainer, pairs, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        trainer.fit(pairs, Objective("dpo"), dataclasses.replace(SETTINGS, **options), tmp_path)


def test_an_adapter_of_another_shape_is_no_start(trainer, pairs, fitted, tmp_path):
    settings = dataclasses.replace(SETTINGS, lora=LoraConfig(rank=8))
    with pytest.raises(UserError, match="give its rank and targets"):
        trainer.fit(pairs, Objective("dpo"), settings, tmp_path, start=fitted[0].trained)
