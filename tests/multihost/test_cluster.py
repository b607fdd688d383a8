"""What --cluster says."""

import subprocess
import sys

import pytest

from selfevo_jax.cli import main
from selfevo_jax.errors import UserError
from selfevo_jax.parallel.cluster import Cluster


def test_explicit_hosts():
    found = Cluster("10.0.0.1:8476", 4, 3).arguments()
    assert found["coordinator_address"] == "10.0.0.1:8476"
    assert (found["num_processes"], found["process_id"]) == (4, 3)


@pytest.mark.parametrize(
    "wrong",
    [("auto", 4, 0), ("somewhere",), ("a:b", 2, 0), ("a:1",), ("a:1", 2), ("a:1", 2, 2)],
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(UserError, match="--cluster"):
        Cluster(*wrong)


def test_where_no_cluster_is_the_hosts_do_not_meet():
    """In a process of its own, for joining changes JAX's settings."""
    code = """
from selfevo_jax.errors import UserError
from selfevo_jax.parallel.cluster import Cluster
from selfevo_jax.parallel.distributed import joined
for where in ("auto", "slurm"):
    try:
        with joined(Cluster(where)):
            print("joined")
    except UserError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    told = done.stdout.splitlines()
    for where, line in zip(("auto", "slurm"), told, strict=True):
        assert line.startswith(f"--cluster={where}: the hosts did not meet"), done


def test_a_task_alone_on_its_node_gets_all_gpus(monkeypatch):
    """JAX gives every Slurm task one GPU, the one of its number on the node."""
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "1")
    assert Cluster("slurm").arguments()["local_device_ids"] == [0, 1, 2, 3]
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
    assert Cluster("slurm").arguments()["local_device_ids"] is None


def test_hosts_without_a_cluster(capsys):
    assert main(["run", "--config=configs/quickstart.py:tiny", "--workdir=x", "--hosts=2"]) == 2
    assert "--cluster" in capsys.readouterr().err
