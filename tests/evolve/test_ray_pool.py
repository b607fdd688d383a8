"""Record stages on a real Ray cluster of two actors, one of which is killed: the same bytes."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.shards import shards_of


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
