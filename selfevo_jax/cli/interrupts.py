"""Ctrl-C and SIGTERM that cannot be lost.

Python raises an exception wherever the main thread happens to be. Inside a callback that
C code has called (a destructor, a garbage-collection hook of JAX) the exception is printed and
dropped, and the command would go on as if nothing had been asked.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from selfevo_jax.parallel import preemption

AGAIN_SECONDS = 1.0
# Callbacks that drop what is raised in them; there, the interrupt waits for its next turn.
DEAF = frozenset({"_xla_gc_callback", "__del__"})


@contextmanager
def insistent_interrupts() -> Iterator[None]:
    """Within the block, an interrupt (`KeyboardInterrupt`) or SIGTERM (`Preempted`) is raised
    again every second until the block is left.

    Does nothing outside the main thread, where signals cannot be handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with preemption.forgotten(), _insisted(signal.SIGINT, _interrupt):
        with _insisted(signal.SIGTERM, preemption.notice):
            yield


def _interrupt() -> None:
    raise KeyboardInterrupt


@contextmanager
def _insisted(number: signal.Signals, act) -> Iterator[None]:
    left = threading.Event()

    def insist() -> None:
        while not left.wait(AGAIN_SECONDS):
            _thread.interrupt_main(number)

    again = threading.Thread(target=insist, daemon=True)

    def handle(_: int, frame: FrameType | None) -> None:
        if again.ident is None:
            again.start()
        if not _deaf(frame):
            act()

    before = signal.signal(number, handle)
    try:
        yield
    finally:
        left.set()
        signal.signal(number, before)


def _deaf(frame: FrameType | None) -> bool:
    """Whether `frame` or one it was called from is such a callback."""
    while frame is not None:
        if frame.f_code.co_name in DEAF:
            return True
        frame = frame.f_back
    return False
