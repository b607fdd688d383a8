"""The stage engine on its own: order, torn and damaged files, keys, constant memory."""

import errno
import json
import os
import random
import resource
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evolve import work
from selfevo_jax.evolve.journal import Entry, Journal
from selfevo_jax.evolve.stages import (
    JOURNAL,
    RECORDS,
    Item,
    Stage,
    StageFolder,
    read_records,
    run_stage,
)
from selfevo_jax.records import Prompt, Sample, Verdict
from selfevo_jax.sample.protocol import Completion, SamplingParams


def stage(**settings) -> Stage:
    return Stage("round_01/check", "1", settings, {"sample": "abc"})


def verdict(name: str) -> Verdict:
    return Verdict.make(sample_id=name, score=0.5, correct=False, parsed=None)


def in_order(items: Iterator[Item]):
    for item in items:
        yield item, [verdict(item.id)]


def shuffled(window: int, seed: int):
    """Work that finishes its items out of order within a window, as a batching engine does."""

    def work(items):
        rng, held = random.Random(seed), []
        for item in items:
            held.append(item)
            if len(held) == window:
                yield finish(held.pop(rng.randrange(window)))
        while held:
            yield finish(held.pop())

    def finish(item):
        return item, [verdict(item.id)]

    return work


def items(count: int):
    return ((f"s{number}", number) for number in range(count))


class Killed(BaseException):
    """Stands for a kill: nothing after it runs but what Python itself unwinds."""


def killed_after(work, count: int):
    def wrapped(pending):
        for done, result in enumerate(work(pending)):
            if done == count:
                raise Killed
            yield result

    return wrapped


def finished(folder: StageFolder, work=in_order, count=50) -> bytes:
    run_stage(folder, stage(), items(count), work, lambda n: None)
    return (folder.path / RECORDS).read_bytes()


def test_output_is_in_input_order_whatever_the_order_of_finishing(tmp_path):
    straight = finished(StageFolder(tmp_path / "a"))
    mixed = finished(StageFolder(tmp_path / "b"), shuffled(7, 1))
    backwards = finished(StageFolder(tmp_path / "c"), shuffled(1000, 2))
    ids = [json.loads(line)["sample_id"] for line in straight.splitlines()]
    assert ids == [f"s{number}" for number in range(50)]
    assert straight == mixed == backwards
    assert sorted(os.listdir(tmp_path / "a")) == [RECORDS, "stage.json", "timings.jsonl"]


