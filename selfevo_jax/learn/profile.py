"""Traces of some steps of a fit: what ran on the chips and on the host, and when."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax

log = logging.getLogger(__name__)


class Profile:
    """Traces `steps` steps into `folder` (none: 0), from the second that this process does on: the
    first one compiles. TensorBoard's profile plugin and XProf read the folder."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._folder, self._left, self._seen, self._tracing = folder, steps, 0, False

    def before_step(self, state: Any) -> None:
        """A step is about to start from `state`."""
        if self._left and self._seen == 1:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True
        self._seen += 1

    def after_step(self, state: Any) -> None:
        """A step was started and gives `state`."""
        if self._tracing:
            self._left -= 1
            if not self._left:
                jax.block_until_ready(state)
                self.close()

    def close(self) -> None:
        """Ends a trace that is still being made."""
        if self._tracing:
            jax.profiler.stop_trace()
            self._tracing, self._left = False, 0
            log.info("a trace is in %s: read it with TensorBoard's profile plugin", self._folder)
