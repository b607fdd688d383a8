"""What a cage can really not do, found out by trying, from inside."""

import os
import resource
import socket
import threading

from inside.namespaces import LIBC

OUTSIDE = ("192.0.2.1", 9)  # a documentation address: only a route to it is looked for
SAMPLE_LIMITS = ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE")


def look_at_walls(job: dict) -> dict:
    """Tries what the namespaces alone must stop; True stands for stopped."""
    return {
        "network": not (_reaches_internet() or _reaches_host(job["host_port"])),
        "files": not any(map(os.path.exists, job["host_files"])) and not _writes_outside(),
        "user": os.getuid() != 0 and LIBC.setuid(0) != 0 and not _mounts(),
        "processes": os.getppid() == 1,
    }


def look_at_limits(limits: dict) -> dict:
    """Tries what the limits and filters must stop; True stands for stopped."""
    keys = ("memory_bytes", "cpu_seconds", "file_bytes")
    kinds = [getattr(resource, name) for name in SAMPLE_LIMITS]
    found = [
        resource.getrlimit(kind)[0] <= limits[key] for kind, key in zip(kinds, keys, strict=True)
    ]
    names = ("memory", "cpu_time", "file_size")
    return {
        **dict(zip(names, found, strict=True)),
        "threads": _threads(limits["threads"] + 1) <= limits["threads"],
        "forking": not _forks(),
    }


def _reaches_internet() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        try:
            sender.connect(OUTSIDE)  # sends nothing: UDP
        except OSError:
            return False
    return True


def _reaches_host(port: int) -> bool:
    with socket.socket() as caller:
        caller.settimeout(1.0)
        return caller.connect_ex(("127.0.0.1", port)) == 0


def _writes_outside() -> bool:
    for folder in ("/", os.path.dirname(os.__file__)):
        try:
            open(os.path.join(folder, "written"), "w").close()
        except OSError:
            continue
        return True
    return False


def _mounts() -> bool:
    return LIBC.mount(b"none", b"/tmp", b"tmpfs", 0, b"") == 0


def _threads(most: int) -> int:
    """How many threads beside this one can live at once, counted to `most`."""
    done, count = threading.Event(), 0
    try:
        while count < most:
            threading.Thread(target=done.wait, daemon=True).start()
            count += 1
    except RuntimeError:
        pass
    finally:
        done.set()
    return count


def _forks() -> bool:
    try:
        child = os.fork()
    except OSError:
        return False
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return True
