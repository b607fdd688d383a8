"""MATH answers: the last box, normal forms, and 200 pairs with false friends among them."""

import json
import time

import pytest

from selfevo_jax.judge import math_check
from selfevo_jax.judge.math_check import MathChecker, last_boxed, normalise
from selfevo_jax.judge.math_parse import LONGEST, rational, readings

EQUAL = r"""
0.5 | 1/2
0.5 | \frac{1}{2}
\frac12 | \frac{1}{2}
\frac 9{20} | 9/20
\dfrac{5}{7} | \frac57
\tfrac37 | 3/7
-\frac{3}{5} | \frac{-3}{5}
-\frac{3}{5} | \frac{3}{-5}
-\frac{3}{5} | -0.6
.5 | 0.50
5.00 | 5
2,000 | 2000
75,\!075 | 75075
32{,}760 | 32760
90{,}900{,}909 | 90,900,909
1\,000\,000 | 1000000
\$3800 | 3800
\$2.50 | 2.5
\$ 10 | 10
10\% | 10
10\% | 0.1
10\% | \frac{1}{10}
10 percent | 10\%
55^\circ | 55
55^{\circ} | 55°
55 \text{ degrees} | 55^\circ
18 \text{ integers} | 18
864 \mbox{ inches}^2 | 864
5 cm | 5
\frac{3}{4}\pi\text{ inches} | 0.75\pi
x=5 | 5
x = \frac{3}{2} | 1.5
x \in [3,\infty) | [3,\infty)
f(x)=3x-2 | 3x - 2
x+1 | 1+x
3x-2 | -2+3x
7x(x-1)(x-2) | 7x^3-21x^2+14x
9c+6 | 3(3c+2)
\frac{x+2}{7} | \frac{1}{7}x+\frac27
\frac{x+2}{7} | (x+2)/7
\frac{2x-7}{(x+1)(x-2)} | \frac{2x-7}{x^2-x-2}
(x+1)^2 | x^2+2x+1
x^{-1} | \frac1x
x^{10} | x^{5}\cdot x^5
2\cdot 3 | 6
2\times 3x | 6x
xy | yx
x_1 + x_2 | x_2 + x_{1}
\sqrt{8} | 2\sqrt{2}
\sqrt2 | \sqrt{2}
\sqrt2 | 2^{1/2}
4096 \sqrt{2} | \sqrt{2}\cdot4096
\frac{\sqrt{5}}{5} | \frac{1}{\sqrt{5}}
\sqrt[3]{8} | 2
\sqrt[3]{16} | 2\sqrt[3]2
\sqrt{12} - \sqrt3 | \sqrt 3
2\sqrt{3}-2 | -2+2\sqrt{3}
\frac{1}{\sqrt{2}-1} | 1+\sqrt2
2 - 2 \sqrt{2} | 2(1-\sqrt2)
90 - \frac{25}{2}\pi | 90-12.5\pi
25\pi | \pi\cdot 25
25π | 25\pi
25 pi | 25\pi
-3 + 6i | 6i-3
i^2 | -1
(1+i)^2 | 2i
e^{i\pi} | -1
2^{2005} | 2\cdot2^{2004}
2^{10} | 1024
2^{10} | 2^10
x^{12} | x^12
3! | 6
\binom{5}{2} | 10
\log_2 8 | 3
\ln e | 1
\sin 30^\circ + 0 | \sin 30
\cos(\pi/3) | \frac12
\sin^2 x + \cos^2 x | 1
\tan\frac{\pi}{4} | 1
|-3| | 3
\left|-3\right| | 3
\lfloor 3.7 \rfloor | 3
2\frac{1}{3} | \frac73
2 1/3 | 7/3
-2\frac13 | -7/3
(6,7) | \left( 6, 7 \right)
(6,7) | (6, 14/2)
(0.5,\sqrt8) | (\frac12, 2\sqrt2)
[3,\infty) | \left[3, \infty\right)
[3,\infty) | [3,+\infty)
\left[ \frac{3}{2}, 2 \right) | [1.5,2)
(-\infty, \tfrac37] \cup [\tfrac35, \infty) | [3/5,\infty)\cup(-\infty,3/7]
-2,1 | 1,-2
1, -3 | 1,-3
1 and -3 | -3, 1
19 \text{ and }43 | 43, 19
2 + \sqrt{6}, 2 - \sqrt{6} | 2 \pm \sqrt{6}
\pm 3 | 3, -3
\{1,2,3\} | \{3,1,2\}
\{1,2\} | 1, 2
\{1,1,2\} | \{1,2\}
x=1, x=-3 | -3, 1
101,102 | 101, 102
\begin{pmatrix} 3/5 \\ 57/5 \end{pmatrix} | \begin{pmatrix} 0.6 \\ 11.4 \end{pmatrix}
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | \begin{bmatrix}1&2\\3&4\\\end{bmatrix}
\begin{pmatrix} -4/9 \\ 1/9 \end{pmatrix} | \begin{pmatrix} -\frac49 \\ \frac19 \end{pmatrix}
443_5 | 443_{5}
0.0011_{2} | 0.0011_2
10x - 4y - 5z - 20 = 0 | 20x-8y-10z=40
10x - 4y - 5z - 20 = 0 | 10x = 4y+5z+20
y = 2x+1 | 2x+1=y
x > 3 | 3 < x
1 < x \le 2 | 2 \ge x > 1
\text{Dana} | Dana
\text{Dana} | \textbf{dana}
\text{(E)} | E
\text{(E)} | (E)
(C) | \textbf{C}
\text{even} | even
3\text{.} | 3
12. | 12
$12$ | 12
\displaystyle\frac12 | 0.5
"""

