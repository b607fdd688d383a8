"""The processes of one host, watched by torch's elastic agent: when one fails, all are ended.

    python -m selfevo_jax.torch_backend.agent FOLDER HOSTS PROCESSES ENDPOINT

Started on every host by `launch.py`. What failed first here is written to
FOLDER/failures/HOST.json. Everything ends when standard input does: it is the launcher's lifeline.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from selfevo_jax.evolve.files import write_json


def main(folder: Path, hosts: int, processes: int, endpoint: str) -> int:
    """Runs this host's processes to their end; the exit status."""
    end_with_launcher()
    prepare_environment(processes)
    config = LaunchConfig(
        min_nodes=hosts,
        max_nodes=hosts,
        nproc_per_node=processes,
        run_id=folder.parent.name,
        rdzv_backend="c10d",
        rdzv_endpoint=endpoint,
        max_restarts=0,
        monitor_interval=0.2,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs"), redirects=Std.ALL),
    )
    worker = ("-m", "selfevo_jax.torch_backend.worker", str(folder))
    try:
        elastic_launch(config, sys.executable)(*worker)
    except ChildFailedError as error:
        write_json(folder / "failures" / f"{socket.gethostname()}.json", first_failure(error))
        return 1
    return 0


def end_with_launcher() -> None:
    """Ends this process when its standard input ends: the launcher holds the other side, and a
    training without one would write into a run that somebody else goes on with."""

    def watch() -> None:
        while os.read(
            0, 1
        ):  # not sys.stdin, whose lock would hold up the end of a finished process
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def prepare_environment(processes: int) -> None:
    """What the workers find: JAX keeps off the GPUs, which are torch's here."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"


def first_failure(error: ChildFailedError) -> dict:
    """The process that failed first: its rank, when, and what it said.

    One that was killed leaves no file and is put first: the others then fail for want of it.
    """
    failures = error.failures.items()
    rank, failure = min(failures, key=lambda item: (_said(item[1]) is not None, _when(item[1])))
    killed = failure.exitcode < 0
    how = failure.signal_name() if killed else f"status {failure.exitcode}"
    text = _said(failure) or f"it ended with {how}\n{_last_words(failure)}"
    return {"rank": rank, "when": _when(failure), "killed": killed, "text": text}


def _when(failure: ProcessFailure) -> float:
    file = Path(failure.error_file)
    return file.stat().st_mtime if file.is_file() else time.time()


def _said(failure: ProcessFailure) -> str | None:
    """The error and its traceback, as torch's `record` has written it."""
    if not Path(failure.error_file).is_file():
        return None
    message = failure.error_file_data["message"]
    return f"{message['message']}\n{message['extraInfo']['py_callstack']}"


def _last_words(failure: ProcessFailure) -> str:
    printed = Path(failure.error_file).with_name("stderr.log")
    return printed.read_text(errors="replace")[-2000:] if printed.is_file() else ""


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
