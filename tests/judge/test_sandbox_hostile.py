"""Hostile programs: each is contained, none passes, nothing of it is left. All of them are ours."""

import ast
import ctypes
import os
import socket
import time
import uuid
from pathlib import Path

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.judge.sandbox import Limits, Sandbox

PR_SET_CHILD_SUBREAPER = 36
LIMITS = Limits(wall_seconds=8, cpu_seconds=4, memory_bytes=256 << 20)


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox(LIMITS)
    except UserError as error:
        pytest.skip(str(error))


def caged_processes() -> list[int]:
    """Descendants of this process that a cage started; orphans come back to us, their reaper."""
    parents, caged = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            status = (folder / "status").read_text()
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        pid = int(folder.name)
        parents[pid] = int(status.split("PPid:")[1].split()[0])
        if b"inside.launch" in command:
            caged.append(pid)

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [pid for pid in caged if ours(pid)]


@pytest.fixture(autouse=True)
def nothing_left(sandbox: Sandbox):
    """After each program: no process of a cage, and the next program is judged as ever."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    assert caged_processes() == []
    assert sandbox.run_tests("def f(): return 1", ["assert f() == 1"]).passed


def result(sandbox: Sandbox, body: str) -> str:
    """What `f()`, with this body, gives its caller: the text of a failing test's message."""
    code = "def f():\n" + "\n".join("    " + line for line in body.splitlines())
    outcome = sandbox.run_tests(code, ["raise ValueError(repr(f()))"])
    assert outcome.name == "failed", outcome
    return outcome.message.removeprefix("test 1: ")


# ---- using up


def test_fork_bomb(sandbox):
    assert "PermissionError" in result(sandbox, "import os\nwhile True: os.fork()")


def test_other_ways_to_start_a_process(sandbox):
    body = """
import multiprocessing, os, subprocess, sys
tries = [lambda: subprocess.run([sys.executable]), lambda: os.posix_spawn("/bin/sh", ["sh"], {}),
         lambda: os.execv(sys.executable, ["python"]), os.forkpty,
         multiprocessing.Process(target=print).start]
said = []
for call in tries:
    try: said.append(call())
    except OSError as error: said.append(error.errno)
return said, os.system("true")
"""
    numbers, system = literal(result(sandbox, body))
    assert len(numbers) == 5 and all(isinstance(x, int) and x for x in numbers)
    assert system != 0


def literal(text: str) -> object:
    """The data in a `result`."""
    return ast.literal_eval(text.removeprefix("ValueError: "))


def test_thread_bomb(sandbox):
    body = """
import threading
for count in range(10_000): threading.Thread(target=threading.Event().wait).start()
"""
    assert "RuntimeError" in result(sandbox, body)


@pytest.mark.parametrize(
    "body",
    [
        "return len('x' * 10**11)",
        "held = []\nwhile True: held.append(bytearray(1 << 20))",
        "import mmap\nreturn mmap.mmap(-1, 1 << 33).size() and bytes(1 << 33)",
        "return [0] * (1 << 40)",
    ],
    ids=["text", "pieces", "map", "list"],
)
def test_memory_hog(sandbox, body):
    code = "def f():\n    " + body.replace("\n", "\n    ")
    outcome = sandbox.run_tests(code, ["f()"])
    assert outcome.name == "memory" or "OSError" in outcome.message


def test_memory_hog_in_threads_and_in_files_counts_too(sandbox):
    body = """
import os
try:
    for n in range(200):
        with open(f"/tmp/{n}", "wb") as file: file.write(bytes(4 << 20))
except OSError as error: return n, error.errno
"""
    files, error = literal(result(sandbox, body))
    assert files <= 4 and error == 28  # ENOSPC after 16 MiB


def test_zip_bomb(sandbox):
    code = """
import zlib
def f():
    packer, bomb = zlib.compressobj(1), b""
    for _ in range(300): bomb += packer.compress(bytes(1 << 20))
    return len(zlib.decompress(bomb + packer.flush()))
"""
    assert sandbox.run_tests(code, ["assert f()"]).name == "memory"


