"""From the LaTeX of a short answer to a tree of lists, by our own grammar; nothing is evaluated.

Trees are JSON: ["num", "3/2"], ["sym", "x"], ["const", "pi"], ["+", terms], ["*", factors],
["/", a, b], ["^", a, b], ["neg", a], ["!", a], ["call", name, arguments],
["range", "[", ")", items], ["set", items], ["list", items], ["union", parts], ["matrix", rows],
["rel", signs, sides], ["based", digits, base]. A bracketed sequence keeps its brackets, so
(1,2) is not [1,2].
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from selfevo_jax.judge.math_tokens import FUNCTIONS, ParseError, Token, tokens

LONGEST, DEEPEST = 400, 60  # characters and nested groups of an answer that is parsed
Tree = list

_CONSTANTS = {r"\pi": "pi", r"\infty": "oo", "i": "i", "e": "e"}
_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi rho sigma "
    "tau phi varphi chi psi omega Gamma Delta Theta Lambda Sigma Phi Psi Omega"
).split()
_RELATIONS = {
    "=": "=",
    r"\lt": "<",
    r"\gt": ">",
    r"\le": "<=",
    r"\ge": ">=",
    r"\ne": "!=",
    r"\in": "in",
}
_CLOSERS = {"(": (")", "]"), "[": ("]", ")"), r"\{": (r"\}",)}
_PAIRED = {"|": ("|", "abs"), r"\lfloor": (r"\rfloor", "floor"), r"\lceil": (r"\rceil", "ceil")}
_MATRICES = {"pmatrix", "bmatrix", "matrix", "vmatrix", "Bmatrix", "smallmatrix", "array"}
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d])(?!,\d)")
_GROUPED = re.compile(r"(?<=\d)(?:,\\!|\{,\}|\\,|,\\,)(?=\d{3}(?!\d))")


class _Parser:
    """Recursive descent over the tokens; `percent` says what a percent sign divides by."""

    def __init__(self, text: str, percent: int, plus_minus: str):
        self.tokens = tokens(text)
        self.place, self.depth, self.bars = 0, 0, 0
        self.percent, self.plus_minus = percent, plus_minus

    def peek(self, ahead: int = 0) -> Token:
        place = self.place + ahead
        return self.tokens[place] if place < len(self.tokens) else ("end of text", "")

    def take(self, *signs: str) -> str | None:
        """The next token's text if it is one of these signs; moves past it."""
        kind, text = self.peek()
        if kind != "sign" or text not in signs:
            return None
        self.place += 1
        return text

    def need(self, *signs: str) -> str:
        taken = self.take(*signs)
        if taken is None:
            raise ParseError(f"{self.peek()[1]!r} where {signs[0]!r} should be")
        return taken

    def whole(self) -> Tree:
        tree = self.sequence()
        if self.place < len(self.tokens):
            raise ParseError(f"{self.peek()[1]!r} after the end")
        return tree

    def sequence(self) -> Tree:
        items = self.items()
        return items[0] if len(items) == 1 else ["list", items]

    def items(self) -> list[Tree]:
        found = [self.relation()]
        while self.take(","):
            found.append(self.relation())
        return found

    def relation(self) -> Tree:
        signs, sides = [], [self.union()]
        while sign := self.take(*_RELATIONS):
            signs.append(_RELATIONS[sign])
            sides.append(self.union())
        return ["rel", signs, sides] if signs else sides[0]

    def union(self) -> Tree:
        parts = [self.sum()]
        while self.take(r"\cup"):
            parts.append(self.sum())
        return parts[0] if len(parts) == 1 else ["union", parts]

    def sum(self) -> Tree:
        terms = [self.signed()]
        while sign := self.take("+", "-", r"\pm", r"\mp"):
            terms.append(self.with_sign(sign, self.product()))
        return terms[0] if len(terms) == 1 else ["+", terms]

    def signed(self) -> Tree:
        sign = self.take("+", "-", r"\pm", r"\mp")
        return self.with_sign(sign, self.signed() if sign else self.product())

    def with_sign(self, sign: str | None, term: Tree) -> Tree:
        if sign in (r"\pm", r"\mp"):
            same = (sign == r"\pm") == (self.plus_minus == "+")
            sign = "+" if same else "-"
        return ["neg", term] if sign == "-" else term

    def product(self) -> Tree:
        tree = self.power()
        while True:
            if self.take("*"):
                tree = ["*", [tree, self.factor()]]
            elif self.take("/"):
                tree = ["/", tree, self.factor()]
            elif self.starts_factor():
                tree = ["*", [tree, self.power()]]
            else:
                return tree

    def factor(self) -> Tree:
        return ["neg", self.factor()] if self.take("-") else self.power()

    def starts_factor(self) -> bool:
        kind, text = self.peek()
        if kind == "number" and self.place and self.tokens[self.place - 1][0] == "number":
            raise ParseError("two numbers side by side")
        if (kind, text) == ("sign", "|"):
            return self.bars == 0  # within bars the next bar closes
        return kind in ("letter", "begin", "number") or (kind == "sign" and text in _STARTS)

    def power(self) -> Tree:
        tree = self.atom()
        while True:
            if self.peek()[0] == "text":
                self.unit()
            elif self.take("^"):
                tree = self.exponent(tree)
            elif self.take(r"\circ"):
                pass  # a unit like any other
            elif self.take("!"):
                tree = ["!", tree]
            elif self.take("%"):
                tree = tree if self.percent == 1 else ["/", tree, ["num", str(self.percent)]]
            else:
                return tree

    def unit(self) -> None:
        """Words after a quantity are its unit and dropped, with an exponent that follows."""
        if self.peek()[1].lower() == "percent":
            self.tokens[self.place] = ("sign", "%")
            return
        self.place += 1
        if self.take("^"):
            self.argument()

    def exponent(self, base: Tree) -> Tree:
        if self.take(r"\circ"):
            return base
        if self.peek()[1] == "{" and self.peek(1)[1] == r"\circ" and self.peek(2)[1] == "}":
            self.place += 3
            return base
        minus = self.take("-")
        kind, text = self.peek()
        if kind == "number":  # all its digits: 2^10 outside LaTeX is 1024, never 2^1 times 0
            self.place += 1
            power = ["num", str(Fraction(text))]
        else:
            power = self.argument()
        return ["^", base, ["neg", power] if minus else power]

    def argument(self) -> Tree:
        r"""What a command or ^ takes: a group, or one digit or letter, as in \frac12."""
        if self.take("{"):
            tree = self.sequence()
            self.need("}")
            return tree
        kind, text = self.peek()
        if kind == "number" and len(text) > 1 and text.isdigit():
            self.tokens[self.place] = ("number", text[1:])
            return ["num", text[0]]
        return self.atom()

    def atom(self) -> Tree:
        kind, text = self.peek()
        self.place += 1
        self.depth += 1  # every way down leads through here
        if self.depth > DEEPEST:
            raise ParseError("nested too deeply")
        tree = self.atom_of(kind, text)
        self.depth -= 1
        return tree

    def atom_of(self, kind: str, text: str) -> Tree:
        if kind == "number":
            return self.number(text)
        if kind == "letter":
            return self.letter(text)
        if kind == "begin":
            return self.matrix(text)
        if kind == "sign" and text in _STARTS:
            return self.started(text)
        raise ParseError(f"{text!r} is no beginning of a quantity")

    def started(self, text: str) -> Tree:
        if text in _CLOSERS:
            return self.bracketed(text)
        if text == "{":
            self.place -= 1
            return self.argument()
        if text in (r"\frac", r"\binom"):
            pair = [self.argument(), self.argument()]
            return ["/", *pair] if text == r"\frac" else ["call", "binom", pair]
        if text == r"\sqrt":
            return self.root()
        if text in _PAIRED:
            return self.paired(*_PAIRED[text])
        if text[1:] in FUNCTIONS:
            return self.function(text[1:])
        return self.letter(text) if text[1:] in _GREEK else ["const", _CONSTANTS[text]]

    def bracketed(self, opener: str) -> Tree:
        if self.take(*_CLOSERS[opener]):
            return ["set", []] if opener == r"\{" else ["range", opener, ")", []]
        items = self.items()
        closer = self.need(*_CLOSERS[opener])
        if opener == r"\{":
            return ["set", items]
        matched = (opener, closer) in (("(", ")"), ("[", "]"))
        return items[0] if len(items) == 1 and matched else ["range", opener, closer, items]

    def paired(self, closer: str, name: str) -> Tree:
        self.bars += closer == "|"
        inside = self.sum()
        self.bars -= closer == "|"
        self.need(closer)
        return ["call", name, [inside]]

    def root(self) -> Tree:
        degree = ["num", "2"]
        if self.take("["):
            degree = self.sum()
            self.need("]")
        return ["^", self.argument(), ["/", ["num", "1"], degree]]

    def function(self, name: str) -> Tree:
        base, exponent = None, None
        if name == "log" and self.take("_"):
            base = self.argument()
        if self.take("^"):
            exponent = ["neg", self.argument()] if self.take("-") else self.argument()
        value = self.product() if self.peek()[1] not in ("(", "{", "[") else self.atom()
        given = value[3] if value[0] == "range" else [value]
        tree: Tree = ["call", name, [*given, base] if base else given]
        return ["^", tree, exponent] if exponent else tree

    def number(self, text: str) -> Tree:
        if self.take("_"):
            base = self.argument()
            if base[0] != "num":
                raise ParseError("a number with an index that is no base")
            return ["based", text, base[1]]
        whole = ["num", str(Fraction(text))]
        part = self.mixed_part() if text.isdigit() else None
        return ["+", [whole, part]] if part else whole

    def mixed_part(self) -> Tree | None:
        r"""The fraction of a mixed number: \frac13 after 2, or 1/3 after "2 "; else None."""
        start = self.place
        kinds = [self.peek(n)[0] for n in range(3)]
        if kinds[0] == "number" and self.peek(1)[1] == "/" and kinds[2] == "number":
            over, under = self.peek()[1], self.peek(2)[1]
            self.place += 3
            return ["/", ["num", over], ["num", under]] if (over + under).isdigit() else None
        if self.take(r"\frac"):
            part = ["/", self.argument(), self.argument()]
            if part[1][0] == part[2][0] == "num" and "/" not in part[1][1] + part[2][1]:
                return part
        self.place = start
        return None

    def letter(self, text: str) -> Tree:
        if self.take("_"):
            return ["sym", f"{text}_{_flat(self.argument())}"]
        follows = [self.peek(n) for n in range(3)]
        if text in ("f", "g", "h") and [follows[0][1], follows[2][1]] == ["(", ")"]:
            self.place += 3
            return ["call", text, [["sym", follows[1][1]]]]
        return ["const", _CONSTANTS[text]] if text in _CONSTANTS else ["sym", text]

    def matrix(self, kind: str) -> Tree:
        if kind not in _MATRICES:
            raise ParseError(f"the environment {kind[:30]!r}")
        rows: list[list[Tree]] = [[]]
        while self.peek() != ("end", kind):
            rows[-1].append(self.sum())
            if self.take("\\\\"):
                rows += [[]] if self.peek() != ("end", kind) else []
            elif not self.take("&") and self.peek() != ("end", kind):
                raise ParseError("a matrix that does not end")
        self.place += 1
        return ["matrix", rows]


