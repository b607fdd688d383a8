"""An interrupt that falls into a callback, where Python drops it, still ends the command."""

import os
import signal
import time

import pytest

from selfevo_jax.cli import interrupts


class Deaf:
    """An exception in a destructor is printed and dropped."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_in_a_callback_comes_again(monkeypatch, known):
    monkeypatch.setattr(interrupts, "AGAIN_SECONDS", 0.05)
    if not known:  # even where the callback is one that nobody thought of
        monkeypatch.setattr(interrupts, "DEAF", frozenset())
    with pytest.raises(KeyboardInterrupt), interrupts.insistent_interrupts():
        Deaf()
        time.sleep(5)


def test_the_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts.insistent_interrupts():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    assert signal.getsignal(signal.SIGINT) is before
