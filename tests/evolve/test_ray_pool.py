"""Record stages on a real Ray cluster of two actors, one of which is killed: the same bytes."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from selfevo_jax.config import load_config
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.policy import Policy
from selfevo_jax.evolve.ray_pool import Pool, RayBackend
from selfevo_jax.evolve.shards import shards_of

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.py"


def test_shards_are_made_as_they_are_asked_for():
    taken = []
    shards = shards_of((taken.append(i) or i for i in range(5)), 2)
    assert next(shards) == [0, 1] and taken == [0, 1]
    assert list(shards) == [[2, 3], [4]]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [(["executor=slurm"], "local or ray"), (["executor=ray", "backend=torch"], "backend=jax")],
)
def test_what_cannot_be_is_refused(mini, overrides, message):
    with pytest.raises(UserError, match=message):
        mini(*overrides)


class Cluster:
    """Stands for the module `ray`: writes down how it is joined and what actors need."""

    def __init__(self) -> None:
        self.asked: dict = {"actors": 0}

    def is_initialized(self) -> bool:
        return False

    def init(self, **how) -> None:
        self.asked |= how

    def remote(self, **needs):
        self.asked |= needs

        def make(*given):
            self.asked["actors"] += 1
            return given

        return lambda kind: SimpleNamespace(remote=make)


FELT = {  # setting -> (another value, what Ray is then asked for that it was not)
    "address": ("auto", {"address": "auto"}),
    "actors": ("3", {"actors": 3}),
    "cpus": ("2.0", {"num_cpus": 2.0}),
    "gpus": ("0.5", {"num_gpus": 0.5}),
    "tpus": ("4.0", {"resources": {"TPU": 4.0}}),
    "shard": ("3", {"shards": [[0, 1, 2], [3, 4, 5], [6]]}),
}


def asked_of_ray(monkeypatch, *overrides: str) -> dict:
    """Everything that Ray is asked for by a pool, and the shards that seven requests come in."""
    config = load_config(f"{QUICKSTART}:tiny", overrides)
    cluster, pool = Cluster(), SimpleNamespace(answers=lambda what, policy, shards: shards)
    monkeypatch.setitem(sys.modules, "ray", cluster)
    Pool(config)
    made = RayBackend.generator(SimpleNamespace(config=config, pool=pool), Policy("base", None))
    return cluster.asked | {"shards": list(made.score(range(7)))}


def test_every_setting_of_the_pool_is_felt(monkeypatch):
    plain = asked_of_ray(monkeypatch)
    assert FELT.keys() == {*load_config(f"{QUICKSTART}:tiny").ray}
    for name, (value, expected) in FELT.items():
        asked = asked_of_ray(monkeypatch, f"ray.{name}={value}")
        assert asked == plain | expected != plain, name


def actors() -> list[int]:
    """The processes of our actors that are answering, by the names that Ray gives them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            mine = b"ray::Worker.answers" in (entry / "cmdline").read_bytes()
        except OSError:  # it has just ended
            continue
        found += [int(entry.name)] if mine and entry.stat().st_uid == os.getuid() else []
    return found


@pytest.fixture
def ray():
    ray = pytest.importorskip("ray", reason="pip install 'selfevo_jax[ray]'")
    yield ray
    ray.shutdown()


@pytest.mark.slow
def test_two_actors_one_killed(ray, mini, content_of):
    """A run on this machine alone, and one on two actors of which one is killed in the middle of
    sampling. Only host 0's clock and the text of its log may differ."""
    mini("rounds=1")
    alone = content_of(mini)
    killed = []

    def kill():
        while not killed:
            if (mini.workdir.parent / "pool/round_01/sample/records.part.jsonl").exists():
                if working := actors():
                    os.kill(working[0], signal.SIGKILL)
                    killed.append(working[0])
            time.sleep(0.01)

    threading.Thread(target=kill, daemon=True).start()
    pool = type(mini)(mini.workdir.parent / "pool")
    pool("rounds=1", "executor=ray", "ray.shard=16")
    assert killed and not Path(f"/proc/{killed[0]}").exists()
    found = content_of(pool)
    assert found.keys() == alone.keys()
    stages = [name for name in alone if name.startswith("round_")]
    assert len(stages) > 10
    assert [name for name in stages if found[name] != alone[name]] == []
