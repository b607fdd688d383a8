"""Values between a program and its tests: plain data as JSON, all else as a numbered reference.

Only what `decode` builds can reach the tests, and it builds exact built-in types: no object whose
`__eq__` the program wrote is ever compared in the tests' process. Nothing here runs what it reads.
"""

import json
import os
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

DEPTH = 100  # deeper nesting is not sent
SMALL = 1 << 63  # larger integers travel as hexadecimal: decimal text is slow and bounded
HEADER = struct.Struct("!I")

Refer = Callable[[object], object]  # an object that is no data -> what is sent in its place
Resolve = Callable[[list], object]  # what was sent in its place -> the object


class Unsupported(Exception):
    """A value or an operation that cannot pass between a program and its tests."""


class Broken(Exception):
    """The other end is gone, or sent what it never should."""


SEQUENCES: dict[str, Callable] = {
    "list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "deque": deque,
    "keys": lambda keys: dict.fromkeys(keys).keys(), "items": lambda pairs: dict(pairs).items(),
}  # fmt: skip
MAPPINGS: dict[str, Callable] = {"dict": dict, "Counter": Counter, "OrderedDict": OrderedDict}
TEXTS: dict[str, tuple[Callable, Callable]] = {
    "int": (lambda x: hex(x), lambda text: int(text, 16)),
    "float": (lambda x: float(x).hex(), float.fromhex),
    "bytes": (lambda x: x.hex(), bytes.fromhex),
    "bytearray": (lambda x: x.hex(), bytearray.fromhex),
    "Fraction": (str, Fraction),
    "Decimal": (str, Decimal),
}
# Most special first: a subclass travels as the first of these that it is.
KINDS = (
    (bool, "bool"), (int, "int"), (float, "float"), (str, "str"), (bytes, "bytes"),
    (bytearray, "bytearray"), (complex, "complex"), (list, "list"), (tuple, "tuple"), (set, "set"),
    (frozenset, "frozenset"), (Counter, "Counter"), (OrderedDict, "OrderedDict"), (dict, "dict"),
    (deque, "deque"), (range, "range"), (Fraction, "Fraction"), (Decimal, "Decimal"),
    (type({}.keys()), "keys"), (type({}.items()), "items"),
)  # fmt: skip


def encode(value: object, refer: Refer, depth: int = 0) -> object:
    """The JSON form of `value`: null, booleans, strings, small integers, or [kind, content]."""
    if depth > DEPTH:
        raise Unsupported(f"data nested more than {DEPTH} levels deep")
    if value is None:
        return None
    kind = next((name for base, name in KINDS if isinstance(value, base)), None)
    if kind in SEQUENCES:
        return [kind, [encode(item, refer, depth + 1) for item in value]]
    if kind in MAPPINGS:
        pairs = list(value.items())
        return [kind, [[encode(x, refer, depth + 1) for x in pair] for pair in pairs]]
    return refer(value) if kind is None else _encode_scalar(kind, value)


def _encode_scalar(kind: str, value) -> object:
    if kind == "bool" or (kind == "int" and -SMALL < value < SMALL):
        return bool(value) if kind == "bool" else int(value)
    if kind == "str":
        return "".join([value])
    if kind == "complex":
        return [kind, [value.real.hex(), value.imag.hex()]]
    if kind == "range":
        return [kind, [hex(value.start), hex(value.stop), hex(value.step)]]
    return [kind, TEXTS[kind][0](value)]


def decode(sent: object, resolve: Resolve) -> object:
    """The value of a JSON form. Raises `Broken` for what `encode` cannot have written."""
    if sent is None or isinstance(sent, bool | int | str):
        return sent
    try:
        kind, content = sent[0], sent[1]
        if kind in SEQUENCES:
            return SEQUENCES[kind]([decode(item, resolve) for item in content])
        if kind in MAPPINGS:
            pairs = [[decode(x, resolve) for x in pair] for pair in content]
            return _mapping(kind, pairs)
        if kind in TEXTS:
            return TEXTS[kind][1](content)
        if kind == "complex":
            return complex(*map(float.fromhex, content))
        if kind == "range":
            return range(*(int(text, 16) for text in content))
        return resolve(sent)
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError) as error:
        raise Broken(f"unreadable data: {type(error).__name__}") from error


def _mapping(kind: str, pairs: list) -> dict:
    filled = MAPPINGS[kind]()
    for key, value in pairs:  # not MAPPINGS[kind](pairs): Counter would count the pairs
        filled[key] = value
    return filled


def replace_content(old: object, new: object) -> None:
    """Makes a mutable `old` equal to `new` in place, as the program did to its own copy."""
    if isinstance(old, list | bytearray) and type(old) is type(new):
        old[:] = new
    elif isinstance(old, set | dict | deque) and type(old) is type(new):
        old.clear()
        getattr(old, "extend" if isinstance(old, deque) else "update")(new)


# ---- messages: four bytes of length, then JSON


def send(file: int, message: object, most: int) -> None:
    """Writes one message. Raises MemoryError over `most` bytes, `Broken` when nobody reads."""
    data = json.dumps(message).encode()
    if len(data) > most:
        raise MemoryError(f"a message of {len(data)} bytes; {most} are allowed")
    view = memoryview(HEADER.pack(len(data)) + data)
    while view:
        try:
            view = view[os.write(file, view) :]
        except OSError as error:
            raise Broken("the other process is gone") from error


def receive(file: int, most: int) -> object:
    """Reads one message. Raises `Broken` at the end of the stream or for what is no message."""
    (length,) = HEADER.unpack(_read(file, HEADER.size))
    if length > most:
        raise Broken(f"announced a message of {length} bytes; {most} are allowed")
    try:
        return json.loads(_read(file, length))
    except (ValueError, RecursionError) as error:
        raise Broken("a message that is not JSON") from error


def _read(file: int, count: int) -> bytes:
    parts: list[bytes] = []
    while count:
        try:
            part = os.read(file, min(count, 1 << 20))
        except OSError as error:
            raise Broken("the other process is gone") from error
        if not part:
            raise Broken("the other process is gone")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
