"""An interrupt that falls into a callback, where Python drops it, still ends the command."""

import os
import signal
import time

import pytest

from selfevo_jax.cli import interrupts


class Swallows:
    """An exception in a destructor is printed and dropped."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_swallowed_interrupt_comes_again(monkeypatch):
    monkeypatch.setattr(interrupts, "AGAIN_SECONDS", 0.05)
    with pytest.raises(KeyboardInterrupt), interrupts.insistent_interrupts():
        Swallows()
        time.sleep(5)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts.insistent_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before
