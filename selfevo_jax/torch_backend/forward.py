"""From a micro-batch to the log-prob sums of its sequences.

Axes: b row, t place, m target, d model, v vocab, e example, k completion.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from selfevo_jax.learn.batches import MicroBatch
from selfevo_jax.learn.logps import DEFAULT_CHUNK
from selfevo_jax.torch_backend.model import Decoder, Layout


def sequence_sums(decoder: Decoder, micro: MicroBatch) -> Tensor:
    """Weighted log-prob sums of every sequence of a micro-batch, float32 [b, e, k]."""

    def put(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(decoder.device)

    layout = Layout(put(micro.positions_bt), put(micro.segments_bt), put(micro.branches_bt))
    hidden_btd = decoder.hidden(put(micro.tokens_bt).long(), layout, layout)
    places_bm1 = put(micro.predict_from_bm).long()[:, :, None]
    hidden_bmd = hidden_btd.gather(1, places_bm1.expand(-1, -1, hidden_btd.shape[-1]))
    logps_bm = _target_logps(decoder, hidden_bmd, put(micro.targets_bm).long())
    rows, examples, completions = micro.counts_bek.shape
    sums_bs = torch.zeros((rows, examples * completions), device=decoder.device)
    sums_bs = sums_bs.scatter_add(
        1, put(micro.sequences_bm).long(), logps_bm * put(micro.weights_bm)
    )
    return sums_bs.reshape(rows, examples, completions)


def _target_logps(decoder: Decoder, hidden_bmd: Tensor, targets_bm: Tensor) -> Tensor:
    """log softmax(head(hidden))[target] [b, m], `DEFAULT_CHUNK` targets' logits at a time."""

    def chunk(hidden_bcd: Tensor, targets_bc: Tensor) -> Tensor:
        logps_bcv = decoder.logits(hidden_bcd).log_softmax(-1)
        return logps_bcv.gather(2, targets_bc[:, :, None])[:, :, 0]

    parts = zip(hidden_bmd.split(DEFAULT_CHUNK, 1), targets_bm.split(DEFAULT_CHUNK, 1), strict=True)
    return torch.cat([checkpoint(chunk, *part, use_reentrant=False) for part in parts], 1)
