"""Every loss against TRL's own code, on random log-probs and on a real batch of SmolLM2, and
against hand computation."""

import functools
import math
from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from selfevo_jax.errors import UserError
from selfevo_jax.learn import losses
from selfevo_jax.learn.losses import Objective, Sequences, loss_terms, metric_sums

PAIRS, WIDTH, PROMPT = 6, 12, 3


def identity(x):
    return x


ACCELERATOR = SimpleNamespace(device="cpu", gather=identity, gather_for_metrics=identity)


@pytest.fixture(params=["random", "smollm2"])
def batch(request):
    """Per-token log-probs of PAIRS chosen then PAIRS rejected completions; see `smollm2_batch`."""
    name = "smollm2_batch" if request.param == "smollm2" else "random_batch"
    return request.getfixturevalue(name)


@pytest.fixture
def random_batch():
    """Numbers drawn at random, ours and theirs the same."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, WIDTH - PROMPT + 1, 2 * PAIRS)
    mask = np.zeros((2 * PAIRS, WIDTH), np.int64)
    for row, length in enumerate(lengths):
        mask[row, PROMPT : PROMPT + length] = 1
    policy, reference = (
        -rng.gamma(2.0, 1.0, (2 * PAIRS, WIDTH - 1)) * mask[:, 1:] for _ in range(2)
    )
    batch = SimpleNamespace(mask=mask, policy=policy, reference=reference, lengths=lengths)
    batch.nll = -policy.sum() / lengths.sum()
    batch.sums = functools.partial(_added_up, batch)
    return batch


def _added_up(batch, ld_alpha=1.0):
    """The same numbers as [pair, (chosen, rejected)] sums."""
    weights = batch.mask[:, 1:].astype(float)
    shorter = np.minimum(batch.lengths[:PAIRS], batch.lengths[PAIRS:])
    ranks = np.cumsum(weights, axis=1)
    weights = np.where(ranks > np.tile(shorter, 2)[:, None], ld_alpha, 1.0) * weights

    def sums(logps):
        return jnp.asarray((logps * weights).sum(1).reshape(2, PAIRS).T, jnp.float32)

    tokens = jnp.asarray(batch.lengths.reshape(2, PAIRS).T, jnp.float32)
    reference = sums(batch.reference)
    return Sequences(sums(batch.policy), tokens, reference, jnp.zeros_like(reference))


def total(objective, seqs):
    return sum(t.weight * t.numerator / t.denominator for t in loss_terms(objective, seqs))


def ours(objective, seqs):
    return float(total(objective, seqs))


def trl_dpo(
    batch, loss_types, *, beta=0.1, smoothing=0.0, ld_alpha=None, weights=None, use_reference=True
):
    """TRL's `DPOTrainer._compute_loss` on these log-probs; returns (loss, its metrics)."""
    mask = torch.tensor(batch.mask)
    shape = batch.policy.shape
    outputs = SimpleNamespace(
        log_probs=torch.tensor(batch.policy), entropy=torch.zeros(shape),
        mean_logits=torch.zeros(shape), is_top1=torch.zeros(shape, dtype=torch.bool),
    )  # fmt: skip
    reference = torch.tensor(batch.reference).sum(1) * use_reference
    if ld_alpha is not None:
        seqs = batch.sums(ld_alpha)
        reference = torch.tensor(np.asarray(seqs.reference).T.reshape(-1))
    trainer = SimpleNamespace(
        accelerator=ACCELERATOR, model=SimpleNamespace(training=True), aux_loss_enabled=False,
        ld_alpha=ld_alpha, precompute_ref_logps=True, f_divergence_type="reverse_kl", beta=beta,
        loss_types=loss_types, loss_weights=weights or [1.0], label_smoothing=smoothing,
        use_weighting=False, _metrics={"train": defaultdict(list)},
        _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "ref_chosen_logps": reference[:PAIRS], "ref_rejected_logps": reference[PAIRS:],
    }  # fmt: skip
    loss = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    return float(loss), {name: values[0] for name, values in trainer._metrics["train"].items()}


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        ("dpo", "sigmoid", {}),
        ("hinge", "hinge", {}),
        ("ipo", "ipo", {}),
        ("robust", "robust", {"smoothing": 0.2}),
        ("length_normalised", "sigmoid_norm", {"beta": 2.0}),
        ("apo_zero", "apo_zero", {}),
        ("dpo", "sigmoid", {"ld_alpha": 0.3}),
        ("dpo", "sigmoid", {"use_reference": False}),
    ],
)
def test_equals_trl_dpo(batch, name, theirs, options):
    expected, _ = trl_dpo(batch, [theirs], **options)
    objective = Objective(
        name,
        beta=options.get("beta", 0.1),
        label_smoothing=options.get("smoothing", 0.0),
        ld_alpha=options.get("ld_alpha", 1.0),
        reference_free=not options.get("use_reference", True),
    )
    assert ours(objective, batch.sums(objective.ld_alpha)) == pytest.approx(
        expected, rel=1e-5, abs=1e-5
    )


