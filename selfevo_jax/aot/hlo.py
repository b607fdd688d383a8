"""What a compiled program moves, read from its optimised HLO text.

XLA's own cost analysis counts a loop's body once. Here every instruction is weighted with the
product of the trip counts of the loops around it: a loop whose condition compares its counter
with a constant runs that often, any other as often as the caller says. A conditional counts
with its cheapest branch (the others are rare ways out, as in cutting the vocabulary).

Bytes are those of HBM: a buffer that the compiler placed in on-chip memory (`S(1)` in its
layout) is free. A fusion that reads or writes a slice of an operand counts the slice. A kernel that
says what it moves is believed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field

_WIDTHS = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "bf16": 2,
    "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8,
}  # fmt: skip
COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute",
)  # fmt: skip
_FREE = {
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "opt-barrier",
}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # in place; the operand that is written
_TOLD = re.compile(r'"cost_estimate":\{[^}]*"bytes_accessed":"(\d+)"')
_NAMES = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")


@dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    type: str
    kind: str
    operands: tuple[str, ...]
    rest: str
    root: bool

    def called(self, role: str) -> list[str]:
        """The computations named under an attribute such as `body=` or `calls=`."""
        match = re.search(rf"\b{role}=(\{{[^}}]*\}}|%[\w.\-]+)", self.rest)
        return _NAMES.findall(match[1]) if match else []


Computation = dict[str, Instruction]


@dataclass
class Traffic:
    """What one chip moves: `hbm_bytes`, and per kind of collective (times, bytes sent)."""

    hbm_bytes: float = 0.0
    collectives: dict[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def collective_bytes(self) -> float:
        """Bytes that a chip sends to others."""
        return sum(sent for _, sent in self.collectives.values())

    def add(self, other: Traffic, times: float = 1.0) -> None:
        """Adds another program part that runs `times` times."""
        self.hbm_bytes += times * other.hbm_bytes
        for kind, (count, sent) in other.collectives.items():
            mine = self.collectives.get(kind, (0.0, 0.0))
            self.collectives[kind] = (mine[0] + times * count, mine[1] + times * sent)


def traffic(text: str, unknown_trips: float = 1.0) -> Traffic:
    """The traffic of one chip in one run of a compiled program (`compiled.as_text()`).

    `unknown_trips`: how often loops run whose count the program itself decides.
    """
    computations, entry = parse(text)
    return _Walk(computations, unknown_trips).total(entry)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """All computations of a module by name, and the name of the entry."""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith(" ") and "->" in line:
            name = re.match(r"(?:ENTRY )?%?([\w.\-]+)", line)[1]
            current = computations[name] = {}
            entry = name if line.startswith("ENTRY") else entry
        elif match := re.match(r"\s+(ROOT )?%([\w.\-]+) = (.*)", line):
            instruction = _instruction(match[2], match[3], bool(match[1]))
            current[instruction.name] = instruction
    return computations, entry


def array_bytes(type_text: str, *, hbm_only: bool = True) -> float:
    """Bytes of an array or tuple type; with `hbm_only` without buffers placed elsewhere."""
    total = 0.0
    for dtype, dims, layout in _ARRAY.findall(type_text):
        if dtype not in _WIDTHS or (hbm_only and re.search(r"S\([1-9]", layout)):
            continue
        count = 1
        for dim in filter(None, dims.split(",")):
            count *= int(dim)
        total += count * _WIDTHS[dtype]
    return total


class _Walk:
    """Adds up the computations of one module, each once."""

    def __init__(self, computations: dict[str, Computation], unknown_trips: float):
        self._computations, self._unknown = computations, unknown_trips
        self._totals: dict[str, Traffic] = {}

    def total(self, name: str) -> Traffic:
        if name not in self._totals:
            total, channels = Traffic(), set()
            for instruction in self._computations[name].values():
                self._add(total, self._computations[name], instruction, channels)
            self._totals[name] = total
        return self._totals[name]

    def _add(self, total, computation, instruction, channels) -> None:
        kind = instruction.kind
        if kind == "while":
            (body,), (condition,) = instruction.called("body"), instruction.called("condition")
            total.add(self.total(body), self._trips(condition))
        elif kind == "conditional":
            branches = instruction.called("branch_computations") or [
                *instruction.called("true_computation"), *instruction.called("false_computation")
            ]  # fmt: skip
            total.add(min(map(self.total, branches), key=lambda part: part.hbm_bytes))
        elif kind == "call":
            total.add(self.total(*instruction.called("to_apply")))
        elif kind == "async-start" or kind == "fusion":
            for name in instruction.called("calls"):
                # Their arrays are the fusion's own; only collectives inside are theirs alone.
                total.add(Traffic(0.0, self.total(name).collectives))
        base = kind.removesuffix("-start")
        if base in COLLECTIVES:
            self._add_collective(total, computation, instruction, base, channels)
        total.hbm_bytes += self._bytes(computation, instruction)

    def _add_collective(self, total, computation, instruction, kind, channels) -> None:
        channel = re.search(r"channel_id=(\d+)", instruction.rest)
        if channel and (kind, channel[1]) in channels:
            return  # another part of the same transfer
        channels.add((kind, channel[1] if channel else instruction.name))
        operands = sum(
            array_bytes(computation[name].type, hbm_only=False)
            for name in instruction.operands
            if name in computation
        )
        group = _group_size(instruction.rest)
        part = (group - 1) / group
        sent = {
            "all-gather": operands * (group - 1),
            "all-reduce": 2 * operands * part,
            "collective-permute": operands,
        }.get(kind, operands * part)
        total.add(Traffic(0.0, {kind: (1.0, sent)}))

    def _trips(self, condition: str) -> float:
        """The constant that a loop's counter is compared with, if that is what its condition is."""
        lines = self._computations[condition]
        root = next(line for line in lines.values() if line.root)
        for fused in root.called("calls"):
            constants = [lines[name] for name in root.operands if name in lines]
            constants = [line for line in constants if line.kind == "constant"]
            compares = [x for x in self._computations[fused].values() if x.kind == "compare"]
            if len(constants) == len(compares) == 1:
                return _constant(constants[0])
        if root.kind == "compare" and "direction=LT" in root.rest:
            bound = lines[root.operands[1]]
            if bound.kind == "constant":
                return _constant(bound)
        return self._unknown

    def _bytes(self, computation, instruction) -> float:
        kind = instruction.kind
        if kind in _FREE or kind.endswith(("-done", "-update")):
            return 0.0
        if kind == "slice-start":  # the tuple holds the whole source, of which a slice is read
            destination = [match[0] for match in _ARRAY.finditer(instruction.type)][1]
            read = array_bytes(destination, hbm_only=False)
            return self._if_hbm(computation, instruction, 0, read) + array_bytes(destination)
        if kind.endswith("-start"):
            return array_bytes(instruction.type)  # the tuple holds source and destination
        if kind in _SLICES:
            read = array_bytes(instruction.type, hbm_only=False)
            return self._if_hbm(computation, instruction, 0, read) + array_bytes(instruction.type)
        if kind in _UPDATES:
            update = _updated(computation, instruction)
            return 2 * update if array_bytes(instruction.type) else 0.0
        if kind == "fusion":
            return self._fusion_bytes(computation, instruction)
        if told := _TOLD.search(instruction.rest):
            return float(told[1])
        return array_bytes(instruction.type) + sum(
            array_bytes(computation[name].type) for name in instruction.operands
        )

    def _if_hbm(self, computation, instruction, index, count) -> float:
        return count if array_bytes(computation[instruction.operands[index]].type) else 0.0

    def _fusion_bytes(self, computation, instruction) -> float:
        inner = self._computations[instruction.called("calls")[0]]
        users = _users(inner)
        total = 0.0
        for line in inner.values():
            if line.kind == "parameter":
                index = int(re.match(r"\d+", line.rest)[0])
                whole = array_bytes(computation[instruction.operands[index]].type)
                total += min(whole, self._read(inner, users, line.name)) if whole else 0.0
        root = next(line for line in inner.values() if line.root)
        written = array_bytes(instruction.type)
        return total + (min(written, self._written(inner, root)) if written else 0.0)

    def _read(self, inner, users, name) -> float:
        """Bytes that a fused computation reads of one of its values."""
        total = 0.0
        for user in users[name]:
            if user.kind in _SLICES and user.operands[0] == name:
                total += array_bytes(user.type, hbm_only=False)
            elif user.kind == "bitcast":
                total += self._read(inner, users, user.name)
            elif user.kind in _UPDATES and user.operands[0] == name:
                pass  # written in place
            elif user.kind == "fusion":
                deeper = self._computations[user.called("calls")[0]]
                parameter = _parameter(deeper, user.operands.index(name))
                total += self._read(deeper, _users(deeper), parameter)
            else:
                return array_bytes(inner[name].type, hbm_only=False)
        return total

    def _written(self, inner, root) -> float:
        if root.kind in _UPDATES:
            return _updated(inner, root)
        if root.kind in ("bitcast", "tuple"):
            return sum(self._written(inner, inner[name]) for name in root.operands)
        if root.kind == "fusion":
            deeper = self._computations[root.called("calls")[0]]
            return self._written(deeper, next(line for line in deeper.values() if line.root))
        return array_bytes(root.type, hbm_only=False)


