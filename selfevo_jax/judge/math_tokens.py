"""The tokens of a LaTeX answer: one spelling for commands that mean the same, spacing dropped."""

import re

Token = tuple[
    str, str
]  # (kind, text); kinds: number, sign (commands too), letter, text, begin, end

_TOKEN = re.compile(
    r"\\(?:text|mbox|textbf|textit|mathrm|mathbf)\s*\{(?P<text>[^{}]*)\}"
    r"|\\begin\{(?P<begin>\w+)\*?\}(?:\{[lcr|]*\})?|\\end\{(?P<end>\w+)\*?\}"
    r"|(?P<number>[0-9]+\.[0-9]+|[0-9]+|\.[0-9]+)|(?P<command>\\[A-Za-z]+|\\.)"
    r"|(?P<word>[A-Za-z]+)|(?P<space>\s+)|(?P<sign>.)"
)
_SKIPPED = {
    r"\!", r"\,", r"\;", r"\:", "\\ ", "~", r"\quad", r"\qquad", r"\left", r"\right", r"\big",
    r"\Big", r"\bigg", r"\Bigg", r"\displaystyle", "$", r"\$", r"\(", r"\)", r"\[", r"\]",
}  # fmt: skip
_SAME = {
    r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\dbinom": r"\binom",
    r"\tbinom": r"\binom", r"\times": "*", r"\cdot": "*", r"\ast": "*", "×": "*", "·": "*",
    r"\div": "/", "÷": "/", r"\leq": r"\le", r"\geq": r"\ge", "≤": r"\le", "≥": r"\ge",
    "<": r"\lt", ">": r"\gt", r"\neq": r"\ne", "≠": r"\ne", "∈": r"\in", "∪": r"\cup", "π": r"\pi",
    "∞": r"\infty", "√": r"\sqrt", "±": r"\pm", "−": "-", "–": "-", "°": r"\circ",
    r"\degree": r"\circ", r"\lbrace": r"\{", r"\rbrace": r"\}", r"\lvert": "|", r"\rvert": "|",
    r"\vert": "|", r"\%": "%", "pi": r"\pi", "sqrt": r"\sqrt", "infty": r"\infty",
    "infinity": r"\infty", ";": ",",
}  # fmt: skip
FUNCTIONS = {
    "sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh",
    "log", "ln", "exp", "gcd", "lcm", "max", "min",
}  # fmt: skip
UNITS = set(
    "cm mm km kg mg ml ft yd mi mph sec min hr hrs inch inches foot feet yard yards mile miles "
    "meter meters metre metres centimeter centimeters second seconds minute minutes hour hours "
    "day days week weeks month months year years degree degrees radian radians dollar dollars "
    "cent cents unit units square cubic percent gram grams pound pounds liter liters integers "
    "ways".split()
)


class ParseError(Exception):
    """The text is not in the grammar; it can still be compared as a string."""


def tokens(text: str) -> list[Token]:
    """(kind, text) pairs of an answer: number, sign (commands too), letter, text, begin, end."""
    found: list[Token] = []
    for match in _TOKEN.finditer(text):
        kind, written = match.lastgroup or "text", match[match.lastgroup or 0]
        if kind == "space" or written in _SKIPPED:
            continue
        if kind in ("command", "sign"):
            found.append(("sign", _SAME.get(written, written)))
        elif kind == "word":
            found += _word(written)
        elif kind == "text":
            found += _text(written)
        else:
            found.append((kind, written))
    return found


def _word(word: str) -> list[Token]:
    """Letters without a backslash: a function, a unit, one or two variables, or no mathematics."""
    if word.lower() in ("and", "or"):
        return [("sign", ",")]
    if word.lower() in UNITS:
        return [("text", word)]
    if word in FUNCTIONS or word in _SAME:
        return [("sign", _SAME.get(word, "\\" + word))]
    if len(word) > 2 or (len(word) == 2 and word.isupper()):
        raise ParseError(f"the word {word[:30]!r}")
    return [("letter", letter) for letter in word]


def _text(content: str) -> list[Token]:
    if content.strip().lower() in ("and", "or", ","):
        return [("sign", ",")]
    return [("letter", content)] if len(content) == 1 else [("text", content.strip())]