def test_added_sft_term_equals_trl(batch):
    expected, _ = trl_dpo(batch, ["sigmoid", "sft"], weights=[1.0, 0.3])
    assert ours(Objective("dpo", sft_weight=0.3), batch.sums()) == pytest.approx(expected, rel=1e-5)


def test_mixed_losses_equal_trl(batch):
    expected, _ = trl_dpo(batch, ["sigmoid", "hinge"], weights=[1.0, 0.4])
    assert ours(Objective("dpo+0.4*hinge"), batch.sums()) == pytest.approx(expected, rel=1e-5)


def test_metrics_equal_trl(batch):
    _, expected = trl_dpo(batch, ["sigmoid"])
    sums = {k: float(v) / PAIRS for k, v in metric_sums(Objective("dpo"), batch.sums()).items()}
    for mine, theirs in [
        ("reward_chosen", "rewards/chosen"), ("reward_rejected", "rewards/rejected"),
        ("margin", "rewards/margins"), ("accuracy", "rewards/accuracies"),
        ("logps_chosen", "logps/chosen"), ("logps_rejected", "logps/rejected"),
    ]:  # fmt: skip
        assert sums[mine] == pytest.approx(expected[theirs], rel=1e-5, abs=1e-5), mine


@pytest.mark.parametrize(("name", "theirs"), [("cpo", "sigmoid"), ("simpo", "simpo")])
def test_equals_trl_cpo(batch, name, theirs):
    logps = torch.tensor(batch.policy.sum(1) / (batch.lengths if name == "simpo" else 1))
    trainer = SimpleNamespace(
        alpha=0.0,
        loss_type=theirs,
        beta=0.5,
        simpo_gamma=0.4,
        label_smoothing=0.1,
        accelerator=ACCELERATOR,
    )
    expected = float(CPOTrainer.cpo_loss(trainer, *logps.chunk(2))[0].mean())
    objective = Objective(name, beta=0.5, margin=0.4, label_smoothing=0.1, sft_weight=0.0)
    assert ours(objective, batch.sums()) == pytest.approx(expected, rel=1e-5)


def test_orpo_equals_trl(batch):
    means = torch.tensor(batch.policy.sum(1) / batch.lengths)
    trainer = SimpleNamespace(beta=0.25, accelerator=ACCELERATOR)
    odds = -float(ORPOTrainer.odds_ratio_loss(trainer, *means.chunk(2))[0].mean())
    nll = -batch.policy[:PAIRS].sum() / batch.lengths[:PAIRS].sum()
    assert ours(Objective("orpo", beta=0.25), batch.sums()) == pytest.approx(odds + nll, rel=1e-5)


def test_sft_equals_trl(batch):
    """TRL's mean over tokens, and by hand the mean over sequences of their token means."""
    assert ours(Objective("sft"), batch.sums()) == pytest.approx(batch.nll, rel=1e-5)
    means = batch.policy.sum(1) / batch.lengths
    assert ours(Objective("sft_sequence"), batch.sums()) == pytest.approx(-means.mean(), rel=1e-5)


