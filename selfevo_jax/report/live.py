"""`selfevo report --live`: the page of a running run, served to this machine alone.

Two addresses: `/` is the page, made again when a file of the run changed; `/version` changes with
the files, and the page asks for it. Nothing is taken from a request but its path, and a request
under another host's name (DNS rebinding) is refused.
"""

import hashlib
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from selfevo_jax.errors import UserError
from selfevo_jax.report.page import FOLLOWING, LIVE_SCRIPTS, build_page, rendered

HOST = "127.0.0.1"
FILES = ("config.json", "run.json", "round_*/*/*.json*")
WAITING_SCRIPTS = ("base.js", "shell.js", "waiting.js", *LIVE_SCRIPTS)


def version_of(workdir: Path) -> str:
    """16 hex digits that change when a file of the run grows, appears or goes."""
    digest = hashlib.sha256()
    for path in _files(workdir):
        try:
            stat = path.stat()
        except FileNotFoundError:  # renamed between the two looks
            continue
        digest.update(f"{path.relative_to(workdir)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _files(workdir: Path) -> list[Path]:
    """The files of the run; none where a folder went while it was listed: the next look sees."""
    try:
        return sorted(path for pattern in FILES for path in workdir.glob(pattern))
    except FileNotFoundError:
        return []


class LiveServer(ThreadingHTTPServer):
    """Serves the page of one workdir on a port of 127.0.0.1 (`port` 0: any free one)."""

    daemon_threads = True

    def __init__(self, workdir: Path, port: int = 0) -> None:
        """Raises UserError for a port that is taken."""
        self.workdir = workdir
        self._made = ("", "")
        self._lock = threading.Lock()
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UserError(f"--port={port}: {error.strerror}; give another, or none") from error
        self.url = f"http://{HOST}:{self.server_port}/"
        self.names = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    def page(self) -> str:
        """The page as of now; what cannot be shown yet is said, and looked at again."""
        with self._lock:
            version = version_of(self.workdir)
            if self._made[0] != version:
                try:
                    self._made = version, build_page(self.workdir, live=version)
                except UserError as error:
                    return self._waiting(version, str(error))
                except FileNotFoundError:  # a stage was set aside while it was read
                    return self._waiting(version, "The run is making a stage anew.")
            return self._made[1]

    def _waiting(self, version: str, reason: str) -> str:
        """What stands in for the page; it asks for the page itself when a file changed."""
        data = {
            "name": self.workdir.resolve().name,
            "reason": reason,
            "version": version,
            "footer": "Served by selfevo report --live to this machine alone.",
        }
        return rendered(data, WAITING_SCRIPTS, reason, FOLLOWING)


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer

    def do_GET(self) -> None:
        if self.headers.get("Host") not in self.server.names:
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            self._answer("text/html; charset=utf-8", self.server.page())
        elif self.path == "/version":
            self._answer("text/plain", version_of(self.server.workdir))
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, kind: str, text: str) -> None:
        content = text.encode("utf-8", "backslashreplace")
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Requests of one's own browser are not worth a line."""
