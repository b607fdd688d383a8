"""One small file per benchmark: its rows, prompts, ways of asking and of reading replies.

Each module has `BENCHMARKS`, and a `SPEC` where a run can draw its questions from the same rows.
"""
