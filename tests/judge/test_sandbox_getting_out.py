"""Hostile programs that look for a way out: each is contained, nothing of it is left."""

import os
import socket
import uuid
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_connect(sandbox, result):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        body = f"import socket\nsocket.create_connection(('127.0.0.1', {port}))"
        assert "PermissionError" in result(body)
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_bind_and_names(sandbox, result):
    body = """
import socket
said = []
for family in ("AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK", "AF_PACKET"):
    try: socket.socket(getattr(socket, family), socket.SOCK_DGRAM).bind("x")
    except Exception as error: said.append(type(error).__name__)
try: socket.getaddrinfo("example.org", 80)
except OSError as error: said.append(type(error).__name__)
return said
"""
    assert result(body) == f"ValueError: {['PermissionError'] * 5 + ['gaierror']}"


def test_write_outside(sandbox, tmp_path, result, literal):
    name = f"escape-{uuid.uuid4().hex}"
    places = [
        "/",
        "/usr",
        "/etc",
        "/dev",
        str(tmp_path),
        str(Path(__file__).parent),
        os.__file__[:-5],
    ]
    body = f"""
import os
said = []
for place in {places!r}:
    try: said.append(open(os.path.join(place, {name!r}), "w").write("x"))
    except OSError as error: said.append(error.errno)
open("/tmp/{name}", "w").write("x")
return said
"""
    assert all(number in (2, 13, 30) for number in literal(result(body)))
    assert not [p for p in (*places, "/tmp") if os.path.exists(os.path.join(p, name))]


def test_read_outside(sandbox, result):
    wanted = ["/etc/passwd", "/etc/shadow", __file__, str(Path.home() / ".bashrc"), "/sys",
              "/proc/self/environ", f"/proc/{os.getpid()}/environ", "/dev/sda",
              "/var/run/docker.sock"]  # fmt: skip
    assert result(f"import os\nreturn [x for x in {wanted} if os.path.exists(x)]") == (
        "ValueError: []"
    )


def test_installed_packages_are_hidden(sandbox, result):
    body = """
import os, sysconfig
folders = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")]
folders += [os.path.join(x, y) for x in folders for y in ("site-packages", "dist-packages")]
return [name for x in folders[:2] + folders[3:] if os.path.isdir(x) for name in os.listdir(x)]
"""
    assert result(body) == "ValueError: []"


def test_environment_and_arguments_hold_nothing(sandbox, monkeypatch, result, literal):
    monkeypatch.setenv("SECRET_KEY", "canary-5ff1")
    body = """
import os, sys
return dict(os.environ), sys.argv, sys.orig_argv[:5], os.listdir("/tmp"), os.getcwd()
"""
    environment, arguments, *_, files, folder = literal(result(body))
    assert set(environment) <= {"LC_CTYPE"}  # set by Python itself
    assert arguments == ["-c"] and files == [] and folder == "/tmp"


def test_symbolic_links(sandbox, result, literal):
    body = f"""
import os
said = []
os.symlink("/etc/passwd", "a"); os.symlink("../../../../..{__file__}", "b"); os.symlink("/", "c")
for name in ("a", "b", "c/etc/passwd", "c/proc/1/root/etc/passwd", "c/../../etc/passwd"):
    try: said.append(open(name).read())
    except OSError as error: said.append(error.errno)
os.chdir("/"); os.chdir("../../..")
return said, os.path.exists("etc/passwd")
"""
    said, found = literal(result(body))
    assert said == [2] * 5 and not found


def test_inherited_files(sandbox, tmp_path, result, literal):
    secret = (tmp_path / "secret").open("w+")
    os.set_inheritable(secret.fileno(), True)
    body = """
import os, stat
kinds = {}
for number in range(3, 1000):
    try: kinds[number] = stat.S_IFMT(os.fstat(number).st_mode)
    except OSError: pass
return list(kinds.values())
"""
    assert literal(result(body)) == [0o140000]  # one socket: that of the calls


def test_signals_to_the_parent_and_to_all(sandbox, result):
    body = f"""
import os
for who in (os.getppid(), {os.getpid()}, {os.getppid()}, -1, 0):
    try: os.kill(who, 9 if who else 0)
    except OSError: pass
return os.getppid()
"""
    assert result(body) == "ValueError: 1"


def test_ptrace_and_other_calls_by_number(sandbox, result, literal):
    numbers = dict(ptrace=101, process_vm_readv=310, execve=59, fork=57, vfork=58, mount=165,
                   unshare=272, setns=308, socket=41, connect=42, memfd_create=319, bpf=321,
                   keyctl=250, io_uring_setup=425, chroot=161, setuid=105, prctl=157, shmget=29,
                   pidfd_open=434, userfaultfd=323, perf_event_open=298, reboot=169)  # fmt: skip
    if os.uname().machine != "x86_64":
        pytest.skip("the numbers are those of x86-64")
    body = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
said = {{}}
for name, number in {numbers}.items():
    said[name] = (libc.syscall(number, 0, 0, 0, 0, 0, 0), ctypes.get_errno())
said["new user namespace"] = (libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0), ctypes.get_errno())
said["x32 socket"] = (libc.syscall(0x40000000 | 41, 2, 1, 0), ctypes.get_errno())
return said
"""
    said = literal(result(body))
    assert {name: answer for name, answer in said.items() if answer != (-1, 1)} == {}


def test_subclasses_escape(sandbox, result, literal):
    body = """
for kind in ().__class__.__base__.__subclasses__():
    if kind.__name__ == "_wrap_close":
        scope = kind.__init__.__globals__
        return scope["system"]("echo hi > /tmp/made"), scope["listdir"]("/tmp")
"""
    status, files = literal(result(body))
    assert status != 0 and files == []


def test_nothing_of_ours_can_be_imported(sandbox, result):
    body = """
found = []
for name in ("selfevo_jax", "numpy", "jax", "inside.nothing", "pip", "sitecustomize"):
    try: __import__(name); found.append(name)
    except ImportError: pass
return found
"""
    assert result(body) == "ValueError: []"
