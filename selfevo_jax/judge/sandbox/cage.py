"""Starting a caged process, hearing how it ends, and making sure that it does."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
START = (
    f"import sys; sys.path.insert(0, {str(HERE)!r}); from inside.launch import main; "
    "del sys.path[0]; main()"  # what is on the path is shown inside
)
REPORT_BYTES = 64 << 10  # a report is two short lines; more is cut
GRACE_SECONDS = 5.0


@dataclass
class Cage:
    """One caged process, started with `start_cage`; `lines` is what its report said so far."""

    process: subprocess.Popen
    report: int
    data: bytes = b""
    open: bool = True

    @property
    def lines(self) -> dict:
        """The report's lines as one mapping."""
        merged: dict = {}
        for line in self.data.splitlines():
            with contextlib.suppress(ValueError):  # the last line, cut short by a kill
                merged |= json.loads(line)
        return merged

    def read(self) -> None:
        """Takes in what the report has to say now."""
        part = os.read(self.report, REPORT_BYTES)
        self.data = (self.data + part)[:REPORT_BYTES]
        self.open = bool(part)

    def end(self) -> None:
        """Kills what is left and waits until nothing is: no process of the cage outlives this."""
        self.process.terminate()  # the launcher kills process 1 of the cage and waits for it
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self.report)


def start_cage(job: dict, channel: int) -> Cage:
    """Starts a cage for `job`; it inherits the file `channel` and nothing else of ours.

    The environment is empty, `-I` and `-S` keep out every path and package but the standard
    library. Raises OSError when no process can be started.
    """
    heard, report = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", "-c", START],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={}, cwd="/", pass_fds=(channel, report), start_new_session=True,
        )  # fmt: skip
    except OSError:
        os.close(heard)
        raise
    finally:
        os.close(report)
    with contextlib.suppress(BrokenPipeError):  # it died: its report ends without a word
        files = {"channel": channel, "report": report, "parent": os.getpid()}
        process.stdin.write(json.dumps({**job, **files}).encode())
        process.stdin.flush()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    return Cage(process, heard)


def listen(cages: Sequence[Cage], until: Cage, deadline: float) -> bool:
    """Reads reports until that of `until` ends; False if `deadline` (monotonic) comes first."""
    with selectors.DefaultSelector() as selector:
        for cage in cages:
            if cage.open:
                selector.register(cage.report, selectors.EVENT_READ, cage)
        while until.open:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for key, _ in selector.select(left):
                key.data.read()
                if not key.data.open:
                    selector.unregister(key.fileobj)
    return True
