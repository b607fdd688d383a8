"""Hostile programs that fake their verdict or stay behind: none passes, nothing of it is left."""

import pytest

pytestmark = pytest.mark.usefixtures("nothing_left")


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


def test_reading_standard_input(sandbox, result):
    assert "EOFError" in result("return input()")