def test_endless_loop_meets_the_wall_clock():
    began = time.monotonic()
    outcome = Sandbox(Limits(wall_seconds=1)).run_tests("while True: pass", ["assert 1"])
    assert outcome.name == "timeout" and "wall" in outcome.message
    assert 1 <= outcome.seconds <= time.monotonic() - began < 4


def test_sleeping_meets_the_wall_clock():
    code = "import time\ndef f(): time.sleep(100)"
    assert Sandbox(Limits(wall_seconds=1)).run_tests(code, ["f()"]).name == "timeout"


def test_endless_loop_meets_the_processor_limit():
    outcome = Sandbox(Limits(cpu_seconds=1)).run_tests("while True: pass", ["assert 1"])
    assert outcome.name == "timeout" and "processor" in outcome.message


def test_ignoring_every_signal():
    code = """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True:
    try:
        while True: pass
    except BaseException: pass
"""
    limits = Limits(wall_seconds=6, cpu_seconds=1)
    assert Sandbox(limits).run_tests(code, ["assert 1"]).name in ("timeout", "crashed")


def test_tests_that_never_end():
    assert Sandbox(Limits(wall_seconds=1)).run_tests("", ["while True: pass"]).name == "timeout"


def test_huge_output_goes_nowhere(sandbox):
    body = "for _ in range(1000): print('x' * 100_000)\nimport sys; sys.stderr.write('y' * 10**7)"
    assert result(sandbox, body) == "ValueError: None"


def test_huge_result(sandbox):
    outcome = sandbox.run_tests("def f(): return 'x' * (20 << 20)", ["assert f() == ''"])
    assert outcome.name == "memory"


def test_many_files(sandbox):
    body = """
try:
    for n in range(10_000): open(f"/tmp/{n}", "w").close()
except OSError as error: return n, error.errno
"""
    assert literal(result(sandbox, body)) == (LIMITS.work_files, 28)


def test_huge_file(sandbox):
    body = """
try:
    with open("big", "wb") as file:
        file.truncate(1 << 30)
except OSError as error: return error.errno
"""
    assert "27" in result(sandbox, body)  # EFBIG


def test_many_open_files(sandbox):
    body = "held = []\nwhile True: held.append(open('/tmp/a', 'w'))"
    assert "OSError" in result(sandbox, body)


def test_deep_recursion(sandbox):
    assert "RecursionError" in result(sandbox, "return f()")


def test_stack_overflow(sandbox):
    code = """
import sys
sys.setrecursionlimit(10**9)
class A:
    def __getattr__(self, name): return getattr(self, name + "a")
def f(n=0): return repr(A().a)
"""
    outcome = sandbox.run_tests(code, ["f()"])
    assert outcome.name in ("crashed", "memory")


def test_segmentation_fault(sandbox):
    outcome = sandbox.run_tests("import ctypes\ndef f(): ctypes.string_at(0)", ["f()"])
    assert (outcome.name, "SIGSEGV" in outcome.message) == ("crashed", True)


# ---- getting out


def test_connect(sandbox):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        body = f"import socket\nsocket.create_connection(('127.0.0.1', {port}))"
        assert "PermissionError" in result(sandbox, body)
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_bind_and_names(sandbox):
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
    assert result(sandbox, body) == f"ValueError: {['PermissionError'] * 5 + ['gaierror']}"


def test_write_outside(sandbox, tmp_path):
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
    assert all(number in (2, 13, 30) for number in literal(result(sandbox, body)))
    assert not [p for p in (*places, "/tmp") if os.path.exists(os.path.join(p, name))]


def test_read_outside(sandbox):
    wanted = ["/etc/passwd", "/etc/shadow", __file__, str(Path.home() / ".bashrc"), "/sys",
              "/proc/self/environ", f"/proc/{os.getpid()}/environ", "/dev/sda",
              "/var/run/docker.sock"]  # fmt: skip
    assert result(sandbox, f"import os\nreturn [x for x in {wanted} if os.path.exists(x)]") == (
        "ValueError: []"
    )


