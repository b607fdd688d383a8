"""The torch twin of `learn/losses.py`: the same formulas under the same names, on tensors.

`Objective` is shared. What each formula is and where it comes from stands there; a test holds
every loss of its registry against the one here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid as log_sigmoid
from torch.nn.functional import relu

from selfevo_jax.learn.losses import Objective


@dataclass(frozen=True)
class Sequences:
    """Log-prob sums of sequences and what goes with them; four float32 tensors of one shape."""

    logps: Tensor
    tokens: Tensor
    reference: Tensor
    anchor: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """log pi(y|x) - log pi_ref(y|x)."""
        return self.logps - self.reference

    @property
    def mean_logps(self) -> Tensor:
        """Mean log-prob of a token."""
        return self.logps / self.tokens.clamp(min=1)

    @property
    def mean_log_ratio(self) -> Tensor:
        """Mean over tokens of the log-ratio to the reference."""
        return self.log_ratio / self.tokens.clamp(min=1)

    def take(self, index: int) -> Sequences:
        """The sequences at `index` of the last axis."""
        parts = (self.logps, self.tokens, self.reference, self.anchor)
        return Sequences(*(part[..., index] for part in parts))


@dataclass(frozen=True)
class Term:
    """One weighted part of the loss: `weight * numerator / denominator` (scalars)."""

    numerator: Tensor
    denominator: Tensor
    weight: float = 1.0


def dpo(chosen: Sequences, rejected: Sequences, o: Objective) -> Tensor:
    """See `learn.losses.dpo`."""
    return _smoothed(o.beta * (chosen.log_ratio - rejected.log_ratio), o.label_smoothing)


def hinge(chosen: Sequences, rejected: Sequences, o: Objective) -> Tensor:
    """See `learn.losses.hinge`."""
    return relu(1 - o.beta * (chosen.log_ratio - rejected.log_ratio))


def ipo(chosen: Sequences, rejected: Sequences, o: Objective) -> Tensor:
    """See `learn.losses.ipo`."""
    return (chosen.mean_log_ratio - rejected.mean_log_ratio - 1 / (2 * o.beta)) ** 2


def robust(chosen: Sequences, rejected: Sequences, o: Objective) -> Tensor:
    """See `learn.losses.robust`."""
    z, e = o.beta * (chosen.log_ratio - rejected.log_ratio), o.label_smoothing
    return (-(1 - e) * log_sigmoid(z) + e * log_sigmoid(-z)) / (1 - 2 * e)


def linear(chosen: Sequences, rejected: Sequences, o: Objective) -> Tensor:
    """See `learn.losses.linear`."""
    return -o.beta * (chosen.log_ratio - rejected.log_ratio)


def length_normalised(chosen: Sequences, rejected: Sequences, o: Objective) -> Tensor:
    """See `learn.losses.length_normalised`."""
    return _smoothed(o.beta * (chosen.mean_log_ratio - rejected.mean_log_ratio), o.label_smoothing)


def simpo(chosen: Sequences, rejected: Sequences, o: Objective) -> Tensor:
    """See `learn.losses.simpo`."""
    difference = chosen.mean_logps - rejected.mean_logps
    return _smoothed(o.beta * difference - o.margin, o.label_smoothing)


def orpo(chosen: Sequences, rejected: Sequences, o: Objective) -> Tensor:
    """See `learn.losses.orpo`."""
    return -o.beta * log_sigmoid(_log_odds(chosen.mean_logps) - _log_odds(rejected.mean_logps))


def cpo(chosen: Sequences, rejected: Sequences, o: Objective) -> Tensor:
    """See `learn.losses.cpo`."""
    return _smoothed(o.beta * (chosen.logps - rejected.logps), o.label_smoothing)


def inpo(chosen: Sequences, rejected: Sequences, o: Objective) -> Tensor:
    """See `learn.losses.inpo`."""

    def pull(side: Sequences) -> Tensor:
        return side.logps - o.ratio * side.reference - (1 - o.ratio) * side.anchor

    return (pull(chosen) - pull(rejected) - 1 / (2 * o.beta)) ** 2


def ranking(chosen: Sequences, rejected: Sequences, o: Objective) -> Tensor:
    """See `learn.losses.ranking`."""
    return relu(o.margin - o.beta * (chosen.mean_log_ratio - rejected.mean_log_ratio))


def apo_zero(chosen: Sequences, rejected: Sequences, o: Objective) -> Tensor:
    """See `learn.losses.apo_zero`."""
    zero = torch.zeros_like(chosen.logps)
    return kto(chosen.log_ratio, True, zero, o) + kto(rejected.log_ratio, False, zero, o)


def kto(log_ratio: Tensor, desirable: Tensor | bool, kl: Tensor, o: Objective) -> Tensor:
    """See `learn.losses.kto`."""
    kl = kl.detach()
    good = o.desirable * (1 - torch.sigmoid(o.beta * (log_ratio - kl)))
    bad = o.undesirable * (1 - torch.sigmoid(o.beta * (kl - log_ratio)))
    return torch.where(torch.as_tensor(desirable, device=log_ratio.device), good, bad)


def kto_term(chosen: Sequences, rejected: Sequences, o: Objective, kl: Tensor) -> Term:
    """See `learn.losses.kto_term`."""
    sides = (chosen, True), (rejected, False)
    losses = [
        torch.where(side.tokens > 0, kto(side.log_ratio, good, kl, o), 0) for side, good in sides
    ]
    count = sum((side.tokens > 0).sum() for side, _ in sides)
    return Term(losses[0].sum() + losses[1].sum(), count.float())


def _smoothed(logit: Tensor, smoothing: float) -> Tensor:
    return -(1 - smoothing) * log_sigmoid(logit) - smoothing * log_sigmoid(-logit)


def _log_odds(logp: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p < 0; log(1 - p) by the stable one of two forms."""
    logp = logp.clamp(max=-1e-6)
    small = logp < -0.6931472
    log_rest = torch.where(
        small,
        torch.log1p(-torch.exp(torch.where(small, logp, -1.0))),
        torch.log(-torch.expm1(torch.where(small, -1.0, logp))),
    )
    return logp - log_rest