def test_a_killed_stage_does_only_what_is_owed_and_gives_the_same_bytes(tmp_path):
    whole = finished(StageFolder(tmp_path / "whole"))
    folder = StageFolder(tmp_path / "killed")
    with pytest.raises(Killed):
        finished(folder, killed_after(shuffled(5, 3), 20))
    assert folder.status(stage())[0] == "part"
    seen = []

    def watching(pending):
        return in_order(item for item in pending if not seen.append(item.id))

    assert finished(folder, watching) == whole
    assert len(seen) == 30
    for name in (RECORDS, "stage.json"):
        assert (folder.path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("cut", [1, 2, 20, 60])
def test_a_torn_last_line_is_dropped_and_its_input_done_again(tmp_path, cut):
    whole = finished(StageFolder(tmp_path / "whole"))
    folder = StageFolder(tmp_path / "torn")
    with pytest.raises(Killed):
        finished(folder, killed_after(in_order, 20))
    journal = folder.path / JOURNAL
    content = journal.read_bytes()
    journal.write_bytes(content[:-cut])
    assert len(Journal(journal, stage().key).done) == 19
    assert finished(folder) == whole


def test_a_tail_of_zeros_after_a_power_cut_is_dropped(tmp_path):
    folder = StageFolder(tmp_path)
    with pytest.raises(Killed):
        finished(folder, killed_after(in_order, 20))
    with open(folder.path / JOURNAL, "ab") as stream:
        stream.write(b"\0" * 500)
    assert len(finished(folder).splitlines()) == 50


def test_damage_before_the_end_of_the_journal_is_refused_with_file_and_line(tmp_path):
    folder = StageFolder(tmp_path)
    with pytest.raises(Killed):
        finished(folder, killed_after(in_order, 20))
    journal = folder.path / JOURNAL
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[4] = lines[4].replace(b'"score":0.5', b'"score":0.6')
    journal.write_bytes(b"".join(lines))
    with pytest.raises(UserError, match=r"records\.part\.jsonl:5 is damaged"):
        finished(folder)


def test_a_corrupt_finished_file_is_named_and_refused(tmp_path):
    folder = StageFolder(tmp_path)
    content = finished(folder)
    (tmp_path / RECORDS).write_bytes(content.replace(b"0.5", b"0.6", 1))
    with pytest.raises(UserError, match=r"records\.jsonl is corrupt"):
        next(read_records(StageFolder(tmp_path), Verdict))


def test_a_missing_finished_file_is_named(tmp_path):
    folder = StageFolder(tmp_path)
    finished(folder)
    (tmp_path / RECORDS).unlink()
    with pytest.raises(UserError, match=r"records\.jsonl is missing"):
        folder.verify()


def test_the_key_follows_settings_version_and_inputs():
    base = stage(a=1)
    others = [
        stage(a=2),
        Stage(base.name, "2", base.settings, base.inputs),
        Stage(base.name, "1", base.settings, {"sample": "other"}),
        Stage("round_02/check", "1", base.settings, base.inputs),
    ]
    assert len({base.key, *[other.key for other in others]}) == 5
    assert stage(a=1, b=2).key == stage(b=2, a=1).key


def test_a_changed_setting_is_said_and_the_old_output_kept(tmp_path):
    folder = StageFolder(tmp_path / "round_01" / "check")
    old = finished(folder)
    status, why = folder.status(stage(temperature=0.5))
    assert (status, why) == ("changed", "temperature absent -> 0.5")
    kept = folder.set_aside(tmp_path)
    assert (kept / RECORDS).read_bytes() == old
    assert folder.status(stage(temperature=0.5)) == ("new", "")


def test_an_unfinished_stage_with_other_settings_counts_as_changed(tmp_path):
    folder = StageFolder(tmp_path)
    with pytest.raises(Killed):
        finished(folder, killed_after(in_order, 20))
    assert folder.status(stage(x=1))[0] == "changed"


def test_too_few_records_end_the_run_with_the_reason(tmp_path):
    folder = StageFolder(tmp_path)
    needy = Stage("round_01/pair", "1", {}, {}, least=1, why_least="every sample was wrong")
    with pytest.raises(UserError, match="0 records and needs 1: every sample was wrong"):
        run_stage(folder, needy, items(5), lambda its: ((i, []) for i in its), lambda n: None)
    assert folder.sealed() is None


def test_a_full_disk_says_what_is_safe(tmp_path, monkeypatch):
    """The real ENOSPC path is in test_run_bad_days.py; here the message and the torn line."""
    folder = StageFolder(tmp_path)
    real, room = os.write, [3000]

    def write(descriptor, data):
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(descriptor, data[: room[0]])
        room[0] -= written
        return written

    with monkeypatch.context() as patch:
        patch.setattr("selfevo_jax.evolve.journal.os.write", write)
        with pytest.raises(UserError, match=r"no space .* \d+ inputs finished so far are safe"):
            finished(folder)
    kept = len(Journal(folder.path / JOURNAL, stage().key).done)
    assert 0 < kept < 50
    assert len(finished(folder).splitlines()) == 50


class FakeGenerator:
    """Answers at once, out of order within 64 requests, as a batching engine does."""

    def generate(self, requests):
        rng, held = random.Random(7), []
        for request in requests:
            held.append(request)
            if len(held) == 64:
                yield self.answer(held.pop(rng.randrange(64)))
        yield from map(self.answer, held)

    def answer(self, request) -> Completion:
        tokens = (request.seed % 100, 7, 9)
        return Completion(request.id, str(tokens[0]), tokens, (-0.5, -0.25, -0.125), "stop", 10)


def stream(path: Path, count: int) -> float:
    """`count` samples, four of each prompt, interrupted halfway and gone on with, then read.

    Returns the seconds from the second start until it knows what is done.
    """
    folder, messages = StageFolder(path), ({"role": "user", "content": "How many?"},)

    def draws():
        prompts = (Prompt(f"{n:016x}", "t", messages, "1", {}) for n in range(count // 4))
        return work.draws(((prompt.id, prompt) for prompt in prompts), 4)

    sampling = work.asked(FakeGenerator(), "base", 0, SamplingParams(), lambda row: row.messages)
    with pytest.raises(Killed):
        run_stage(folder, stage(), draws(), killed_after(sampling, count // 2), lambda n: None)
    restarted = time.monotonic()
    firsts = []
    run_stage(folder, stage(), draws(), sampling, lambda n: firsts.append(time.monotonic()))
    ids = (sample.prompt_id for sample in read_records(folder, Sample))
    assert all(prompt_id == f"{n // 4:016x}" for n, prompt_id in enumerate(ids))
    assert folder.count() == count
    return firsts[0] - restarted


def measure(path: Path) -> dict[str, float]:
    """Growth of this process's largest memory, and records per second of its own time."""
    stream(path / "small", 4_000)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    restart = stream(path / "large", 1_000_000)
    seconds = time.process_time() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"mebibytes": grown / 1024, "per_second": 1_000_000 / seconds, "restart": restart}


@pytest.mark.slow
def test_many_samples_stream_fast_and_in_constant_memory(tmp_path):
    """1,000,000 samples in a process of their own, whose memory nothing else has used."""
    code = "import sys, json, pathlib, test_stages as t; "
    code += "print(json.dumps(t.measure(pathlib.Path(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)  # records per second of processor time, seconds of the restart
    assert found["mebibytes"] < 4


def test_the_engine_holds_no_more_than_what_is_ahead(tmp_path):
    """Python's own count of memory, which the system's (above) could round away."""
    tracemalloc.start()
    stream(tmp_path, 8_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20, f"{peak / 2**20:.1f} MiB"


def test_a_key_of_another_stage_never_reaches_a_journal(tmp_path):
    Journal(tmp_path / "j", "one").append(Entry(0, "a", []))
    with pytest.raises(AssertionError):
        Journal(tmp_path / "j", "two")
