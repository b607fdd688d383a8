"""Every training loss as a formula over per-sequence log-prob sums and token counts.

A *sequence* is one completion: its `logps` is the sum of log p(token | before) over its loss
tokens, `tokens` their number, `reference` the same sum under the frozen reference, `anchor`
under a second frozen policy. A *pair* is a chosen and a rejected sequence of one prompt; for `kto`
one of the two may be absent (`tokens` 0): a completion with a label alone. All arrays are
float32; a formula maps arrays of one shape to per-pair losses of that shape.

`loss_terms` turns a micro-batch into numerators and denominators; denominators depend on the
data alone, so summing numerators over micro-batches and dividing by the batch's denominators
gives exactly the loss of the undivided batch.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, relu, sigmoid

from selfevo_jax.errors import UserError

# Under `jit` a traced number: a sweep over it compiles its step once.
Beta = jax.Array | float


@flax.struct.dataclass
class Sequences:
    """Log-prob sums of sequences and what goes with them; four float32 arrays of one shape."""

    logps: jax.Array
    tokens: jax.Array
    reference: jax.Array
    anchor: jax.Array

    @property
    def log_ratio(self) -> jax.Array:
        """log pi(y|x) - log pi_ref(y|x)."""
        return self.logps - self.reference

    @property
    def mean_logps(self) -> jax.Array:
        """Mean log-prob of a token."""
        return self.logps / jnp.maximum(self.tokens, 1)

    @property
    def mean_log_ratio(self) -> jax.Array:
        """Mean over tokens of the log-ratio to the reference."""
        return self.log_ratio / jnp.maximum(self.tokens, 1)

    def take(self, index: int) -> Sequences:
        """The sequences at `index` of the last axis."""
        return jax.tree.map(lambda leaf: leaf[..., index], self)


@dataclass(frozen=True)
class Objective:
    """What `fit` minimises: a loss of `LOSSES`, or several by weight, and their constants.

    loss            a name, or names with weights: `dpo+0.5*ipo`
    beta            strength of the pull to the reference (for `inpo`: eta; for `simpo`: the scale)
    label_smoothing share of labels thought to be flipped (dpo, cpo, simpo, robust)
    margin          `simpo`: the target reward margin gamma; `ranking`: the margin of the hinge
    ratio           `inpo`: tau / eta, the weight of the reference against the anchor
    desirable, undesirable   `apo_zero`, `kto`: weights of the two sides
    ld_alpha        weight of tokens beyond the shorter completion's length (1: off)
    reference_free  replace the reference by the uniform policy (its log-ratio is zero)
    sft_weight      weight of an added token-mean NLL of the chosen completion
                    (None: the loss's own default, 1 for `orpo` and `cpo`, else 0)
    """

    loss: str = "dpo"
    beta: float = 0.1
    label_smoothing: float = 0.0
    margin: float = 0.0
    ratio: float = 1.0
    desirable: float = 1.0
    undesirable: float = 1.0
    ld_alpha: float = 1.0
    reference_free: bool = False
    sft_weight: float | None = None

    def __post_init__(self) -> None:
        self._check_losses()
        if self.beta <= 0 and self.pairs:
            raise UserError(f"objective.beta is {self.beta}: it must be positive")
        if not 0 <= self.label_smoothing < 0.5:
            raise UserError(
                f"objective.label_smoothing is {self.label_smoothing}: use 0 up to below 0.5"
            )
        if not 0 <= self.ld_alpha <= 1:
            raise UserError(f"objective.ld_alpha is {self.ld_alpha}: use a value between 0 and 1")
        if self.ld_alpha != 1 and (self.nll_weight or not self.pairs or self.needs_kl):
            raise UserError(
                "objective.ld_alpha re-weights tokens by the pair's shorter completion: "
                "it cannot join an SFT term or kto"
            )

    def _check_losses(self) -> None:
        for name in self.loss.split("+"):
            name = name.split("*")[-1]
            if name not in LOSSES:
                near = difflib.get_close_matches(name, LOSSES, 3, 0.3) or sorted(LOSSES)
                raise UserError(f"objective.loss {name!r} is unknown; nearest: {', '.join(near)}")
        mixed = self.weights
        if len(mixed) > 1 and not all(LOSSES[name].pairs for name in mixed):
            raise UserError("objective.loss mixes losses of pairs; for an SFT term use sft_weight")

    @property
    def weights(self) -> dict[str, float]:
        """Loss -> weight: `dpo` is {dpo: 1}, `dpo+0.5*ipo` is {dpo: 1, ipo: 0.5}."""
        found = {}
        for part in self.loss.split("+"):
            number, star, name = part.rpartition("*")
            try:
                found[name] = float(number) if star else 1.0
            except ValueError as error:
                raise UserError(
                    f"objective.loss {self.loss!r}: {number!r} is no weight; write 0.5*{name}"
                ) from error
        return found

    @property
    def pairs(self) -> bool:
        """Whether examples must have exactly two completions, chosen first."""
        return all(LOSSES[name].pairs for name in self.weights)

    @property
    def takes_labels(self) -> bool:
        """Whether an example may be one side of a pair: a completion that is good, or is not."""
        return list(self.weights) == ["kto"] and not self.nll_weight

    @property
    def needs_reference(self) -> bool:
        """Whether reference log-probs enter the loss."""
        return any(LOSSES[name].reference for name in self.weights) and not self.reference_free

    @property
    def needs_anchor(self) -> bool:
        """Whether log-probs of a second frozen policy enter the loss."""
        return "inpo" in self.weights and self.ratio != 1

    @property
    def needs_kl(self) -> bool:
        """Whether an estimate of the KL to the reference enters the loss."""
        return "kto" in self.weights

    @property
    def nll_weight(self) -> float:
        """The weight of the added NLL of the chosen completion."""
        if self.sft_weight is not None:
            return self.sft_weight
        return sum(weight * LOSSES[name].nll_weight for name, weight in self.weights.items())


@dataclass(frozen=True)
class Loss:
    """A row of the registry; `formula(chosen, rejected, beta, objective)` gives per-pair losses."""

    formula: Callable[..., jax.Array]
    pairs: bool = True
    reference: bool = True
    nll_weight: float = 0.0


@flax.struct.dataclass
class Term:
    """One weighted part of the loss: `weight * numerator / denominator` (scalars)."""

    numerator: jax.Array
    denominator: jax.Array
    weight: float = flax.struct.field(pytree_node=False, default=1.0)


def dpo(chosen: Sequences, rejected: Sequences, beta: Beta, o: Objective) -> jax.Array:
    """-(1-e) log sigmoid(beta z) - e log sigmoid(-beta z), z the difference of log-ratios, e the
    label smoothing. Rafailov et al., 2023, arXiv:2305.18290, eq. 7; with e: Mitchell, 2023."""
    return _smoothed(beta * (chosen.log_ratio - rejected.log_ratio), o.label_smoothing)


def hinge(chosen: Sequences, rejected: Sequences, beta: Beta, o: Objective) -> jax.Array:
    """max(0, 1 - beta z). SLiC (Zhao et al., 2023, arXiv:2305.10425) with the reference of RSO
    (Liu et al., 2023, arXiv:2309.06657)."""
    return relu(1 - beta * (chosen.log_ratio - rejected.log_ratio))


def ipo(chosen: Sequences, rejected: Sequences, beta: Beta, o: Objective) -> jax.Array:
    """(z - 1/(2 beta))^2 on token-mean log-ratios. Azar et al., 2023, arXiv:2310.12036, eq. 17."""
    return (chosen.mean_log_ratio - rejected.mean_log_ratio - 1 / (2 * beta)) ** 2


def robust(chosen: Sequences, rejected: Sequences, beta: Beta, o: Objective) -> jax.Array:
    """((1-e) l(z) - e l(-z)) / (1-2e), l(z) = -log sigmoid(beta z): unbiased under labels flipped
    with probability e = label_smoothing. Chowdhury et al., 2024, arXiv:2403.00409, eq. 12."""
    z = beta * (chosen.log_ratio - rejected.log_ratio)
    e = o.label_smoothing
    return (-(1 - e) * log_sigmoid(z) + e * log_sigmoid(-z)) / (1 - 2 * e)


def linear(chosen: Sequences, rejected: Sequences, beta: Beta, o: Objective) -> jax.Array:
    """-beta z: no saturation (RefEval's `normalize=False`)."""
    return -beta * (chosen.log_ratio - rejected.log_ratio)


def length_normalised(
    chosen: Sequences, rejected: Sequences, beta: Beta, o: Objective
) -> jax.Array:
    """DPO on token-mean log-ratios. Lambert et al., 2024 (Tulu 3), arXiv:2411.15124, eq. 6."""
    return _smoothed(beta * (chosen.mean_log_ratio - rejected.mean_log_ratio), o.label_smoothing)


def simpo(chosen: Sequences, rejected: Sequences, beta: Beta, o: Objective) -> jax.Array:
    """-log sigmoid(beta (mean_c - mean_r) - margin), no reference.
    Meng et al., 2024, arXiv:2405.14734, eq. 6."""
    return _smoothed(beta * (chosen.mean_logps - rejected.mean_logps) - o.margin, o.label_smoothing)


def orpo(chosen: Sequences, rejected: Sequences, beta: Beta, o: Objective) -> jax.Array:
    """-beta log sigmoid(log odds_c - log odds_r), odds of p = exp(mean log-prob); the NLL of the
    chosen joins it (sft_weight, 1 by default). Hong et al., 2024, arXiv:2403.07691, eq. 6 and 7."""
    return -beta * log_sigmoid(_log_odds(chosen.mean_logps) - _log_odds(rejected.mean_logps))


def cpo(chosen: Sequences, rejected: Sequences, beta: Beta, o: Objective) -> jax.Array:
    """DPO without reference; the NLL of the chosen joins it (sft_weight, 1 by default).
    Xu et al., 2024, arXiv:2401.08417, eq. 5."""
    return _smoothed(beta * (chosen.logps - rejected.logps), o.label_smoothing)


def inpo(chosen: Sequences, rejected: Sequences, beta: Beta, o: Objective) -> jax.Array:
    """(h - 1/(2 beta))^2 with h = z_pi - ratio z_ref - (1 - ratio) z_anchor, z the chosen-rejected
    difference of log-prob sums, beta = eta, ratio = tau/eta. Zhang et al., 2024, arXiv:2407.00617;
    COMAL (Liu et al., 2024, arXiv:2410.23223). With ratio 1 it is COMAL's IPO."""

    def pull(side: Sequences) -> jax.Array:
        return side.logps - o.ratio * side.reference - (1 - o.ratio) * side.anchor

    return (pull(chosen) - pull(rejected) - 1 / (2 * beta)) ** 2


def ranking(chosen: Sequences, rejected: Sequences, beta: Beta, o: Objective) -> jax.Array:
    """max(0, margin - beta (r_c - r_r)), r the token-mean log-ratio to the reference: METEOR's
    pairwise ranking of an expensive decoding over a cheap one, with the margin, the length
    control and the reference term that its code lacked."""
    return relu(o.margin - beta * (chosen.mean_log_ratio - rejected.mean_log_ratio))


def apo_zero(chosen: Sequences, rejected: Sequences, beta: Beta, o: Objective) -> jax.Array:
    """desirable (1 - sigmoid(beta r_c)) + undesirable sigmoid(beta r_r): KTO's shape around zero
    instead of a KL estimate. D'Oosterlinck et al., 2024, arXiv:2408.06266, eq. 7."""
    zero = jnp.zeros_like(chosen.logps)
    return kto(chosen.log_ratio, True, zero, beta, o) + kto(
        rejected.log_ratio, False, zero, beta, o
    )


def kto(
    log_ratio: jax.Array, desirable: jax.Array | bool, kl: jax.Array, beta: Beta, o: Objective
) -> jax.Array:
    """Per-sequence KTO: d (1 - sigmoid(beta (r - kl))) for a desirable sequence and
    u (1 - sigmoid(beta (kl - r))) for another; `kl` is a detached estimate, >= 0, of the KL from
    the reference. Ethayarajh et al., 2024, arXiv:2402.01306, eq. 7 and 8."""
    kl = jax.lax.stop_gradient(kl)
    good = o.desirable * (1 - sigmoid(beta * (log_ratio - kl)))
    bad = o.undesirable * (1 - sigmoid(beta * (kl - log_ratio)))
    return jnp.where(desirable, good, bad)


def _smoothed(logit: jax.Array, smoothing: float) -> jax.Array:
    return -(1 - smoothing) * log_sigmoid(logit) - smoothing * log_sigmoid(-logit)


def _log_odds(logp: jax.Array) -> jax.Array:
    """log(p / (1 - p)) from log p < 0; log(1 - p) by the stable one of two forms."""
    logp = jnp.minimum(logp, -1e-6)
    small = logp < -0.6931472
    log_rest = jnp.where(
        small,
        jnp.log1p(-jnp.exp(jnp.where(small, logp, -1.0))),
        jnp.log(-jnp.expm1(jnp.where(small, -1.0, logp))),
    )
    return logp - log_rest


def _nothing(chosen: Sequences, rejected: Sequences, beta: Beta, o: Objective) -> jax.Array:
    return jnp.zeros_like(chosen.logps)


LOSSES: dict[str, Loss] = {
    "sft": Loss(_nothing, pairs=False, reference=False),
    "sft_sequence": Loss(_nothing, pairs=False, reference=False),
    "dpo": Loss(dpo),
    "hinge": Loss(hinge),
    "ipo": Loss(ipo),
    "robust": Loss(robust),
    "linear": Loss(linear),
    "length_normalised": Loss(length_normalised),
    "simpo": Loss(simpo, reference=False),
    "orpo": Loss(orpo, reference=False, nll_weight=1.0),
    "cpo": Loss(cpo, reference=False, nll_weight=1.0),
    "inpo": Loss(inpo),
    "ranking": Loss(ranking),
    "apo_zero": Loss(apo_zero),
    "kto": Loss(_nothing),
}


def kto_term(
    chosen: Sequences, rejected: Sequences, beta: Beta, o: Objective, kl: jax.Array
) -> Term:
    """`kto` over the sequences that are there, the chosen desirable and the rejected not."""
    sides = (chosen, True), (rejected, False)
    losses = [
        jnp.where(side.tokens > 0, kto(side.log_ratio, good, kl, beta, o), 0)
        for side, good in sides
    ]
    count = _count(chosen.tokens > 0) + _count(rejected.tokens > 0)
    return Term(jnp.sum(losses[0]) + jnp.sum(losses[1]), count)


def sft(logps: jax.Array, tokens: jax.Array) -> Term:
    """Negative log-likelihood, mean over loss tokens: sum and count over all sequences."""
    return Term(-jnp.sum(jnp.where(tokens > 0, logps, 0)), jnp.sum(tokens))


def sft_sequence(logps: jax.Array, tokens: jax.Array) -> Term:
    """Negative log-likelihood, token-mean within a sequence, then mean over sequences."""
    means = jnp.where(tokens > 0, logps / jnp.maximum(tokens, 1), 0)
    return Term(-jnp.sum(means), jnp.sum(tokens > 0).astype(jnp.float32))


def loss_terms(
    objective: Objective,
    sequences: Sequences,
    kl: jax.Array | float = 0.0,
    beta: Beta | None = None,
) -> tuple[Term, ...]:
    """The parts of the loss of a micro-batch whose arrays are [..., k], k completions an example.

    `kl` is the batch's KL estimate, for `kto` alone. `beta` stands in for the objective's own.
    Empty slots have `tokens` 0 everywhere and count for nothing.
    """
    beta = objective.beta if beta is None else beta
    if objective.loss == "sft":
        return (sft(sequences.logps, sequences.tokens),)
    if objective.loss == "sft_sequence":
        return (sft_sequence(sequences.logps, sequences.tokens),)
    chosen, rejected = sequences.take(0), sequences.take(1)
    filled = chosen.tokens > 0
    sides = _or_uniform(chosen, objective), _or_uniform(rejected, objective)
    count = jnp.sum(filled).astype(jnp.float32)
    terms: tuple[Term, ...] = ()
    for name, weight in objective.weights.items():
        if name == "kto":
            term = kto_term(*sides, beta, objective, jnp.asarray(kl))
        else:
            losses = LOSSES[name].formula(*sides, beta, objective)
            term = Term(jnp.sum(jnp.where(filled, losses, 0)), count)
        terms += (dataclasses.replace(term, weight=weight),)
    if objective.nll_weight:
        nll = sft(chosen.logps, chosen.tokens)
        terms += (dataclasses.replace(nll, weight=objective.nll_weight),)
    return terms


def metric_sums(
    objective: Objective, sequences: Sequences, beta: Beta | None = None
) -> dict[str, jax.Array]:
    """Sums of what is worth watching, scalars; `metric_means` divides them.

    Rewards are beta times the summed log-ratio to the reference, also for losses that take its
    token mean, so that they compare across losses; `accuracy` counts pairs with a positive margin;
    `kl` is the mean of log_ratio^2 / 2 (Schulman's k2), unbiased to second order where the
    completions come from the policy or its reference.
    """
    beta = objective.beta if beta is None else beta
    there = sequences.tokens > 0
    sums = {
        "examples": _count(jnp.any(there, axis=-1)),
        "loss_tokens": jnp.sum(sequences.tokens),
    }
    if not objective.pairs:
        return sums | {"logps": jnp.sum(sequences.logps)}
    ratios = []
    for index, name in enumerate(("chosen", "rejected")):
        side = _or_uniform(sequences.take(index), objective)
        ratio = jnp.where(side.tokens > 0, side.log_ratio, 0)
        sums[name] = _count(side.tokens > 0)
        sums[f"logps_{name}"] = jnp.sum(jnp.where(side.tokens > 0, side.logps, 0))
        sums[f"tokens_{name}"] = jnp.sum(side.tokens)
        sums[f"reward_{name}"] = beta * jnp.sum(ratio)
        ratios.append(ratio)
    pairs = jnp.all(there, axis=-1)
    margin = jnp.where(pairs, ratios[0] - ratios[1], 0)
    return sums | {
        "pairs": _count(pairs),
        "kl": (jnp.sum(ratios[0] ** 2) + jnp.sum(ratios[1] ** 2)) / 2,
        "margin": beta * jnp.sum(margin),
        "accuracy": _count(margin > 0),
    }


def metric_means(sums: Mapping[str, float]) -> dict[str, Any]:
    """The `metric_sums` of a whole batch as means: over the chosen sequences, the rejected ones,
    both (`kl`), the pairs (`margin`, `accuracy`), or the examples. `loss` is final, `examples` and
    `loss_tokens` stay counts, and a mean over nothing is left out."""
    sums = dict(sums)
    examples, loss_tokens = sums.pop("examples"), sums.pop("loss_tokens")
    chosen, rejected, pairs = (sums.pop(name, 0.0) for name in ("chosen", "rejected", "pairs"))
    over = {"loss": 1.0, "kl": chosen + rejected, "margin": pairs, "accuracy": pairs}
    for name in ("logps", "tokens", "reward"):
        over |= {f"{name}_chosen": chosen, f"{name}_rejected": rejected}
    counts = {name: over.get(name, examples) for name in sums}
    means = {name: value / counts[name] for name, value in sums.items() if counts[name]}
    return means | {"examples": int(examples), "loss_tokens": int(loss_tokens)}


def _count(true: jax.Array) -> jax.Array:
    return jnp.sum(true).astype(jnp.float32)


def _or_uniform(side: Sequences, o: Objective) -> Sequences:
    """Without a reference its log-probs are taken as zero."""
    if o.needs_reference:
        return side
    return dataclasses.replace(side, reference=jnp.zeros_like(side.logps))
