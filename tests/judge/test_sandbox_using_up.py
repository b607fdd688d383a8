"""Hostile programs that use up what there is: each meets its limit, nothing of it is left."""

import time

import pytest

from selfevo_jax.judge.sandbox import Limits, Sandbox

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_fork_bomb(sandbox, result):
    assert "PermissionError" in result("import os\nwhile True: os.fork()")


def test_other_ways_to_start_a_process(sandbox, result, literal):
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
    numbers, system = literal(result(body))
    assert len(numbers) == 5 and all(isinstance(x, int) and x for x in numbers)
    assert system != 0


def test_thread_bomb(sandbox, result):
    body = """
import threading
for count in range(10_000): threading.Thread(target=threading.Event().wait).start()
"""
    assert "RuntimeError" in result(body)


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


def test_memory_hog_in_threads_and_in_files_counts_too(sandbox, result, literal):
    body = """
import os
try:
    for n in range(200):
        with open(f"/tmp/{n}", "wb") as file: file.write(bytes(4 << 20))
except OSError as error: return n, error.errno
"""
    files, error = literal(result(body))
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


def test_huge_output_goes_nowhere(result, capfd):
    body = "for _ in range(1000): print('x' * 100_000)\nimport sys; sys.stderr.write('y' * 10**7)"
    assert result(body) == "ValueError: None"
    assert tuple(capfd.readouterr()) == ("", "")


def test_huge_result(sandbox):
    outcome = sandbox.run_tests("def f(): return 'x' * (20 << 20)", ["assert f() == ''"])
    assert outcome.name == "memory"


def test_many_files(sandbox, result, literal):
    body = """
try:
    for n in range(10_000): open(f"/tmp/{n}", "w").close()
except OSError as error: return n, error.errno
"""
    assert literal(result(body)) == (sandbox.limits.work_files, 28)


def test_huge_file(sandbox, result):
    body = """
try:
    with open("big", "wb") as file:
        file.truncate(1 << 30)
except OSError as error: return error.errno
"""
    assert "27" in result(body)  # EFBIG


def test_many_open_files(sandbox, result):
    body = "held = []\nwhile True: held.append(open('/tmp/a', 'w'))"
    assert "OSError" in result(body)


def test_deep_recursion(sandbox, result):
    assert "RecursionError" in result("return f()")


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
