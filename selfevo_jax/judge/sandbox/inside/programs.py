"""The two ends of a test: a program that answers requests, and tests that make them.

They never share a process. The tests hold the expected values and give the verdict; the program
sees only the arguments of each call. What a verdict may depend on is decided in the tests' process,
over data that `values.decode` built: a `Remote` stands for an object of the program's, offers
operations that bring data back, and refuses those that would let the program decide (`==`, `<`,
arithmetic, hashing).
"""

import ast
import builtins
import operator
import sys
import types

from inside import values
from inside.values import Broken, Unsupported

TEXT = 2000  # characters of a message that are kept

# ---- the program's side

OPERATIONS = {
    "call": lambda target, *args, **kwargs: target(*args, **kwargs),
    "getattr": getattr, "setattr": setattr, "iter": iter, "next": next, "len": len,
    "getitem": operator.getitem, "bool": operator.truth, "str": str, "repr": repr,
}  # fmt: skip


class Program:
    """The candidate's code, loaded, and the objects of it that the tests have heard of."""

    def __init__(self, source: str):
        self.objects: list[object] = []
        self.numbers: dict[int, int] = {}
        module = types.ModuleType("program")  # a module, since dataclasses look theirs up
        sys.modules["program"] = module
        self.names = module.__dict__
        exec(compile(source, "program.py", "exec"), self.names)

    def refer(self, value: object) -> list:
        """["ref", number, whether `==` on it is the identity, whether it can be called]"""
        if id(value) not in self.numbers:
            self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        plain = type(value).__eq__ is object.__eq__ and type(value).__ne__ is object.__ne__
        return ["ref", self.numbers[id(value)], plain]

    def resolve(self, sent: list) -> object:
        return self.objects[sent[1]]

    def answer(self, request: dict) -> dict:
        """Does one request: {"value"} or {"missing"}, with {"changed"} arguments if any were."""
        if request["do"] == "get":
            if request["name"] not in self.names:
                return {"missing": True}
            return {"value": values.encode(self.names[request["name"]], self.refer)}
        arguments = values.decode(request["args"], self.resolve)
        named = values.decode(request["kwargs"], self.resolve)
        value = OPERATIONS[request["do"]](*arguments, **named)
        reply = {"value": values.encode(value, self.refer)}
        after = values.encode((arguments, named), self.refer)
        before = ["tuple", [request["args"], request["kwargs"]]]
        return reply if after == before else {**reply, "changed": after}


def run_program(job: dict) -> None:
    """Loads the program and answers until the tests are done. The reply to loading comes first."""
    link, most = job["channel"], job["message_bytes"]
    try:
        program, reply = Program(job["code"]), {"value": None}
    except BaseException as error:  # whatever a program raises is its tests' business
        program, reply = None, _failure(error)
    values.send(link, reply, most)
    while program is not None:
        try:
            request = values.receive(link, most)
        except Broken:
            return
        try:
            values.send(link, program.answer(request), most)
        except Broken:
            return
        except BaseException as error:  # as above; SystemExit and the like included
            values.send(link, _failure(error), most)


def _failure(error: BaseException) -> dict:
    if isinstance(error, Unsupported):
        return {"unsupported": str(error)}
    names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
    try:
        text = str(error)[:TEXT]
    except Exception:  # the program's own __str__
        text = ""
    return {"error": names, "kind": type(error).__name__[:TEXT], "text": text}


# ---- the tests' side


class Stop(BaseException):
    """Ends the tests: (outcome, message). No `except Exception` of theirs gets in the way."""


class ProgramError(Exception):
    """What the program raised, where no built-in exception can be made of it."""


