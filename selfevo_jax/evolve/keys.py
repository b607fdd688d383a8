"""Hashes of code: what a stage's key says of the functions that a method hands to it."""

import ast
import dataclasses
import functools
import hashlib
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

PACKAGE = "selfevo_jax."
PLAIN = (str, int, float, bool, type(None), bytes)


def source_version(*parts: Any) -> str:
    """A hash of the code of functions, classes or modules, blind to comments and layout."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(_code(part))
    return digest.hexdigest()[:12]


@functools.cache
def package_version(*names: str) -> str:
    """A hash of all the code in some of our packages, blind to comments and layout; also of what
    runs as a process of its own, which no function reaches."""
    digest = hashlib.sha256()
    for name in names:
        for path in sorted((Path(__file__).parents[1] / name).rglob("*.py")):
            digest.update(ast.dump(ast.parse(path.read_bytes())).encode())
    return digest.hexdigest()[:12]


@functools.cache
def _code(part: Any) -> bytes:
    """The code without comments and layout; read once, as it does not change while we run."""
    return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(part)))).encode()


def code_key(function: Any) -> str:
    """A hash of a function with everything of ours that it reaches and every value it is bound to.

    Bound arguments and closures may hold plain values, mappings, dataclasses, functions and
    objects with a `hash` (prompt files, policies, records); anything else is a TypeError, because
    a key that forgets a value would call two different stages the same.
    """
    parts = sorted(set(_reached(function, set())))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _reached(value: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(value, PLAIN):
        yield repr(value)
    elif isinstance(value, functools.partial):
        yield from _reached(value.func, seen)
        yield from _bound({**dict(enumerate(value.args)), **value.keywords}, seen)
    elif isinstance(value, MethodType):
        yield from _reached(value.__func__, seen)
        yield from _reached(value.__self__, seen)
    elif isinstance(value, FunctionType):
        yield from _function(value, seen)
    elif isinstance(value, type):
        yield value.__qualname__
    elif isinstance(getattr(value, "hash", None), str):
        yield value.hash
    elif dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        yield type(value).__qualname__
        yield from _bound({name: getattr(value, name) for name in names}, seen)
    elif isinstance(value, re.Pattern):
        yield repr((value.pattern, value.flags))
    elif hasattr(value, "to_dict"):
        yield from _bound(value.to_dict(), seen)
    elif isinstance(value, Mapping):
        yield from _bound(value, seen)
    elif isinstance(value, list | tuple | set | frozenset):
        yield from _bound(dict(enumerate(value)), seen)
    else:
        raise TypeError(f"a {type(value).__name__} cannot be part of a stage's key")


def _bound(values: Mapping[Any, Any], seen: set[int]) -> Iterator[str]:
    for name, value in values.items():
        for part in _reached(value, seen):
            yield f"{name}={part}"


def _function(function: FunctionType, seen: set[int]) -> Iterator[str]:
    if id(function) in seen:
        return
    seen.add(id(function))
    if not (function.__module__ or "").startswith(PACKAGE) and _foreign(function):
        yield f"{function.__module__}.{function.__qualname__}"
        return
    yield f"{function.__qualname__}:{source_version(function)}"
    if function.__closure__:
        cells = (cell.cell_contents for cell in function.__closure__)
        yield from _bound(dict(zip(function.__code__.co_freevars, cells, strict=True)), seen)
    for name in sorted(set(_names(function.__code__)) & function.__globals__.keys()):
        value = function.__globals__[name]
        if not isinstance(value, ModuleType) and _describable(value):
            yield from _bound({name: value}, seen)


def _foreign(function: FunctionType) -> bool:
    """Whether a function belongs to an installed library, whose version is another matter."""
    return (
        "site-packages" in function.__code__.co_filename
        or (function.__module__ or "").partition(".")[0] in _STANDARD
    )


def _describable(value: Any) -> bool:
    """Globals that decide nothing by themselves (loggers, registries of modules) are left out."""
    return isinstance(
        value, (*PLAIN, FunctionType, functools.partial, type, re.Pattern, tuple, list, dict)
    ) or isinstance(getattr(value, "hash", None), str)


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


_STANDARD = frozenset(__import__("sys").stdlib_module_names)