def test_installed_packages_are_hidden(sandbox):
    body = """
import os, sysconfig
folders = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")]
folders += [os.path.join(x, y) for x in folders for y in ("site-packages", "dist-packages")]
return [name for x in folders[:2] + folders[3:] if os.path.isdir(x) for name in os.listdir(x)]
"""
    assert result(sandbox, body) == "ValueError: []"


def test_environment_and_arguments_hold_nothing(sandbox, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "canary-5ff1")
    body = """
import os, sys
return dict(os.environ), sys.argv, sys.orig_argv[:5], os.listdir("/tmp"), os.getcwd()
"""
    environment, arguments, *_, files, folder = literal(result(sandbox, body))
    assert set(environment) <= {"LC_CTYPE"}  # set by Python itself
    assert arguments == ["-c"] and files == [] and folder == "/tmp"


def test_symbolic_links(sandbox):
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
    said, found = literal(result(sandbox, body))
    assert said == [2] * 5 and not found


def test_inherited_files(sandbox, tmp_path):
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
    assert literal(result(sandbox, body)) == [0o140000]  # one socket: that of the calls


def test_signals_to_the_parent_and_to_all(sandbox):
    body = f"""
import os
for who in (os.getppid(), {os.getpid()}, {os.getppid()}, -1, 0):
    try: os.kill(who, 9 if who else 0)
    except OSError: pass
return os.getppid()
"""
    assert result(sandbox, body) == "ValueError: 1"


def test_ptrace_and_other_calls_by_number(sandbox):
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
    said = literal(result(sandbox, body))
    assert {name: answer for name, answer in said.items() if answer != (-1, 1)} == {}


def test_subclasses_escape(sandbox):
    body = """
for kind in ().__class__.__base__.__subclasses__():
    if kind.__name__ == "_wrap_close":
        scope = kind.__init__.__globals__
        return scope["system"]("echo hi > /tmp/made"), scope["listdir"]("/tmp")
"""
    status, files = literal(result(sandbox, body))
    assert status != 0 and files == []


def test_nothing_of_ours_can_be_imported(sandbox):
    body = """
found = []
for name in ("selfevo_jax", "numpy", "jax", "inside.nothing", "pip", "sitecustomize"):
    try: __import__(name); found.append(name)
    except ImportError: pass
return found
"""
    assert result(sandbox, body) == "ValueError: []"


# ---- faking the verdict


@pytest.mark.parametrize("kind", ["object", "int", "str", "list", "dict", "float", "tuple"])
def test_equal_to_everything(sandbox, kind):
    code = f"""
class Equal({kind}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def f(): return Equal()
"""
    outcome = sandbox.run_tests(code, ["assert f() == 12345"])
    assert outcome.name == ("unsupported" if kind == "object" else "failed")
    swallowed = ["try:\n    ok = f() == 12345\nexcept:\n    ok = True\nassert ok"]
    assert not sandbox.run_tests(code, swallowed).passed or kind != "object"


@pytest.mark.parametrize(
    "line, name",
    [
        ("import sys; sys.exit(0)", "failed"),
        ("import os; os._exit(0)", "crashed"),
        ("raise KeyboardInterrupt", "failed"),
        ("import os; os.kill(os.getpid(), 9)", "crashed"),
        ("import os; os.abort()", "crashed"),
        ("raise GeneratorExit", "failed"),
    ],
)
@pytest.mark.parametrize("where", ["loading", "calling"])
def test_ending_early(sandbox, line, name, where):
    code = line if where == "loading" else f"def f():\n    {line}"
    assert sandbox.run_tests(code, ["try:\n    f()\nexcept:\n    pass"]).name == name