class Link:
    """The tests' end of the channel. `ended` keeps the first reason that made it useless."""

    def __init__(self, file: int, most: int):
        self.file, self.most = file, most
        self.ended: Stop | None = None

    def end(self, outcome: str, message: str) -> Stop:
        self.ended = self.ended or Stop(outcome, message)
        return self.ended

    def load(self) -> None:
        """Waits until the program is loaded."""
        self._value(self._receive(), [])

    def get(self, name: str) -> tuple[bool, object]:
        """(whether the program defines `name`, its value)"""
        reply = self._exchange({"do": "get", "name": name})
        return (False, None) if "missing" in reply else (True, self._value(reply, []))

    def ask(self, do: str, *args, **kwargs) -> object:
        """Has the program do one operation: data, a `Remote`, or what it raised."""
        try:
            sent = [values.encode(x, _refer_remote) for x in (args, kwargs)]
        except Unsupported as error:
            raise self.end("unsupported", str(error)) from error
        reply = self._exchange({"do": do, "args": sent[0], "kwargs": sent[1]})
        return self._value(reply, [args, kwargs])

    def _exchange(self, request: dict) -> dict:
        if self.ended:
            raise self.ended
        try:
            values.send(self.file, request, self.most)
        except Broken as error:
            raise self.end("gone", str(error)) from error
        return self._receive()

    def _receive(self) -> dict:
        try:
            reply = values.receive(self.file, self.most)
        except Broken as error:
            raise self.end("gone", str(error)) from error
        if not isinstance(reply, dict):
            raise self.end("gone", "the program's process sent something else than an answer")
        return reply

    def _value(self, reply: dict, arguments: list) -> object:
        if "unsupported" in reply:
            raise self.end("unsupported", str(reply["unsupported"])[:TEXT])
        if "error" in reply:
            raise self._error(reply)
        try:
            if "changed" in reply:
                self._change(arguments, values.decode(reply["changed"], self._resolve))
            return values.decode(reply.get("value"), self._resolve)
        except (Broken, RecursionError) as error:
            raise self.end("gone", str(error)) from error

    def _change(self, arguments: list, changed: object) -> None:
        (args, kwargs), (new_args, new_kwargs) = arguments, changed
        for old, new in zip(args, new_args, strict=True):
            values.replace_content(old, new)
        for name, old in kwargs.items():
            values.replace_content(old, new_kwargs[name])

    def _resolve(self, sent: list) -> object:
        number, plain = sent[1:3]
        if sent[0] != "ref" or type(number) is not int or type(plain) is not bool:
            raise ValueError("not a reference")
        return Remote(self, number, plain)

    def _error(self, reply: dict) -> BaseException:
        """What the program raised, as the nearest built-in exception."""
        kind, text = str(reply.get("kind"))[:TEXT], str(reply.get("text"))[:TEXT]
        names = reply["error"] if isinstance(reply["error"], list) else []
        if "MemoryError" in names:
            return self.end("memory", f"{kind}: {text}")
        if "Exception" not in names:  # SystemExit, KeyboardInterrupt, GeneratorExit
            return self.end("failed", f"the program ended itself: {kind}: {text}")
        nearest = getattr(builtins, str(names[0]), None)
        if not isinstance(nearest, type) or not issubclass(nearest, Exception):
            nearest = ProgramError
        try:
            return nearest(text if kind == names[0] else f"{kind}: {text}")
        except TypeError:  # one that takes more than a text: UnicodeError, ExceptionGroup
            return ProgramError(f"{kind}: {text}")


class Remote:
    """An object of the program's, seen from the tests."""

    def __init__(self, link: Link, number: int, plain: bool):
        for name, value in (("_link", link), ("_number", number), ("_plain", plain)):
            object.__setattr__(self, name, value)

    def __call__(self, *args, **kwargs):
        return self._link.ask("call", self, *args, **kwargs)

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return self._link.ask("getattr", self, name)

    def __setattr__(self, name: str, value: object) -> None:
        self._link.ask("setattr", self, name, value)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Remote) and other._number == self._number:
            return True
        if self._plain and (not isinstance(other, Remote) or other._plain):
            return False  # `object.__eq__`: a lie about it can only make two things unequal
        raise self._link.end("unsupported", "the tests compare an object of the program's class")


def _asking(do: str):
    def method(self, *args):
        return self._link.ask(do, self, *args)

    return method


def _refusing(name: str):
    def method(self, *args):
        raise self._link.end("unsupported", f"the tests use __{name}__ of the program's class")

    return method


for _name in ("iter", "next", "len", "getitem", "bool", "str", "repr"):
    setattr(Remote, f"__{_name}__", _asking(_name))
for _name in (
    "hash lt le gt ge add radd sub rsub mul rmul truediv rtruediv mod rmod neg abs int float index "
    "setitem delitem enter exit"
).split():
    setattr(Remote, f"__{_name}__", _refusing(_name))


def _refer_remote(value: object) -> list:
    if isinstance(value, Remote):
        return ["ref", value._number, value._plain]
    raise Unsupported(f"the tests pass the program a {type(value).__name__}, which is no data")


def run_tests(job: dict) -> dict:
    """Runs the tests one by one; returns {"outcome", "message"} for the first that does not pass.

    "gone" means that the program's process is the one to ask about.
    """
    link = Link(job["channel"], job["message_bytes"])
    try:
        try:
            _run_each(link, job)
        except Exception as error:
            link.end("failed", f"before the first test: {_describe(error)}")
    except Stop as stop:
        link.end(*stop.args)
    except MemoryError as error:
        link.end("memory", str(error))
    except BaseException as error:  # SystemExit of a test
        link.end("failed", _describe(error))
    outcome, message = link.ended.args if link.ended else ("passed", "")
    return {"outcome": outcome, "message": message}


def _run_each(link: Link, job: dict) -> None:
    try:
        steps = [compile(text, "tests.py", "exec") for text in [job["setup"], *job["tests"]]]
        names = job["names"]
        if names is None:
            names = free_names("\n".join([job["setup"], *job["tests"]]))
    except (SyntaxError, ValueError, RecursionError) as error:
        raise link.end("unsupported", f"the tests do not parse: {error}") from error
    link.load()
    known = {name: link.get(name) for name in names}
    program = {name: value for name, (found, value) in known.items() if found}
    module = types.ModuleType("tests")
    module.__dict__.update(program)
    exec(steps[0], module.__dict__)
    module.__dict__.update(program)  # a set-up may hold a stub of what is tested
    for number, step in enumerate(steps[1:], 1):
        try:
            exec(step, module.__dict__)
        except Exception as error:
            raise link.end("failed", f"test {number}: {_describe(error)}") from error


def _describe(error: BaseException) -> str:
    text = str(error)[:TEXT]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def free_names(source: str) -> list[str]:
    """Names that a source reads and neither binds itself nor finds in the builtins."""
    read, bound = set(), set(dir(builtins))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
    return sorted(read - bound)
