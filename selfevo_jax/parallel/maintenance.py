"""Google's word that this machine is about to go, heard as SIGTERM.

A VM's metadata server tells `instance/preempted` (a spot machine is being taken back) and
`instance/maintenance-event` (its host will be serviced; a TPU VM ends then) before anything is
sent to the programs on it (https://cloud.google.com/compute/docs/metadata/predefined-metadata-keys).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

EVERY_SECONDS = 5.0
PRODUCT = Path("/sys/class/dmi/id/product_name")
# What is asked, and the answer that means that the machine goes.
SIGNS = {"preempted": "TRUE", "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE"}

log = logging.getLogger(__name__)
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Within the block, a new sign is SIGTERM to this process. Does nothing off Google's machines.

    A sign that stood there before is none: a job that was started again while its machine waits
    to be serviced works on until it is. `GCE_METADATA_HOST` names another metadata server, as it
    does for Google's own libraries.
    """
    host = os.environ.get("GCE_METADATA_HOST")
    if host is None and not _is_googles():
        yield
        return
    left = threading.Event()
    address = host or "metadata.google.internal"
    threading.Thread(target=_watch, args=(address, left), name="maintenance", daemon=True).start()
    try:
        yield
    finally:
        left.set()


def _is_googles() -> bool:
    try:
        return PRODUCT.read_text().startswith("Google")
    except OSError:
        return False


def _watch(host: str, left: threading.Event) -> None:
    before = _signs(host)
    while not left.wait(EVERY_SECONDS):
        if fresh := _signs(host) - before:
            log.warning("this machine is about to go (%s): saving and leaving", ", ".join(fresh))
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _signs(host: str) -> set[str]:
    """The signs that are there now; none where the server does not answer."""
    return {name for name, sign in SIGNS.items() if _answer(host, name) == sign}


def _answer(host: str, name: str) -> str:
    url = f"http://{host}/computeMetadata/v1/instance/{name}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with _direct.open(request, timeout=EVERY_SECONDS) as reply:
            return reply.read(100).decode("ascii", "replace").strip()
    except OSError:
        return ""
