"""StrategyQA: yes/no questions whose steps are not in the question.

`strategyqa` is answered in words, `strategyqa_choice` by the log-probability of "no" and "yes".
"""

from selfevo_jax.evaluate.benchmark import Benchmark, Choose, Shots
from selfevo_jax.evaluate.benchmarks.flan_cot import question, word, yes_or_no

SPEC = yes_or_no("strategyqa", ending=" Answer yes or no.")
CHOICES = ("no", "yes")
BENCHMARKS = (
    Benchmark(
        name="strategyqa_choice",
        data=SPEC.data,
        prompt=lambda row: f"Question: {question(row)}\nAnswer:",
        target=word,
        ask=Choose(choices=lambda row: CHOICES, gold=lambda row: CHOICES.index(word(row))),
        shots=Shots(split="train"),
    ),
)
