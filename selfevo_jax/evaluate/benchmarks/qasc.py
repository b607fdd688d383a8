"""QASC: eight-way science questions that join two facts.

`qasc` is answered in words, `qasc_choice` by the log-probability of the letter.
"""

from selfevo_jax.evaluate.benchmark import Benchmark, Choose, Shots
from selfevo_jax.evaluate.benchmarks.flan_cot import letter, lettered, question

LETTERS = "ABCDEFGH"
SPEC = lettered("qasc", LETTERS)
BENCHMARKS = (
    Benchmark(
        name="qasc_choice",
        data=SPEC.data,
        prompt=lambda row: f"{question(row)}\nAnswer:",
        target=lambda row: f"({letter(row)})",
        ask=Choose(
            choices=lambda row: [f"({x})" for x in LETTERS],
            gold=lambda row: LETTERS.index(letter(row)),
        ),
        shots=Shots(split="train"),
    ),
)
