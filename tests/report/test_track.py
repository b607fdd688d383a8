"""Trackers: their own readers see the run's figures; whatever they do, the run is not touched."""

import json
import logging
import shutil
import time

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.report import track
from selfevo_jax.report.track import Follower, chosen, tracked


class Notes:
    """A tracker that remembers, or fails when told to."""

    made: list = []

    def __init__(self, folder, about):
        self.steps, self.measured, self.closed, self.about = [], {}, False, about
        Notes.made.append(self)

    def scalars(self, step, values):
        self.steps.append((step, values))

    def results(self, number, values):
        self.measured[number] = values

    def close(self):
        self.closed = True


@pytest.fixture
def copy(run_folder, tmp_path):
    return shutil.copytree(run_folder, tmp_path / "run")


def test_every_line_is_sent_once_in_the_order_of_steps(copy):
    """Also of a file that grows, breaks off within a line, and begins again after a kill."""
    path = copy / "round_02/train/metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    notes = Notes(None, {})
    follower = Follower(copy, notes)
    for shown in ("".join(lines[:7]) + lines[7][:20], "".join(lines[:5]), "".join(lines)):
        path.write_text(shown)
        follower.follow()
    follower.finish()
    assert [step for step, _ in notes.steps] == list(range(120))
    assert notes.steps[60][1]["train/loss"] == json.loads(lines[0])["loss"]
    assert notes.closed and set(notes.measured) == {0, 1, 2}
    summary = notes.measured[2]
    assert summary["eval/rg:chain_sum/low"] < summary["eval/rg:chain_sum/score"]


def test_tensorboard_reads_what_was_written(copy):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (the extra `track`)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tracked("tensorboard", copy, {}):
        pass
    events = EventAccumulator(str(copy / "track/tensorboard"), {"tensors": 0})
    events.Reload()
    seen = [(e.step, e.tensor_proto.float_val[0]) for e in events.Tensors("train/loss")]
    rows = [json.loads(line) for line in (copy / "round_01/train/metrics.jsonl").open()]
    assert len(seen) == 120 and seen[3][1] == pytest.approx(rows[3]["loss"])
    assert "eval/rg:chain_sum/score" in events.Tags()["tensors"]


def unblocked(content: bytes) -> bytes:
    """A W&B file without the heads of its blocks, which may stand in the middle of a name."""
    blocks = [content[start : start + 32768] for start in range(0, len(content), 32768)]
    return b"".join(block[7:] for block in blocks)


def test_wandb_offline_keeps_the_figures_and_no_secret(copy, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed (the extra `track`)")
    planted = "w" * 4 + "planted" * 5 + "1"
    monkeypatch.setenv("WANDB_API_KEY", planted)
    monkeypatch.setenv("HF_TOKEN", planted)
    with tracked("wandb", copy, {"method": "verified"}):
        pass
    (kept,) = (copy / "track/wandb").rglob("run-*.wandb")
    content = unblocked(kept.read_bytes())
    assert b"train/loss" in content and b"eval/rg:chain_sum/score" in content
    everything = [p.read_bytes() for p in (copy / "track").rglob("*") if p.is_file()]
    assert not any(planted.encode() in content for content in everything)


def test_a_stage_that_is_set_aside_while_it_is_read_is_looked_at_again(copy, monkeypatch, caplog):
    looked, real = [], Follower.follow

    def racing(self):
        looked.append(self)
        if len(looked) == 1:
            raise FileNotFoundError(2, "No such file or directory", "round_02/train/metrics.jsonl")
        real(self)

    monkeypatch.setattr(Follower, "follow", racing)
    monkeypatch.setattr(track, "SECONDS", 0.01)
    monkeypatch.setitem(track.TRACKERS, "wandb", Notes)
    with tracked("wandb", copy, {}):
        end = time.monotonic() + 20
        while len(looked) < 3 and time.monotonic() < end:
            time.sleep(0.01)
    assert len(Notes.made[-1].steps) == 120 and not caplog.records


@pytest.mark.parametrize("fails", ["open", "scalars", "close", "hang"])
def test_a_tracker_that_fails_stops_nothing(copy, fails, monkeypatch, caplog):
    class Failing(Notes):
        def __init__(self, folder, about):
            if fails == "open":
                raise ImportError("no module")
            super().__init__(folder, about)

        def scalars(self, step, values):
            if fails == "scalars":
                raise OSError(28, "No space left on device")

        def close(self):
            if fails == "close":
                raise RuntimeError("the service\nis gone")
            if fails == "hang":
                time.sleep(5)

    monkeypatch.setitem(track.TRACKERS, "wandb", Failing)
    monkeypatch.setattr(track._Thread, "PATIENCE", 1.0)
    begun = time.monotonic()
    with caplog.at_level(logging.WARNING, "selfevo_jax"), tracked("wandb", copy, {}):
        pass
    assert time.monotonic() - begun < 4
    said = [record.getMessage() for record in caplog.records]
    assert (fails == "hang" and not said) or "the run goes on without it" in said[0]


def test_the_run_s_own_error_comes_through(copy, monkeypatch):
    monkeypatch.setitem(track.TRACKERS, "wandb", Notes)
    with pytest.raises(UserError, match="of the run"), tracked("wandb", copy, {"a": 1}):
        raise UserError("of the run")
    assert Notes.made[-1].closed and Notes.made[-1].about == {"a": 1}


def test_a_run_that_never_began_is_no_failure(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(track.TRACKERS, "wandb", Notes)
    with caplog.at_level(logging.WARNING, "selfevo_jax"), tracked("wandb", tmp_path / "run", {}):
        pass
    assert Notes.made[-1].closed and not caplog.records


def test_names():
    assert chosen("") == [] and chosen("wandb,tensorboard") == ["wandb", "tensorboard"]
    with pytest.raises(UserError, match="no tracker 'wandbb'; use tensorboard, wandb"):
        chosen("wandbb")
