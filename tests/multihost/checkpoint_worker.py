"""One of two hosts that share no folder: goes on with the newest checkpoint below FOLDER, of which
only host 0 has the files, and saves the next.

python checkpoint_worker.py FOLDER HOST:PORT HOST
"""

import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from selfevo_jax.learn.checkpoints import GatheredCheckpoints
from selfevo_jax.parallel.cluster import Cluster
from selfevo_jax.parallel.distributed import joined, spread
from selfevo_jax.parallel.mesh import make_mesh


def main(folder: Path, where: str, host: str) -> None:
    with joined(Cluster(where, 2, int(host))):
        split = NamedSharding(make_mesh(), PartitionSpec("fsdp"))
        whole = NamedSharding(make_mesh(), PartitionSpec())
        place = {"weights": split, "half": split, "count": whole}
        empty = {
            "weights": np.zeros((8, 3), np.float32),
            "half": np.zeros(8, jax.numpy.bfloat16),
            "count": np.zeros((), np.int32),
        }
        state = jax.tree.map(jax.device_put, empty, place)
        checkpoints = GatheredCheckpoints(folder / host, {"lr": 1.0})
        done = checkpoints.latest()
        state = checkpoints.restore(done, state)
        assert spread(state) and state["weights"].sharding == split
        checkpoints.save(done + 1, {**state, "count": state["count"] + 1})
        checkpoints.close()
        assert checkpoints.latest() == done + 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
