r"""MATH: competition problems, marked by mathematical equality with the boxed answer.

Hendrycks et al. 2021, "Measuring Mathematical Problem Solving With the MATH Dataset".
`hendrycks_math` and `minerva_math` (four examples of Lewkowycz et al. 2022, "Solving Quantitative
Reasoning Problems with Language Models", appendix D) have the harness's wordings. Their reading
"none" takes the answer from where the harness takes it; "final" (ours) from the last box or the
final answer. Equality is ours (`judge/math_check.py`) throughout: it accepts more than strings.
"""

from dataclasses import replace
from functools import lru_cache

from selfevo_jax.evaluate.benchmark import Benchmark, Generate, Reading, Shots
from selfevo_jax.evaluate.data import Data, Row, divided
from selfevo_jax.evaluate.file_task import FileSpec, by_gold
from selfevo_jax.evaluate.readings import checked, found
from selfevo_jax.judge.checkers import Check
from selfevo_jax.judge.math_check import MathChecker, last_boxed

SUBJECTS = (
    "algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory",
    "prealgebra", "precalculus",
)  # fmt: skip
DATA = Data(
    files={"test": "math/math_test.jsonl"},
    fields={"problem": str, "solution": str},
    source="github.com/hendrycks/math, licence MIT",
    hub=("EleutherAI/hendrycks_math", SUBJECTS),
)
SAID = r"Final Answer: The final answer is(.*?). I hope it is correct\."
ENDING = "Final Answer: The final answer is ${}$. I hope it is correct."
EXAMPLES = (
    (
        r"Find the domain of the expression  $\frac{\sqrt{x-2}}{\sqrt{5-x}}$.",
        r"The expressions inside each square root must be non-negative. Therefore, $x-2 \ge 0$, so "
        r"$x\ge2$, and $5 - x \ge 0$, so $x \le 5$. Also, the denominator cannot be equal to zero, "
        r"so $5-x>0$, which gives $x<5$. Therefore, the domain of the expression is "
        r"$\boxed{[2,5)}$.",
    ),
    (
        r"If $\det \mathbf{A} = 2$ and $\det \mathbf{B} = 12,$ then find "
        r"$\det (\mathbf{A} \mathbf{B}).$",
        r"We have that $\det (\mathbf{A} \mathbf{B}) = (\det \mathbf{A})(\det \mathbf{B}) = "
        r"(2)(12) = \boxed{24}.$",
    ),
    (
        "Terrell usually lifts two 20-pound weights 12 times. If he uses two 15-pound weights "
        "instead, how many times must Terrell lift them in order to lift the same total weight?",
        r"If Terrell lifts two 20-pound weights 12 times, he lifts a total of "
        r"$2\cdot 12\cdot20=480$ pounds of weight.  If he lifts two 15-pound weights instead for "
        r"$n$ times, he will lift a total of $2\cdot15\cdot n=30n$ pounds of weight.  Equating "
        "this to 480 pounds, we can solve for $n$:\n"
        "\\begin{align*}\n30n&=480\\\\\n\\Rightarrow\\qquad n&=480/30=\\boxed{16}\n\\end{align*}",
    ),
    (
        "If the system of equations\n\n\\begin{align*}\n6x-4y&=a,\\\\\n6y-9x &=b.\n"
        "\\end{align*}has a solution $(x, y)$ where $x$ and $y$ are both nonzero,\n"
        r"find $\frac{a}{b},$ assuming $b$ is nonzero.",
        "If we multiply the first equation by $-\\frac{3}{2}$, we obtain\n\n"
        "$$6y-9x=-\\frac{3}{2}a.$$Since we also know that $6y-9x=b$, we have\n\n"
        "$$-\\frac{3}{2}a=b\\Rightarrow\\frac{a}{b}=\\boxed{-\\frac{2}{3}}.$$",
    ),
)


@lru_cache(maxsize=1)
def checker() -> MathChecker:
    """The one checker of this process; its child ends with it."""
    return MathChecker()


def gold(row: Row) -> str:
    """The boxed answer of the solution. Raises ValueError where there is none."""
    answer = last_boxed(row["solution"])
    if answer is None or not answer.strip():
        raise ValueError("the solution has no \\boxed answer")
    return answer


def _check(text: str, answer: str) -> Check:
    verdict = checker().check(text, answer)
    return Check(float(verdict.correct), verdict.correct, verdict.parsed)


def _equal(answer: str | None, row: Row) -> Reading:
    right = answer is not None and checker().equal(answer[:2000], gold(row)) is True
    return Reading(answer, {"exact_match": float(right)})


def between_dollars(text: str, row: Row) -> Reading:
    """The harness's reading: from the first dollar sign to the last, else all of the reply."""
    first, last = text.find("$"), text.rfind("$")
    answer = text[first + 1 : last] if first < last else text
    return _equal(answer.strip() or None, row)


def said_at_the_end(text: str, row: Row) -> Reading:
    """The harness's reading of `minerva_math`: what the closing sentence of the examples says."""
    return _equal(found(SAID, f"{text}I hope it is correct."), row)


_FINAL = checked(lambda text, row: _check(text, gold(row)))


def _worked(row: Row) -> str:
    """The solution, and for an example the sentence that replies are read from."""
    answer = gold(row)
    return f"{row['solution']}\n{ENDING.format(answer)}" if "example" in row else answer


SPEC = FileSpec(
    name="math",
    data=replace(
        DATA,
        files=divided(DATA.files["test"]),
        divide=lambda row: row["problem"],
    ),
    question=lambda row: row["problem"],
    gold=gold,
    check=by_gold(_check),
    style="boxed",
    max_new_tokens=512,
)
BENCHMARKS = (
    Benchmark(
        name="hendrycks_math",
        data=DATA,
        prompt=lambda row: f"Problem: {row['problem']}\nAnswer:",
        target=gold,
        ask=Generate({"none": between_dollars, "final": _FINAL}, stop=("Problem:",)),
        version="1.0",
    ),
    Benchmark(
        name="minerva_math",
        data=DATA,
        prompt=lambda row: f"Problem:\n{row['problem']}\n\nSolution:",
        target=_worked,
        ask=Generate({"none": said_at_the_end, "final": _FINAL}, stop=("Problem:",)),
        num_fewshot=4,
        shots=Shots(
            rows=tuple({"problem": p, "solution": s, "example": True} for p, s in EXAMPLES),
            pick="first",
        ),
        version="3.1",
    ),
)