def _instruction(name: str, text: str, root: bool) -> Instruction:
    type_text, _, tail = _split_type(text)
    kind, _, tail = tail.partition("(")
    depth = end = 0
    for end, char in enumerate(tail):  # noqa: B007
        depth += (char == "(") - (char == ")")
        if depth < 0:
            break
    arguments = tail[:end]
    # A parameter's number and a constant's value stand where others have operands.
    rest = arguments + tail[end:] if kind in ("parameter", "constant") else tail[end:]
    operands = tuple(_NAMES.findall(arguments))
    return Instruction(name, type_text, kind.strip(), operands, rest, root)


def _split_type(text: str) -> tuple[str, str, str]:
    """(type, separator, rest) of an instruction's right-hand side."""
    if not text.startswith("("):
        return text.partition(" ")
    depth = 0
    for end, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return text[: end + 1], " ", text[end + 2 :]
    return text, "", ""


def _users(computation: Computation) -> dict[str, list[Instruction]]:
    users = defaultdict(list)
    for line in computation.values():
        for name in set(line.operands):
            users[name].append(line)
    return users


def _updated(computation: Computation, line: Instruction) -> float:
    """Bytes that an instruction writes into an array that it takes over."""
    return array_bytes(computation[line.operands[_UPDATES[line.kind]]].type, hbm_only=False)


def _parameter(computation: Computation, index: int) -> str:
    return next(
        line.name
        for line in computation.values()
        if line.kind == "parameter" and re.match(rf"{index}\b", line.rest)
    )


def _constant(line: Instruction) -> float:
    return float(re.match(r"-?\d+", line.rest)[0])


def _group_size(rest: str) -> int:
    """Chips that take part together: `replica_groups={{0,1},..}` or `[groups,size]<=[..]`."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(match[1])
    if match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return match[1].count(",") + 1
    return 2
