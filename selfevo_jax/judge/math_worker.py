"""The child process of `math_check`: answers whether two trees are equal. Run by path, with sympy.

Reads one JSON line per question, [[tree, tree], ...], and writes true or false: whether any pair
is equal. It holds nothing of value, its memory is bounded, and who asks kills it when it takes
too long. Trees are those of `math_parse`; sympy objects are built node by node, so no text is
evaluated.
"""

import json
import random
import resource
import sys

import sympy

DIGITS = 40  # of the numeric comparison
CLOSE = sympy.Float(10) ** -25
TRIALS, NEEDED = 12, 4  # random points tried, and points that must agree
CALLS = {
    **{name: getattr(sympy, name) for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh",
       "cosh", "tanh", "exp", "gcd", "lcm")},
    "arcsin": sympy.asin, "arccos": sympy.acos, "arctan": sympy.atan, "log": sympy.log,
    "ln": sympy.log, "max": sympy.Max, "min": sympy.Min, "abs": sympy.Abs, "floor": sympy.floor,
    "ceil": sympy.ceiling, "binom": sympy.binomial,
}  # fmt: skip
CONSTANTS = {"pi": sympy.pi, "oo": sympy.oo, "i": sympy.I, "e": sympy.E}
FLIPPED = {">": "<", ">=": "<="}


class Incomparable(Exception):
    """A tree that is no single quantity."""


def build(tree):
    """The sympy expression of a quantity."""
    kind = tree[0]
    if kind == "num":
        return sympy.Rational(*map(int, tree[1].split("/")))
    if kind == "sym":
        return sympy.Symbol(tree[1])
    if kind == "const":
        return CONSTANTS[tree[1]]
    if kind == "call":
        arguments = [build(part) for part in tree[2]]
        return CALLS.get(tree[1], sympy.Function(tree[1]))(*arguments)
    if kind in "+*":
        return (sympy.Add if kind == "+" else sympy.Mul)(*map(build, tree[1]))
    if kind == "!":
        return sympy.factorial(build(tree[1]))
    if kind == "neg":
        return -build(tree[1])
    if kind in "/^":
        left, right = build(tree[1]), build(tree[2])
        return left / right if kind == "/" else left**right
    raise Incomparable(kind)


def equal(a, b) -> bool:
    """Whether two trees say the same: sets and bare lists in any order, brackets must match."""
    if a == b:
        return True
    a, b = _side(a, b), _side(b, a)
    kinds = {a[0], b[0]}
    if kinds <= {"list", "set"}:
        return _same_members(a[1], b[1])
    if a[0] != b[0] and kinds & {"list", "set", "range", "union", "matrix", "rel", "based"}:
        return False
    if a[0] == "range":
        return a[1:3] == b[1:3] and _same_items(a[3], b[3])
    if a[0] == "union":
        return _same_members(a[1], b[1])
    if a[0] == "matrix":
        same_shape = [len(row) for row in a[1]] == [len(row) for row in b[1]]
        return same_shape and all(map(_same_items, a[1], b[1]))
    if a[0] == "rel":
        return _same_relation(a, b)
    return a[0] != "based" and _same_quantity(build(a), build(b))


def _side(tree, other):
    """`x = 5` says 5 to someone who says no more than a value."""
    if tree[0] != "rel" or other[0] == "rel" or tree[1] not in (["="], ["in"]):
        return tree
    return tree[2][1] if tree[2][0][0] in ("sym", "call") else tree


def _same_items(a, b) -> bool:
    return len(a) == len(b) and all(map(equal, a, b))


def _same_members(a, b) -> bool:
    """Same elements, whatever the order and repetition."""
    return all(any(equal(x, y) for y in b) for x in a) and all(
        any(equal(x, y) for x in a) for y in b
    )


def _same_relation(a, b) -> bool:
    (_, signs_a, a_sides), (_, signs_b, b_sides) = _ordered(a), _ordered(b)
    if signs_a != signs_b:
        return False
    if _same_items(a_sides, b_sides):
        return True
    if signs_a != ["="]:
        return False
    left, right = (build(x) - build(y) for x, y in (a_sides, b_sides))
    if left.free_symbols != right.free_symbols or not left.free_symbols:
        return _same_items(a_sides, b_sides[::-1])
    ratio = _ratio(left, right)
    return ratio is not None and _same_quantity(left, ratio * right)


def _ordered(relation):
    """A relation written with < only, from left to right."""
    _, signs, sides = relation
    if all(sign in FLIPPED for sign in signs):
        return ["rel", [FLIPPED[sign] for sign in reversed(signs)], sides[::-1]]
    return relation


def _ratio(left, right):
    """left / right at one point; None when it is no finite number other than zero."""
    point = {symbol: sympy.Rational(n * n + 3, 7) for n, symbol in enumerate(left.free_symbols, 2)}
    ratio = sympy.nsimplify((left / right).subs(point), rational=True)
    return ratio if ratio.is_finite and not ratio.is_zero else None


def _same_quantity(a, b) -> bool:
    """Equality of two expressions by their values at random points (Schwartz 1980)."""
    if a == b:
        return True
    if a.is_infinite or b.is_infinite:
        return False
    difference = a - b
    symbols = sorted(difference.free_symbols, key=str)
    generator, agreed = random.Random(0), 0
    for _ in range(TRIALS if symbols else 1):
        point = {x: sympy.Rational(generator.randint(-400, 400), 101) for x in symbols}
        gap, size = (x.subs(point).evalf(DIGITS) for x in (difference, a))
        if not (gap.is_number and size.is_number and gap.is_finite and size.is_finite):
            continue
        if sympy.Abs(gap) > CLOSE * (1 + sympy.Abs(size)):
            return False
        agreed += 1
    return agreed >= (NEEDED if symbols else 1)


def answer(pairs) -> bool:
    """Whether any of the pairs is equal; a pair that cannot be compared is not."""
    for a, b in pairs:
        try:
            if equal(a, b):
                return True
        except (ArithmeticError, TypeError, ValueError, AttributeError, Incomparable):
            continue
    return False


def main(memory_bytes: int) -> None:
    """Answers questions until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
