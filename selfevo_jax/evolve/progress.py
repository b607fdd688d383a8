"""What a run says while it works: bars on a terminal, plain lines elsewhere, and `log.jsonl`.

A run that is silent looks stuck, so everything slow (loading, compiling, saving, training) is named
with its elapsed seconds, and a line comes at least every ten seconds.
"""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from selfevo_jax.text.terminal import escape_controls

LINE_SECONDS = 5.0
BUSY_SECONDS = 10.0


class Progress:
    """Reports to a console and, once `log_to` was called, to a JSONL file of events."""

    def __init__(
        self,
        console: Console | None = None,
        every: float = LINE_SECONDS,
        *,
        quiet: bool = False,
    ) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True, quiet=quiet)
        self.every = every
        self._log: Path | None = None
        self._start = time.monotonic()

    def log_to(self, path: Path) -> None:
        """Events go to `path` too from here on."""
        self._log = path

    def event(self, kind: str, **fields: Any) -> None:
        """One line of `log.jsonl`: time, kind and fields."""
        if self._log is not None:
            line = json.dumps({"time": round(time.time(), 3), "event": kind} | fields)
            with open(self._log, "a") as stream:
                stream.write(line + "\n")

    def say(self, message: str, **fields: Any) -> None:
        """One line for the reader, with the run's age, and an event."""
        shown = escape_controls(message)  # it may quote a server, a file, a model
        self.console.print(f"[{self._age()}] {shown}", markup=False)
        self.event("note", message=message, **fields)

    def _age(self) -> str:
        seconds = int(time.monotonic() - self._start)
        return f"{seconds // 60:3d}:{seconds % 60:02d}"

    @contextlib.contextmanager
    def busy(self, doing: str) -> Iterator[None]:
        """Says that something slow starts, again every ten seconds, and how long it was."""
        start = time.monotonic()
        self.say(f"{doing} ...")
        with _every(BUSY_SECONDS, lambda: self.say(f"still {doing}, {_since(start)}")):
            yield
        self.say(f"{doing}: {time.monotonic() - start:.1f} s")

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None, unit: str) -> Iterator["StageProgress"]:
        """A bar (terminal) or lines (elsewhere) for one stage."""
        start = time.monotonic()
        self.event("begin", stage=name, total=total)
        with contextlib.ExitStack() as stack:
            bars = stack.enter_context(_bars(self.console)) if self.console.is_terminal else None
            progress = StageProgress(self, name, total, unit, bars)
            stack.enter_context(_every(BUSY_SECONDS, progress.remind))
            yield progress
        seconds = time.monotonic() - start
        self.say(f"{name}: {progress.text()} in {seconds:.1f} s")
        self.event("end", stage=name, done=progress.done, seconds=round(seconds, 3))


class StageProgress:
    """How far one stage is."""

    def __init__(
        self, owner: Progress, name: str, total: int | None, unit: str, bars: Bars | None
    ) -> None:
        self.owner, self.name, self.total, self.unit, self.bars = owner, name, total, unit, bars
        self.done = 0
        self.detail = ""
        self._last = self._advanced = time.monotonic()
        self._task = None if bars is None else bars.add_task(name, total=total, detail="")

    def advance(self, count: int = 1, detail: str | None = None) -> None:
        """`count` more are done; `detail` replaces the text after the figures."""
        self.done += count
        self._advanced = time.monotonic()
        self.detail = self.detail if detail is None else detail
        if self.bars is not None:
            self.bars.update(self._task, advance=count, detail=self.detail)
        elif time.monotonic() - self._last > self.owner.every:
            self._last = time.monotonic()
            self.owner.say(f"{self.name}: {self.text()}")

    def remind(self) -> None:
        """Says that the stage is alive when nothing finished for a while."""
        if time.monotonic() - self._advanced > BUSY_SECONDS:
            why = "" if self.done else " (the first result waits for compilation)"
            self.owner.say(f"{self.name}: nothing new for {_since(self._advanced)}{why}")

    def text(self) -> str:
        """'120/400 prompts', and the detail."""
        figure = f"{self.done}" if self.total is None else f"{self.done}/{self.total}"
        return " ".join(part for part in (figure, self.unit, self.detail) if part)


def _since(start: float) -> str:
    return f"{time.monotonic() - start:.0f} s"


@contextlib.contextmanager
def _every(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` every so many seconds, from another thread, until the block ends."""
    finished = threading.Event()

    def repeat() -> None:
        while not finished.wait(seconds):
            act()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()


def _bars(console: Console) -> Bars:
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
        console=console,
    )