FORMULAS: dict[str, Callable[..., Tensor]] = {
    formula.__name__: formula
    for formula in (
        dpo, hinge, ipo, robust, linear, length_normalised, simpo, orpo, cpo, inpo, ranking,
        apo_zero,
    )
}  # fmt: skip


def sft(logps: Tensor, tokens: Tensor) -> Term:
    """See `learn.losses.sft`."""
    return Term(-torch.where(tokens > 0, logps, 0).sum(), tokens.sum())


def sft_sequence(logps: Tensor, tokens: Tensor) -> Term:
    """See `learn.losses.sft_sequence`."""
    means = torch.where(tokens > 0, logps / tokens.clamp(min=1), 0)
    return Term(-means.sum(), (tokens > 0).sum().float())


def loss_terms(objective: Objective, sequences: Sequences, kl: float = 0.0) -> tuple[Term, ...]:
    """See `learn.losses.loss_terms`; the tensors are [..., k]."""
    if not objective.pairs:
        alone = {"sft": sft, "sft_sequence": sft_sequence}[objective.loss]
        return (alone(sequences.logps, sequences.tokens),)
    chosen, rejected = sequences.take(0), sequences.take(1)
    filled = chosen.tokens > 0
    sides = _or_uniform(chosen, objective), _or_uniform(rejected, objective)
    count = filled.sum().float()
    terms: tuple[Term, ...] = ()
    for name, weight in objective.weights.items():
        if name == "kto":
            term = kto_term(*sides, objective, torch.tensor(kl, device=count.device))
        else:
            losses = FORMULAS[name](*sides, objective)
            term = Term(torch.where(filled, losses, 0).sum(), count)
        terms += (replace(term, weight=weight),)
    if objective.nll_weight:
        terms += (replace(sft(chosen.logps, chosen.tokens), weight=objective.nll_weight),)
    return terms


def metric_sums(objective: Objective, sequences: Sequences) -> dict[str, Tensor]:
    """See `learn.losses.metric_sums`."""
    there = sequences.tokens > 0
    sums = {"examples": there.any(-1).sum().float(), "loss_tokens": sequences.tokens.sum()}
    if not objective.pairs:
        return sums | {"logps": sequences.logps.sum()}
    squares, ratios = 0.0, []
    for index, name in enumerate(("chosen", "rejected")):
        side = _or_uniform(sequences.take(index), objective)
        ratio = torch.where(side.tokens > 0, side.log_ratio, 0)
        sums[name] = (side.tokens > 0).sum().float()
        sums[f"logps_{name}"] = torch.where(side.tokens > 0, side.logps, 0).sum()
        sums[f"tokens_{name}"] = side.tokens.sum()
        sums[f"reward_{name}"] = objective.beta * ratio.sum()
        squares = squares + ratio.square().sum()
        ratios.append(ratio)
    pairs = there.all(-1)
    margin = torch.where(pairs, ratios[0] - ratios[1], 0)
    return sums | {
        "pairs": pairs.sum().float(),
        "kl": squares / 2,
        "margin": objective.beta * margin.sum(),
        "accuracy": (margin > 0).sum().float(),
    }


def _or_uniform(side: Sequences, o: Objective) -> Sequences:
    return side if o.needs_reference else replace(side, reference=torch.zeros_like(side.logps))