def test_kto_equals_trl(batch):
    """TRL averages over sequences; its KL estimate comes from given numbers here."""
    labels = np.arange(2 * PAIRS) < PAIRS
    kl_policy = torch.full((4,), -3.0)
    kl_reference = torch.full((4,), -4.5)
    shape = batch.policy.shape
    outputs = SimpleNamespace(
        log_probs=torch.tensor(batch.policy), entropy=torch.zeros(shape),
        mean_logits=torch.zeros(shape), is_top1=torch.zeros(shape, dtype=torch.bool),
    )  # fmt: skip
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(
            device="cpu", gather=identity, gather_for_metrics=identity, num_processes=1
        ),
        model=SimpleNamespace(training=True), aux_loss_enabled=False, precompute_ref_logps=True,
        calculate_KL=True, loss_type="kto", beta=0.1, desirable_weight=1.3, undesirable_weight=0.7,
        _compute_kl_logps=lambda *_: kl_policy, _metrics={"train": defaultdict(list)},
        _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    mask = torch.tensor(batch.mask)
    inputs = {
        "input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask),
        "completion_mask": mask, "label": torch.tensor(labels),
        "ref_logps": torch.tensor(batch.reference).sum(1), "ref_KL_logps": kl_reference,
    }  # fmt: skip
    expected = float(KTOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False))
    objective = Objective("dpo", desirable=1.3, undesirable=0.7)
    ratio = batch.sums().log_ratio.T.reshape(-1)
    mine = losses.kto(
        ratio, jnp.asarray(labels), jnp.float32(1.5), objective.beta, objective
    ).mean()
    assert float(mine) == pytest.approx(expected, rel=1e-5)
    objective = Objective("kto", desirable=1.3, undesirable=0.7)
    (term,) = loss_terms(objective, batch.sums(), jnp.float32(1.5))
    assert float(term.numerator / term.denominator) == pytest.approx(expected, rel=1e-5)


def test_losses_that_trl_lacks_by_hand():
    """One pair in small numbers: sums -2 and -3, references -2.5 and -2, anchors -1 and -2."""
    seqs = Sequences(
        *(jnp.array([row]) for row in ([-2.0, -3.0], [2.0, 4.0], [-2.5, -2.0], [-1.0, -2.0]))
    )
    z = (-2 + 2.5) - (-3 + 2)
    assert ours(Objective("linear", beta=0.2), seqs) == pytest.approx(-0.2 * z)
    means = 0.5 / 2 - (-1.0) / 4
    assert ours(Objective("ranking", beta=0.2, margin=1.0), seqs) == pytest.approx(1 - 0.2 * means)
    h = (-2 + 3) - 0.25 * (-2.5 + 2) - 0.75 * (-1 + 2)
    assert ours(Objective("inpo", beta=0.5, ratio=0.25), seqs) == pytest.approx((h - 1) ** 2)
    smooth = -0.9 * math.log(1 / (1 + math.exp(-0.1 * z))) - 0.1 * math.log(
        1 / (1 + math.exp(0.1 * z))
    )
    assert ours(Objective("dpo", label_smoothing=0.1), seqs) == pytest.approx(smooth)
    assert ours(Objective("sft"), seqs) == pytest.approx(5 / 6)
    assert ours(Objective("sft_sequence"), seqs) == pytest.approx((1 + 0.75) / 2)


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_empty_slots_change_nothing(random_batch, name):
    """A padded slot adds neither to the loss nor to its gradient, and never a NaN."""
    objective = Objective(name)
    seqs = random_batch.sums()
    padded = jax.tree.map(lambda leaf: jnp.pad(leaf, ((0, 3), (0, 0))), seqs)

    def gradient(s):
        return np.asarray(jax.grad(lambda logps: total(objective, s.replace(logps=logps)))(s.logps))

    grads = gradient(seqs), gradient(padded)
    assert ours(objective, padded) == pytest.approx(ours(objective, seqs), rel=1e-6)
    np.testing.assert_allclose(grads[1][:PAIRS], grads[0], rtol=1e-5)
    assert not grads[1][PAIRS:].any()


def test_step_zero_is_log_two(random_batch):
    seqs = random_batch.sums()
    assert ours(Objective("dpo"), seqs.replace(reference=seqs.logps)) == pytest.approx(
        math.log(2), abs=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "dop"}, "nearest: dpo"),
        ({"loss": "dpo+0.5*ipi"}, "nearest: ipo"),
        ({"loss": "dpo+half*ipo"}, "no weight"),
        ({"loss": "dpo+sft"}, "sft_weight"),
        ({"beta": 0.0}, "beta"),
        ({"label_smoothing": 0.5}, "label_smoothing"),
        ({"ld_alpha": 0.5, "sft_weight": 1.0}, "ld_alpha"),
    ],
)
def test_bad_objective_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        Objective(**options)