UNEQUAL = r"""
15 | 5
0.333 | 1/3
3.14 | \pi
\frac{22}{7} | \pi
1 2 | 12
2 3 | 6
2,000 | 2.000
2,00 | 200
2000 | 200
10\% | 10.1
10\% | 1
0.1 | 10
-5 | 5
-\frac12 | \frac12
1/2 | 2/1
\frac{1}{23} | \frac{12}{3}
\frac123 | \frac{1}{23}
2\frac13 | \frac23
2^3 | 3^2
x+1 | x-1
x+1 | y+1
x^2 | 2x
(x+1)^2 | x^2+1
\frac{x+2}{7} | x+\frac27
\sqrt{8} | 2\sqrt{3}
\sqrt{8} | 8
\sqrt{x^2} | x
\sqrt{a+b} | \sqrt a + \sqrt b
\sqrt[3]{8} | \sqrt{8}
\sqrt2 | 1.414
\sqrt2 | 1.41421356237
3+2i | 3-2i
3+2i | 2+3i
i | 1
1-i | -(1+i)
2\pi | 2
25\pi | 25
\sin x | \cos x
\ln 10 | 1
\log_2 8 | \log_8 2
3! | 3
5! | 60
\binom{5}{2} | \frac52
|-3| | -3
\lfloor 3.7 \rfloor | 4
x=5 | y=5
x=5 | x=-5
x=5 | -5
10x-4y=0 | 0
10x-4y=0 | 10x+4y=0
y=2x+1 | y=2x-1
x>3 | x<3
x>3 | x\ge3
x>3 | 3
(1,2) | [1,2]
(1,2) | (2,1)
(1,2) | [1,2)
(1,2] | [1,2)
(1,2) | \{1,2\}
(1,2) | 1,2
(1,2) | 12
(1,2) | (1,2,3)
(1,2,3) | (1,3,2)
[3,\infty) | (3,\infty)
[3,\infty) | [3,-\infty)
(-\infty,3] | [3,\infty)
(0,1)\cup(2,3) | (0,3)
(0,1)\cup(2,3) | (0,1)
(0,1)\cup(2,3) | (0,1)\cup(2,3]
\infty | -\infty
\infty | 10^{100}
\{1,2\} | \{1,3\}
\{1,2\} | \{1,2,3\}
1,2 | 1
1,2 | 1,2,3
1,-2 | -1,2
1,2 | 12
\pm 3 | 3
\pm 3 | -3
2 \pm \sqrt6 | 2+\sqrt6
2 \pm \sqrt6 | -2 \pm \sqrt6
101,102 | 101, 103
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 2 \\ 1 \end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | \begin{pmatrix} 1 & 2 \end{pmatrix}
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | (1,2)
\begin{pmatrix} 1 \\ 2 \end{pmatrix} | 12
\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix} | \begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}
443_5 | 443
443_5 | 443_6
1202_3 | 12023
\text{Dana} | \text{Dan}
Dana | Adan
\text{(E)} | (F)
\text{even} | \text{odd}
\text{yes} | \text{no}
AB | BA
Monday | Sunday
2 | two
5^\circ | 50
5 | \text{none}
55^\circ | 55.5
0 | \emptyset
0 | -0.0001
10^{20} | 10^{20}+1
2^{2005} | 2^{2004}
12 | 12x
x | x_1
x_1 | x_2
"""


def pairs(table: str) -> list[tuple[str, str]]:
    return [tuple(line.split(" | ")) for line in table.strip().splitlines()]


@pytest.fixture(scope="module")
def checker():
    with MathChecker(seconds=20) as made:
        yield made


def test_there_are_two_hundred_pairs():
    assert len(pairs(EQUAL)) + len(pairs(UNEQUAL)) >= 200
    assert len(set(pairs(EQUAL) + pairs(UNEQUAL))) == len(pairs(EQUAL)) + len(pairs(UNEQUAL))


@pytest.mark.parametrize("a, b", pairs(EQUAL))
def test_equal(checker, a, b):
    assert checker.equal(a, b) is True and checker.equal(b, a) is True