_STARTS = {
    "(", "[", "{", "|", r"\{", r"\frac", r"\sqrt", r"\binom", r"\lfloor", r"\lceil", r"\pi",
    r"\infty",
    *("\\" + name for name in (*FUNCTIONS, *_GREEK)),
}  # fmt: skip


def _flat(tree: object) -> str:
    """A subscript as a plain name."""
    return "".join(map(_flat, tree[1:])) if isinstance(tree, list) else str(tree)


def readings(text: str) -> list[Tree]:
    """Every tree that the text may stand for; none when it is not in the grammar.

    "1,234" is a number or two; "10%" is ten (of the question's percent) or a tenth.
    """
    if len(text) > LONGEST:
        return []
    text = _GROUPED.sub("", text)
    joined = _THOUSANDS.sub(lambda m: m[0].replace(",", ""), text)
    bare = not any(bracket in text for bracket in "([{")
    texts = {joined, text} if bare else {text}
    percents = (1, 100) if "%" in text or "percent" in text else (1,)
    found: list[Tree] = []
    for written in sorted(texts):
        for percent in percents:
            tree = _parse(written, percent)
            found += [tree] if tree is not None and tree not in found else []
    return found


def _parse(text: str, percent: int) -> Tree | None:
    signs: Sequence[str] = "+-" if any(x in text for x in (r"\pm", r"\mp", "±")) else "+"
    try:
        trees = [_Parser(text, percent, sign).whole() for sign in signs]
    except ParseError:
        return None
    return trees[0] if len(trees) == 1 else ["list", trees]


def rational(tree: Tree, most_bits: int = 4096) -> Fraction | None:
    """The exact value of a tree of plain arithmetic; None for others and for huge ones."""
    kind = tree[0]
    if kind == "num":
        return Fraction(tree[1])
    if kind not in ("+", "*", "/", "neg", "^"):
        return None
    values = [rational(part) for part in (tree[1] if kind in "+*" else tree[1:])]
    if any(value is None for value in values):
        return None
    result = _compute(kind, values, most_bits)
    return result if result is not None and _bits(result) <= most_bits else None


def _compute(kind: str, values: list[Fraction], most_bits: int) -> Fraction | None:
    first, last = values[0], values[-1]
    if kind == "neg":
        return -first
    if kind == "+":
        return sum(values, Fraction(0))
    if kind == "*":
        return first * last
    if kind == "/":
        return first / last if last else None
    if last.denominator != 1 or abs(last) * _bits(first) > most_bits or (last < 0 and not first):
        return None
    return first ** int(last)


def _bits(value: Fraction) -> int:
    return max(value.numerator.bit_length(), value.denominator.bit_length())
