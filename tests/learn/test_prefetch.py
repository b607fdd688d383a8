"""Batches that are made ahead of their reader."""

import threading

import jax
import numpy as np
import pytest

from selfevo_jax.learn.batches import Batches
from selfevo_jax.learn.joined import Joined
from selfevo_jax.learn.prefetch import prefetched

STEPS = 9
SOON_S = 60


def test_they_are_those_of_their_steps(pairs):
    """Over the ends of epochs, and wherever a fit goes on."""
    plan = Batches(pairs, batch_size=5, steps=STEPS, seed=3, rows=2)
    assert STEPS > 2 * plan.per_epoch
    joined = Joined(pairs, plan)
    for start in (0, 1, STEPS - 1):
        with prefetched(joined.micro_batches, start, STEPS) as batches:
            ahead = list(batches)
        now = [joined.micro_batches(step) for step in range(start, STEPS)]
        assert len(ahead) == len(now)
        jax.tree.map(np.testing.assert_array_equal, ahead, now)


def test_the_next_ones_are_made_while_one_is_used():
    """Two steps ahead and no further, so that memory stays bounded."""
    made = [threading.Event() for _ in range(STEPS)]
    with prefetched(lambda step: (made[step].set(), step)[1], 0, STEPS) as batches:
        assert next(batches) == 0
        assert made[1].wait(SOON_S) and made[2].wait(SOON_S)
        assert not made[3].wait(0.2)
        assert next(batches) == 1
        assert made[3].wait(SOON_S)


def test_what_fails_is_raised_where_its_step_is_read():
    def batch(step):
        if step == 2:
            raise ValueError("step 2 is broken")
        return step

    with prefetched(batch, 0, STEPS) as batches:
        assert [next(batches), next(batches)] == [0, 1]
        with pytest.raises(ValueError, match="step 2 is broken"):
            next(batches)


def test_nothing_is_made_after_the_end():
    """A fit that stops early leaves no thread at work."""
    with prefetched(lambda step: step, 0, 10**9) as batches:
        assert next(batches) == 0
        workers = [t for t in threading.enumerate() if t.name.startswith("grain")]
        assert workers
    for worker in workers:
        worker.join(SOON_S)
        assert not worker.is_alive()
