"""Batches joined with what the frozen policies say of them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfevo_jax.errors import UserError
from selfevo_jax.learn.batches import Batches, MicroBatch, example_hash
from selfevo_jax.learn.reference import ReferenceSums
from selfevo_jax.learn.step import Frozen, Steps
from selfevo_jax.models.lora import Adapter
from selfevo_jax.text.render import TokenExample, TokenSpan

log = logging.getLogger(__name__)


class Joined:
    """The batches of some examples; `tables` maps a policy's name to its sums, float32 [n, k]."""

    def __init__(self, examples: Sequence[TokenExample], batches: Batches):
        self.batches, self._examples = batches, examples
        self.hashes = [example_hash(example) for example in examples]
        self.tables: dict[str, np.ndarray] = {}

    def micro_batches(self, step: int) -> list[tuple[MicroBatch, Frozen]]:
        """A batch's micro-batches, each with the frozen policies' sums of its examples."""
        return [
            (micro, Frozen(self._sums("reference", micro), self._sums("anchor", micro)))
            for micro in self.batches.micro_batches(step)
        ]

    def described(self, step: int) -> list[dict[str, Any]]:
        """A batch's examples as plain values: ids, tokens, what the frozen policies say of them."""
        return [
            {
                "id": self._examples[index].id,
                "prompt": self._examples[index].prompt.tokens.tolist(),
                "completions": [c.tokens.tolist() for c in self._examples[index].completions],
                "frozen": {name: table[index].tolist() for name, table in self.tables.items()},
            }
            for index in self.batches.examples(step)
        ]

    def add_policy(
        self,
        name: str,
        policy: Adapter | None,
        params: dict,
        steps: Steps,
        store: Path,
        key: tuple[str, ...],
    ) -> None:
        """Fills `tables[name]` from the store under `key`; what is missing is computed and added,
        in the rows of the first epoch. Raises UserError for sums that are not finite."""
        # A file holds rows of one width: KTO's mismatched completions have another than its pairs.
        kept = ReferenceSums(store, (*key, f"completions={self.batches.shape.completions}"))
        missing = kept.missing(self.hashes)
        if missing:
            log.info("computing %s log-probs of %d examples", name, len(missing))
        found: dict[str, np.ndarray] = {}
        for step in range(self.batches.per_epoch if missing else 0):
            if missing.isdisjoint(self.hashes[index] for index in self.batches.examples(step)):
                continue
            for micro in self.batches.micro_batches(step):
                found |= self._by_hash(micro, steps.sums(params, policy, micro))
        if broken := [h for h, sums_k in found.items() if not np.isfinite(sums_k).all()]:
            ids = [self._examples[self.hashes.index(one)].id for one in broken[:5]]
            raise UserError(
                f"the {name}'s log-probs of {len(broken)} examples are not finite "
                f"({', '.join(ids)}): are its weights whole?"
            )
        if found:
            kept.add(list(found), np.stack(list(found.values())))
        self.tables[name] = kept.table(self.hashes)

    def _by_hash(self, micro: MicroBatch, sums_bek: np.ndarray) -> dict[str, np.ndarray]:
        filled = np.argwhere(micro.examples_be >= 0)
        return {self.hashes[micro.examples_be[b, e]]: sums_bek[b, e] for b, e in filled}

    def _sums(self, name: str, micro: MicroBatch) -> np.ndarray:
        if name not in self.tables:
            return np.zeros_like(micro.counts_bek)
        rows = self.tables[name][np.maximum(micro.examples_be, 0)]
        return np.where(micro.examples_be[..., None] >= 0, rows, 0).astype(np.float32)


def mismatched(examples: Sequence[TokenExample]) -> list[TokenExample]:
    """Each prompt with a completion of the next example: what KTO estimates its KL from
    (arXiv:2402.01306, section 4.1). A single example is given its own."""
    following = [*examples[1:], examples[0]]
    return [
        TokenExample(one.id, one.prompt, (_other_side(other, index),))
        for index, (one, other) in enumerate(zip(examples, following, strict=True))
    ]


def _other_side(example: TokenExample, index: int) -> TokenSpan:
    """Chosen and rejected completions in turn, so that both kinds enter the estimate."""
    there = [span for span in example.completions if len(span.tokens)]
    return there[index % len(there)]
