"""What each of 1, 2 and 4 hosts would read of every batch; run with four devices.

    python hosts_worker.py

A host owns neighbouring devices, makes its own plan of the batches, and reads the rows that the
mesh gives to its devices. Prints, as JSON, for each number of hosts the example indices by step
and host, row by row.
"""

import json

import jax
import numpy as np

from selfevo_jax.learn.batches import Batches
from selfevo_jax.parallel.mesh import batch_sharding, make_mesh
from selfevo_jax.text.render import TokenExample, TokenSpan


def examples() -> list[TokenExample]:
    rng = np.random.default_rng(7)

    def span(loss: bool) -> TokenSpan:
        size = rng.integers(3, 12)
        return TokenSpan(rng.integers(1, 50, size).astype(np.int32), np.full(size, loss))

    return [TokenExample(f"e{i}", span(False), (span(True), span(True))) for i in range(22)]


def read(hosts: int, step: int) -> list[list[list[int]]]:
    """For each host, the examples of its rows in the batch of a step."""
    sharding = batch_sharding(make_mesh("2,2,1"))
    seen = []
    for host in range(hosts):
        own = {device for device in jax.devices() if device.id * hosts // 4 == host}
        plan = Batches(examples(), batch_size=8, steps=9, seed=5, rows=4, row_length=48)
        rows = []
        for micro in plan.micro_batches(step):
            places = sharding.devices_indices_map(micro.examples_be.shape)
            mine = sorted({places[device][0].start or 0 for device in own})
            size = micro.examples_be.shape[0] // 4
            rows += [micro.examples_be[at : at + size].tolist() for at in mine]
        seen.append([row for shard in rows for row in shard])
    return seen


if __name__ == "__main__":
    print(json.dumps({n: [read(n, step) for step in range(9)] for n in (1, 2, 4)}))
