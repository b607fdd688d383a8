"""The sandbox from the outside: outcomes, what crosses, what is refused, what the probe sees."""

import ctypes
import dataclasses
import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import selfevo_jax.judge.sandbox
from selfevo_jax.errors import UserError
from selfevo_jax.judge.sandbox import Limits, Outcome, Sandbox

PACKAGE = Path(selfevo_jax.judge.sandbox.__file__).parent


@pytest.fixture(scope="module")
def sandbox() -> Sandbox:
    try:
        return Sandbox()
    except UserError as error:
        pytest.skip(str(error))


def name(sandbox: Sandbox, code: str, *tests: str, **named) -> str:
    return sandbox.run_tests(code, tests, **named).name


# ---- verdicts


def test_passed_and_failed_say_which_test(sandbox):
    code = "def double(x): return 2 * x"
    good = sandbox.run_tests(code, ["assert double(2) == 4", "assert double('a') == 'aa'"])
    assert good == Outcome("passed", "", good.seconds) and 0 < good.seconds < 10
    bad = sandbox.run_tests(code, ["assert double(2) == 4", "assert double(2) == 5, 'not five'"])
    assert (bad.name, bad.message) == ("failed", "test 2: AssertionError: not five")
    assert good.passed and good.judged and not bad.passed and bad.judged


