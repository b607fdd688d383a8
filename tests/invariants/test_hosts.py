"""The order of the data at any number of hosts: nothing is lost, read twice or moved."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("hosts_worker.py")
STEPS_OF_AN_EPOCH, EXAMPLES = 3, 22


@pytest.fixture(scope="module")
def read():
    """Number of hosts -> step -> host -> rows -> example indices."""
    env = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"
    }
    found = subprocess.run(
        [sys.executable, WORKER], env=env, capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stderr[-2000:]
    return {int(hosts): steps for hosts, steps in json.loads(found.stdout).items()}


def examples_of(hosts):
    """The examples that some hosts read, sorted."""
    return sorted(i for rows in hosts for row in rows for i in row if i >= 0)


def test_hosts_share_every_batch_without_overlap(read):
    """All rows of a batch, the empty ones too, are the same however many hosts divide them."""
    for steps in zip(*read.values(), strict=True):
        alone, *split = [sorted(row for rows in hosts for row in rows) for hosts in steps]
        assert split == [alone, alone]


def test_a_fit_that_goes_on_with_other_hosts_reads_on(read):
    """Two epochs and a half, the number of hosts changed in the middle of each: every epoch holds
    each example once, in an order of its own."""
    hosts = [1, 2, 4, 4, 1, 2, 2, 4, 1]
    epochs = [
        [i for step in range(first, first + 3) for i in examples_of(read[hosts[step]][step])]
        for first in (0, STEPS_OF_AN_EPOCH, 2 * STEPS_OF_AN_EPOCH)
    ]
    assert [sorted(epoch) for epoch in epochs] == [list(range(EXAMPLES))] * 3
    assert epochs[0] != epochs[1] != epochs[2]
