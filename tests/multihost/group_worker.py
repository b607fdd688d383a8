"""What a group of hosts does together, once for all tests of it: a model that is spread over the
devices of all hosts is saved, and the miniature quickstart is run.

python group_worker.py FOLDER [HOST:PORT HOSTS HOST]
"""

import sys
from pathlib import Path

import jax

from selfevo_jax.cli.report import write
from selfevo_jax.config import load_config
from selfevo_jax.evolve.launch import launch
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.models.llama import init_params
from selfevo_jax.models.presets import preset
from selfevo_jax.parallel.cluster import Cluster
from selfevo_jax.parallel.distributed import agreed, first, joined, spread
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.parallel.rules import shardings
from selfevo_jax.weights.model_files import save_model

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"
SMALL = ("rounds=1", "prompts.n=16", "sample.n=16", "evaluate.n=8", "learn.lr=3e-3")


def export(folder: Path, alone: bool) -> None:
    config = preset("tiny")
    params = init_params(config, jax.random.key(3))
    params = jax.device_put(params, shardings(params, make_mesh()))
    kernel = params["layers"]["mlp"]["up_proj"]["kernel"]
    assert spread(params) != alone
    assert kernel.addressable_shards[0].data.size * jax.device_count() == kernel.size
    save_model(folder, config, params, shard_bytes=200_000)


def main(folder: Path, *where: str) -> None:
    cluster = Cluster(where[0], int(where[1]), int(where[2])) if where else None
    with joined(cluster):
        export(folder / "model", alone=cluster is None)
        progress = Progress(quiet=not first())
        config = load_config(f"{QUICKSTART}:tiny", SMALL)
        launch(config, folder / "run", progress, command="a test")
        agreed(lambda: [str(path) for path in write(folder / "run")])


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
