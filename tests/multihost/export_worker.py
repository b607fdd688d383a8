"""Saves a model that is spread over the devices of all hosts.

python export_worker.py FOLDER [HOST:PORT HOSTS HOST]
"""

import sys
from pathlib import Path

import jax

from selfevo_jax.models.llama import init_params
from selfevo_jax.models.presets import preset
from selfevo_jax.parallel.cluster import Cluster
from selfevo_jax.parallel.distributed import joined, spread
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.parallel.rules import shardings
from selfevo_jax.weights.model_files import save_model


def main(folder: Path, *where: str) -> None:
    cluster = Cluster(where[0], int(where[1]), int(where[2])) if where else None
    with joined(cluster):
        config = preset("tiny")
        params = init_params(config, jax.random.key(3))
        params = jax.device_put(params, shardings(params, make_mesh()))
        kernel = params["layers"]["mlp"]["up_proj"]["kernel"]
        assert spread(params) == bool(where)
        assert kernel.addressable_shards[0].data.size * jax.device_count() == kernel.size
        save_model(folder, config, params, shard_bytes=200_000)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