@pytest.mark.parametrize(
    "code, message",
    [
        ("def f(: pass", "SyntaxError"),
        ("import numpy", "ModuleNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
        ("def g(): pass", "name 'f' is not defined"),
        ("def f(): return [][1]", "IndexError"),
        ("def f(x): return 1", "TypeError"),
        ("class E(Exception): pass\ndef f(): raise E('own')", "E: own"),
        ("f = 3", "TypeError"),
    ],
)
def test_a_wrong_program_fails_with_its_reason(sandbox, code, message):
    outcome = sandbox.run_tests(code, ["assert f() == 1"])
    assert outcome.name == "failed" and message in outcome.message


def test_exceptions_reach_the_tests_as_the_built_in_ones(sandbox):
    code = """
class Own(KeyError): pass
def f(kind):
    if kind == "own": raise Own("k")
    if kind == "unicode": b"\\xff".decode()
    raise {"value": ValueError, "stop": StopIteration, "bare": Exception}[kind]("why")
"""
    caught = "try:\n    f({kind!r})\n    assert False\nexcept {error} as e:\n    assert {check}"
    tests = [
        caught.format(kind="value", error="ValueError", check="str(e) == 'why'"),
        caught.format(kind="stop", error="StopIteration", check="e.value == 'why'"),
        caught.format(kind="own", error="KeyError", check="'Own: ' in str(e)"),
        caught.format(kind="unicode", error="Exception", check="'decode' in str(e)"),
        caught.format(kind="bare", error="Exception", check="True"),
    ]
    assert sandbox.run_tests(code, tests).passed


@pytest.mark.parametrize(
    "value",
    ["None", "True", "-3", "2**200", "-(10**4000)", "0.1", "float('inf')", "-0.0", "1e-320",
     "3 + 4j", "'a\\ud800\\0 \\U0001f600'", "b'\\x00\\xff'", "[1, [2, (3, {4})]]",
     "{1: 'a', (2, 3): None}", "frozenset({1, 2})", "range(3, 9, 2)", "{'b': 1, 'a': 2}", "[]",
     "()", "set()", "bytearray(b'x')", "__import__('fractions').Fraction(1, 3)",
     "__import__('decimal').Decimal('0.10')", "__import__('collections').Counter('abca')",
     "__import__('collections').deque([1, 2])",
     "__import__('collections').OrderedDict([(2, 1), (1, 2)])"],
)  # fmt: skip
def test_data_cross_both_ways_unchanged(sandbox, value):
    code = f"def same(x): return x\ndef made(): return {value}"
    tests = [
        f"x = {value}\nfor y in (same(x), made()):\n"
        "    assert type(y) is type(x) and y == x and repr(y) == repr(x), y"
    ]
    assert sandbox.run_tests(code, tests).passed


def test_arguments_that_the_program_changes_are_changed_in_the_tests(sandbox):
    code = """
def f(a, *, b, c): a.append(3); b["k"] = [1]; c.add(9)
def g(a): return a
"""
    tests = ["a, b, c = [1], {}, {1}\nkept = a\nf(a, b=b, c=c)\n"
             "assert (kept, b, c) == ([1, 3], {'k': [1]}, {1, 9})",
             "x = {'s', 't'}\ng(x)\nassert x == {'s', 't'}"]  # fmt: skip
    assert sandbox.run_tests(code, tests).passed


def test_objects_of_the_program_work_through_their_methods(sandbox):
    code = """
import collections
class Node:
    def __init__(self, value): self.value, self.next = value, None
    def chain(self): return [self.value] + (self.next.chain() if self.next else [])
    def __len__(self): return len(self.chain())
    def __getitem__(self, k): return self.chain()[k]
def count(n):
    for i in range(n): yield i
def total(node): return sum(node.chain())
Point = collections.namedtuple("Point", "x y")
def point(): return Point(1, 2)
LIMIT = 7
"""
    tests = ["a = Node(1)\na.next = Node(2)\nassert a.chain() == [1, 2] and total(a) == 3",
             "assert len(a) == 2 and a[1] == 2 and bool(a) and a.next.value == 2",
             "assert list(count(3)) == [0, 1, 2] and next(count(1)) == 0 and 2 in count(5)",
             "assert sorted(count(3), reverse=True) == [2, 1, 0] and LIMIT == 7",
             "assert point() == (1, 2)", "assert a == a and a != Node(1)",
             "assert not hasattr(a, 'other')"]  # fmt: skip
    assert sandbox.run_tests(code, tests).passed


@pytest.mark.parametrize(
    "test",
    [
        "assert Vec() == (1, 2)",
        "assert Vec() == Vec()",
        "assert Vec() < 3",
        "assert {Vec()}",
        "assert Vec() + 1",
        "f(lambda: 1)",
        "f(print)",
        "f(object())",
        "assert deep()",
        "assert f(",
        "try:\n    assert Vec() == 1\nexcept BaseException:\n    pass",
    ],
)
def test_what_cannot_cross_is_unsupported_not_wrong(sandbox, test):
    code = """
class Vec:
    def __eq__(self, other): return True
def f(x): return x
def deep():
    x = []
    x.append(x)
    return x
"""
    outcome = sandbox.run_tests(code, [test])
    assert outcome.name == "unsupported" and not outcome.judged and outcome.message


def test_a_generator_is_simply_unequal_to_a_list(sandbox):
    code = "def f(): return (x for x in [1])"
    assert name(sandbox, code, "assert f() == [1]") == "failed"
    assert name(sandbox, code, "assert isinstance(f(), list)") == "failed"


def test_names_come_from_entry_point_only(sandbox):
    code = "def sum(*_): return 3\ndef helper(): return 1\ndef f(): return 2"
    assert name(sandbox, code, "assert sum(1, 2) == 3", entry_point=["sum"]) == "passed"
    assert name(sandbox, code, "assert sum([1]) == 3") == "failed"  # without, builtins stay
    assert name(sandbox, code, "assert helper() == 1 and f() == 2") == "passed"
    assert name(sandbox, code, "assert helper() == 1", entry_point="f") == "failed"


def test_setup_may_hold_a_stub_and_helpers_that_the_program_cannot_replace(sandbox):
    code = "def f(x): return x\ndef near(a, b): return True"
    setup = "def f(x):\n    '''stub'''\ndef near(a, b): return abs(a - b) < 1"
    assert name(sandbox, code, "assert near(f(5), 5)", setup=setup, entry_point="f") == "passed"
    assert name(sandbox, code, "assert near(f(5), 9)", setup=setup, entry_point="f") == "failed"
    assert "before the first test" in sandbox.run_tests("", ["1"], setup="1/0").message


def test_programs_do_not_see_each_other(sandbox):
    write = "def f(): open('/tmp/a', 'w').write('x')"
    read = "import os\ndef f(): return os.listdir('/tmp')"
    assert sandbox.run_tests(write, ["f()"]).passed
    assert sandbox.run_tests(read, ["assert f() == []"]).passed


def test_many_at_once(sandbox):
    codes = [f"def f(): return {n}" for n in range(24)]
    with ThreadPoolExecutor(6) as pool:
        right = list(pool.map(lambda code: name(sandbox, code, "assert f() % 2 == 0"), codes))
    assert right == ["passed", "failed"] * 12


def test_no_file_of_ours_stays_open(sandbox):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        sandbox.run_tests("import os; os._exit(1)", ["f()"])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_thread_that_ends_takes_no_cage_of_another_with_it(sandbox):
    names: list[str] = []
    code = "import time\ndef f(): time.sleep(1); return 1"
    slow = threading.Thread(target=lambda: names.append(name(sandbox, code, "assert f() == 1")))
    slow.start()
    quick = threading.Thread(target=lambda: name(sandbox, "", "assert 1"))
    quick.start()
    quick.join()
    slow.join()
    assert names == ["passed"]


def test_cages_die_with_the_process_that_made_them(sandbox, tmp_path):
    script = (
        "from selfevo_jax.judge.sandbox import Limits, Sandbox\n"
        "s = Sandbox(Limits(wall_seconds=60, cpu_seconds=60)); print('go', flush=True)\n"
        "s.run_tests('while True: pass', ['assert 1'])"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout.readline() == "go\n"
    deadline = time.monotonic() + 10
    while len(family := descendants(parent.pid)) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(family) == 6  # launcher, init and worker, twice
    parent.kill()
    parent.wait()
    while any(map(alive, family)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, family))


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def descendants(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    children = [int(x) for x in text.split()]
    return children + [x for child in children for x in descendants(child)]


# ---- refusals


def test_bad_limits_and_no_tests():
    for wrong in ({"wall_seconds": 0}, {"memory_bytes": -1}, {"threads": 1 << 50}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            Limits(**wrong)


def test_no_tests_is_a_mistake_and_too_much_text_is_refused(sandbox):
    with pytest.raises(UserError, match="no tests"):
        sandbox.run_tests("def f(): pass", [])
    small = Sandbox(Limits(source_bytes=100))
    long = small.run_tests("#" * 101, ["assert 1"])
    assert long.name == "refused" and "program" in long.message and not long.judged
    assert small.run_tests("", ["#" * 60, "#" * 60]).name == "refused"


def test_other_users_than_root_can_use_it(sandbox, tmp_path):
    if os.geteuid() != 0 or not Path("/usr/bin/python3").exists():
        pytest.skip("needs root, and a Python that other users can run")
    version = subprocess.check_output(
        ["/usr/bin/python3", "-c", "import sys; print(sys.version_info >= (3, 11))"], text=True
    )
    if version != "True\n":
        pytest.skip("the system's Python is older than 3.11")
    done = run_copy(tmp_path, user=12345, python="/usr/bin/python3")
    assert (done.returncode, done.stdout.split()) == (0, ["passed", "failed", "1000"]), done.stderr


def run_copy(folder: Path, change: tuple[str, str, str] | None = None, **named):
    """Runs a sandbox from a copy of its sources, in which one text may be changed."""
    root = folder / "copy"
    target = root / "selfevo_jax/judge/sandbox"
    shutil.copytree(PACKAGE, target, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PACKAGE.parent.parent / "errors.py", root / "selfevo_jax")
    if change:
        file, old, new = change
        text = (target / file).read_text()
        assert text.count(old) == 1
        (target / file).write_text(text.replace(old, new))
    for path in [*Path(folder).parents][:3]:
        if os.geteuid() == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    folder.chmod(0o755)
    script = (
        "from selfevo_jax.judge.sandbox import Sandbox\n"
        "s = Sandbox()\n"
        "for x in (1, 2): print(s.run_tests('def f(): return 1', [f'assert f() == {x}']).name)\n"
        "print(s.run_tests('import os\\ndef f(): return os.getuid()', ['raise SystemExit(f())'])"
        ".message.split()[-1])\n"
    )
    command = [named.pop("python", sys.executable), "-c", script]
    return subprocess.run(command, cwd=root, env={"PYTHONDONTWRITEBYTECODE": "1"}, text=True,
                          capture_output=True, **named)  # fmt: skip


MISSING_WALLS = {
    "network": ("inside/namespaces.py", " | CLONE_NEWNET", ""),
    "files": ("inside/namespaces.py", "    for folder in shown:\n",
              '    for folder in [*shown, "/etc"]:\n'),
    "user": ("inside/namespaces.py", "        _become(FIRST_USER + os.getpid()",
             "        print(FIRST_USER + os.getpid()"),
    "processes": ("inside/launch.py", "    worker = os.fork()\n",
                  "    worker = os.fork() or os.fork()\n"),
}  # fmt: skip


@pytest.mark.parametrize("leak", MISSING_WALLS)
def test_the_probe_sees_a_missing_wall_and_refuses(sandbox, tmp_path, leak):
    if os.geteuid() != 0:
        pytest.skip("takes walls out of root's way of building them")
    done = run_copy(tmp_path, MISSING_WALLS[leak])
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert "UserError" in message and leak in message and "leave out tasks" in message


def test_it_refuses_where_user_namespaces_are_forbidden(sandbox, tmp_path):
    libc, user = ctypes.CDLL(None), os.geteuid()

    def forbid() -> None:
        libc.unshare(0x10000000)
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/sys/user/max_user_namespaces").write_text("0")

    done = run_copy(tmp_path, preexec_fn=forbid)
    assert done.returncode == 1
    assert "cannot be built here (user namespace" in done.stderr.splitlines()[-1]


def test_the_report_names_what_holds_and_what_does_not(sandbox):
    held = sandbox.enforced
    assert held.network and held.files and held.user and held.processes
    without = dataclasses.replace(held, landlock=False, seccomp=True)
    assert without.report().endswith("; not landlock") and "seccomp" in without.report()
