"""CREAK: is a claim about the world true? Answered in words."""

from selfevo_jax.evaluate.benchmarks.flan_cot import yes_or_no

SPEC = yes_or_no("creak")
BENCHMARKS = ()
