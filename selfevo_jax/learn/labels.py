"""Completions with a label in place of a partner: what KTO learns from (arXiv:2402.01306)."""

from __future__ import annotations

import dataclasses

import numpy as np

from selfevo_jax.errors import UserError
from selfevo_jax.text.render import TokenExample, TokenSpan


def labelled(example: TokenExample, desirable: bool) -> TokenExample:
    """An example of one completion as one side of a pair: the chosen one where it is desirable,
    else the rejected one. The other side is empty and counts for nothing.

    Raises UserError for an example of more or fewer completions.
    """
    if len(example.completions) != 1:
        raise UserError(
            f"record {example.id}: a label goes with one completion, "
            f"this record has {len(example.completions)}"
        )
    nothing = TokenSpan(np.zeros(0, np.int32), np.zeros(0, np.bool_))
    (one,) = example.completions
    sides = (one, nothing) if desirable else (nothing, one)
    return dataclasses.replace(example, completions=sides)