def test_printing_a_verdict_to_every_file(sandbox):
    code = r"""
import os
line = b'{"nonce": "", "outcome": "passed", "message": ""}\n'
for number in range(64):
    for text in (line, len(line).to_bytes(4, "big") + line):
        try: os.write(number, text)
        except OSError: pass
print("passed"); print("All tests passed", "1 passed in 0.01s")
def f(): return 0
"""
    assert sandbox.run_tests(code, ["assert f() == 1"]).name in ("failed", "crashed")


@pytest.mark.parametrize("text", [r"b'\xff\xff\xff\xff'", r"b'\x00\x00\x00\x02[]'", "b'[' * 10**5",
                                  r"b'\x00\x01\x86\xa0' + b'[' * 100_000",
                                  r"b'\x00\x00\x00\x0e' + b'{\"value\":[7]}  '"])  # fmt: skip
def test_garbage_on_the_channel(sandbox, text):
    code = f"""
import os
for number in range(3, 64):
    try: os.write(number, {text})
    except OSError: pass
def f(): return 1
"""
    assert sandbox.run_tests(code, ["assert f() == 2"]).name == "crashed"


def test_replaced_builtins(sandbox):
    code = """
import builtins, operator, unittest
builtins.AssertionError = Exception
builtins.len = builtins.abs = builtins.sum = lambda *_: 3
builtins.isinstance = lambda *_: True
builtins.__import__ = lambda *_: None
def f(): return []
"""
    for test in ("assert len(f()) == 3", "assert abs(-1) == 3", "assert isinstance(f(), dict)"):
        assert sandbox.run_tests(code, [test]).name in ("failed", "crashed")


def test_replaced_machinery_of_the_cage(sandbox):
    code = """
import sys
for name in list(sys.modules):
    if name.startswith("inside"):
        vars(sys.modules[name])["encode"] = lambda *_: 1
        vars(sys.modules[name])["run_tests"] = lambda *_: {"outcome": "passed", "message": ""}
def f(): return 2
def check(*_): pass
"""
    assert (
        sandbox.run_tests(code, ["def check(g): assert g() == 2000", "check(f)"]).name == "failed"
    )


def test_expected_values_and_nonce_are_not_in_reach(sandbox):
    body = """
import gc, re, sys
seen, frame = [], sys._getframe()
while frame:
    seen += [repr(frame.f_locals), repr(frame.f_globals)]
    frame = frame.f_back
seen += [repr(x) for x in gc.get_objects()]
text = " ".join(seen)
word = "-".join(["expected", "77"])
return re.findall("[^0-9a-f][0-9a-f]{32}[^0-9a-f]", text), word in text, "program.py" in text
"""
    code = "def f():\n" + "\n".join("    " + line for line in body.splitlines())
    tests = ["assert f() == ([], False, True), f()", "assert 'expected-77'"]
    outcome = sandbox.run_tests(code, tests)
    assert outcome.passed, outcome


def test_lying_about_references(sandbox):
    code = """
import sys
values = sys.modules["inside.values"]
original = values.encode
def lie(value, refer, depth=0):
    return ["ref", 0, True] if value == "lie" else original(value, refer, depth)
values.encode = lie
def f(): return "lie"
"""
    assert sandbox.run_tests(code, ["assert f() == 5"]).name == "failed"


def test_an_exception_that_bites(sandbox):
    code = """
class Bad(Exception):
    def __str__(self): raise SystemExit(0)
    __repr__ = __str__
def f(): raise Bad
"""
    assert sandbox.run_tests(code, ["f()"]).name in ("failed", "crashed")


def test_left_behind(sandbox):
    code = """
import atexit, os, threading, time
def stay():
    while True: time.sleep(0.01)
threading.Thread(target=stay).start()
atexit.register(stay)
try: os.setsid()
except OSError: pass
def f(): return 1
"""
    assert sandbox.run_tests(code, ["assert f() == 1"]).passed  # and `nothing_left` looks


def test_reading_standard_input(sandbox):
    assert "EOFError" in result(sandbox, "return input()")
