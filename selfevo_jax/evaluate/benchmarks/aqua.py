"""AQuA: algebra word problems with five options, reasoned out and marked by the letter."""

from selfevo_jax.evaluate.benchmarks.flan_cot import lettered

SPEC = lettered("aqua", "ABCDE")
BENCHMARKS = ()