@pytest.mark.parametrize("a, b", pairs(UNEQUAL))
def test_false_friends(checker, a, b):
    assert checker.equal(a, b) is False and checker.equal(b, a) is False


# ---- the data


def test_math_golds_equal_themselves_and_no_other(checker, shared_data):
    lines = (shared_data / "math/math_test.jsonl").read_text().splitlines()
    solutions = [json.loads(line)["solution"] for line in lines]
    golds = [last_boxed(solution) for solution in solutions]
    assert len(golds) == 350 and None not in golds
    assert [g for g in golds if not readings(g)] == [r"\text{Dana}", r"\text{(E)}"]
    assert {checker.check(s, g).name for s, g in zip(solutions, golds, strict=True)} == {"right"}
    for a, b in zip(golds, golds[1:] + golds[:1], strict=True):
        assert checker.equal(a, b) is (normalise(a) == normalise(b)), (a, b)


# ---- the answer in a reply


@pytest.mark.parametrize(
    "reply, answer",
    [
        (r"so \boxed{5}.", "5"),
        (r"\boxed{1} then \boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\text{a}\}b}", r"\text{a}\}b"),
        (r"\fbox{7}", "7"),
        (r"$\boxed 9$", "9"),
        (r"\boxed {8}", "8"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"\boxed{ 6 }", "6"),
        (r"\boxed{a\boxed{b}c}", "b"),
        ("no box", None),
        (r"\boxed", None),
        (r"\boxed{", None),
        ("\\boxed{" * 2000, None),
    ],
)
def test_last_boxed(reply, answer):
    assert last_boxed(reply) == answer


@pytest.mark.parametrize(
    "reply, name, parsed",
    [
        (r"I get \boxed{\frac{1}{2}}", "right", r"\frac{1}{2}"),
        ("The answer is 0.5.", "right", "0.5"),
        (r"\boxed{2}", "wrong", "2"),
        (r"\boxed{\sqrt{}}", "wrong", r"\sqrt{}"),
        (r"first \boxed{0.5}, no: \boxed{3}", "wrong", "3"),
        ("", "unparsed", None),
        (r"\boxed{}", "unparsed", None),
        (" \n ", "unparsed", None),
    ],
)
def test_check(checker, reply, name, parsed):
    found = checker.check(reply, "1/2")
    assert (found.name, found.parsed, found.correct) == (name, parsed, name == "right")


# ---- hostile text


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('true')",
        "().__class__.__bases__",
        "9**9**9**9",
        r"\input{/etc/passwd}",
        "{" * 300,
        "(" * 190 + "1" + ")" * 190,
        "|" * 400,
        "\\sin" * 100,
        "\\sqrt" * 80,
        "-" * 200 + "2*" + "-" * 190 + "1",
        "1+" * 199 + "1",
        "x" * 100_000,
        "\\frac" * 80,
        "^" * 400,
        "\x00\ud800",
        "-" * 399 + "1",
    ],
)
def test_hostile_answers_are_wrong_soon(checker, answer):
    began = time.monotonic()
    assert checker.check("\\boxed{" + answer + "}", "17").name in ("wrong", "unparsed")
    assert time.monotonic() - began < 5


def test_what_takes_too_long_is_a_timeout_and_the_next_is_judged():
    with MathChecker(seconds=1.5) as checker:
        began = time.monotonic()
        assert checker.check(r"\boxed{2^{3^{20}}x}", "x").name == "timeout"
        assert time.monotonic() - began < 60
        assert checker.check(r"\boxed{(10^9)!!}", "x").name == "timeout"
        assert checker.check(r"\boxed{1+x}", "x+1").name == "right"


def test_closing_ends_the_child():
    checker = MathChecker(seconds=20)
    assert checker.equal("x+x", "2x")
    child = checker._child
    assert child.poll() is None
    checker.close()
    assert child.poll() is not None
    assert checker.equal("x+y", "y+x")  # starts another
    checker.close()


def test_plain_fractions_need_no_child():
    checker = MathChecker()
    assert checker.equal("0.75", r"\frac{3}{4}") and not checker.equal("0.75", "0.76")
    assert checker._child is None


def test_huge_powers_are_not_computed_here():
    (tree,) = readings("9^{9^{9}}")
    assert rational(tree) is None
    assert rational(readings("2^{-3}")[0]) == 0.125
    assert rational(readings("0^{-1}")[0]) is None and rational(readings("1/0")[0]) is None
    assert readings("1" * (LONGEST + 1)) == []


def test_a_child_that_does_not_start_is_a_timeout(monkeypatch):
    monkeypatch.setattr(math_check, "START_SECONDS", 1e-3)
    with MathChecker() as checker:
        assert checker.equal("x+x", "2x") is None
    monkeypatch.undo()
    with MathChecker() as checker:
        assert checker.equal("x+x", "2x")
