"""Ctrl-C that cannot be lost.

Python raises KeyboardInterrupt wherever the main thread happens to be. Inside a callback that
C code has called (a garbage-collection hook of JAX, a destructor) the exception is printed and
dropped, and the command would go on as if nothing had been asked.
"""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

AGAIN_SECONDS = 2.0


@contextmanager
def insistent_interrupts() -> Iterator[None]:
    """Within the block, an interrupt is raised again every two seconds until the block is left.

    Does nothing outside the main thread, where signals cannot be handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    left = threading.Event()

    def insist() -> None:
        while not left.wait(AGAIN_SECONDS):
            _thread.interrupt_main(signal.SIGINT)

    def interrupt(number, frame):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=insist, daemon=True).start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        left.set()
        signal.signal(signal.SIGINT, before)
