"""Training curves and results for TensorBoard and Weights & Biases, read from the run's own files.

A tracker follows what the run writes (`metrics.jsonl`, at the end the summary) from a thread of its
own, so no training code knows of it, and whatever goes wrong in it is one warning: it never stops,
slows or changes a run. Nothing is tracked unless `config.track` names a tracker, and W&B is offline
unless $WANDB_MODE says otherwise.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from selfevo_jax.errors import UserError
from selfevo_jax.report.folder import Place, RunFolder
from selfevo_jax.report.summary import finite, summarise

SECONDS = 5.0  # between two looks at the files
FOLDER = "track"  # below the workdir
PROJECT = "selfevo_jax"
log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Where figures go. `step` counts optimiser steps through all trainings, of every branch."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """The figures of one step."""

    def results(self, number: int, values: Mapping[str, float]) -> None:
        """What was measured after round `number`."""

    def close(self) -> None:
        """Everything is on disk afterwards."""


class TensorBoard:
    """Event files in `folder`."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        from tensorboard.summary import Writer

        self._writer = Writer(str(folder))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    results = scalars

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, offline below `folder` unless $WANDB_MODE says otherwise."""

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        import wandb

        # Nothing of the machine but what we name: no console, code, git remote, command, usage.
        quiet = wandb.Settings(
            console="off", disable_git=True, disable_code=True, save_code=False, silent=True,
            x_disable_stats=True, x_disable_meta=True, x_disable_machine_info=True,
        )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=PROJECT,
            dir=folder,
            config=dict(about),
            mode=None if "WANDB_MODE" in os.environ else "offline",
            settings=quiet,
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(dict(values), step=step)

    def results(self, number: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.summary.update({f"round_{number:02d}/{key}": v for key, v in values.items()})

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
}


class Follower:
    """Gives a tracker every line that a run's metrics have, once, as they appear."""

    def __init__(self, workdir: Path, tracker: Tracker) -> None:
        self.workdir, self.tracker = workdir, tracker
        self._sent: dict[Place, int] = {}

    def follow(self) -> None:
        """Sends what is new."""
        if not self._begun():
            return
        folder, start = RunFolder(self.workdir), 0
        for place in folder.places():
            rows = list(folder.rows(*place, "metrics"))
            series = _series("train", place[1], "train")
            for step in range(self._sent.get(place, 0), len(rows)):
                self.tracker.scalars(start + step, _figures(series, rows[step]))
            self._sent[place] = max(len(rows), self._sent.get(place, 0))
            start += len(rows)

    def finish(self) -> None:
        """Sends what is new and what was measured, and closes the tracker."""
        self.follow()
        measured: dict[int, dict[str, float]] = {}
        for row in summarise(self.workdir)["tested"] if self._begun() else []:
            series = _series("eval", row["stage"], "evaluate")
            values = measured.setdefault(row["round"], {})
            for task, found in row["tasks"].items():
                values |= {f"{series}/{task}/{key}": found[key] for key in SHOWN}
        for number, values in sorted(measured.items()):
            self.tracker.results(number, values)
        self.tracker.close()

    def _begun(self) -> bool:
        return any(self.workdir.glob("round_[0-9]*"))


SHOWN = ("score", "low", "high", "tokens")


def _series(kind: str, stage: str, usual: str) -> str:
    """What the figures of a stage are filed under: "train", of a branch "train/refeval.beta_0.2".

    The last part of a stage's name is left out where it is the `usual` one.
    """
    parts = stage.split(".")
    name = ".".join(parts[:-1] if parts[-1] == usual else parts)
    return f"{kind}/{name}" if name else kind


def _figures(series: str, row: Mapping[str, Any]) -> dict[str, float]:
    found = {f"{series}/{name}": finite(value) for name, value in row.items() if name != "step"}
    return {name: value for name, value in found.items() if value is not None}


def chosen(setting: str) -> list[str]:
    """The names in `config.track`. Raises UserError for one that no tracker has."""
    names = [name for name in setting.split(",") if name]
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"--config.track: no tracker {name!r}; use {', '.join(TRACKERS)}")
    return names


@contextlib.contextmanager
def tracked(setting: str, workdir: Path, about: Mapping[str, Any]) -> Iterator[None]:
    """Follows the run in `workdir` while the block runs. `about`: the run's settings.

    Raises UserError for an unknown name in `setting`, and nothing else of its own.
    """
    threads = [_Thread(name, workdir, about) for name in chosen(setting)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.stop()


class _Thread(threading.Thread):
    """One tracker at work. It outlives no run: a run waits `PATIENCE` seconds for it at its end."""

    PATIENCE = 30.0

    def __init__(self, name: str, workdir: Path, about: Mapping[str, Any]) -> None:
        super().__init__(name=f"tracker {name}", daemon=True)
        self.kind, self.workdir, self.about = name, workdir, about
        self._over = threading.Event()

    def run(self) -> None:
        """Opens the tracker and follows the files until the run is over."""
        try:
            tracker = TRACKERS[self.kind](self.workdir / FOLDER / self.kind, self.about)
            follower = Follower(self.workdir, tracker)
            while not self._over.wait(SECONDS):
                with contextlib.suppress(FileNotFoundError):  # a stage was set aside: look again
                    follower.follow()
            follower.finish()
        except Exception as error:  # another's library: whatever it raises must not reach the run
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            log.warning("%s stopped: %s; the run goes on without it", self.name, reason)

    def stop(self) -> None:
        """Tells the tracker that the run is over, and waits for it a while."""
        self._over.set()
        self.join(self.PATIENCE)
