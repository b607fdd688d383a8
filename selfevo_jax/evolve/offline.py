"""Training on what is there already: a file of preferences, of answers, or of labelled answers.

What TRL's DPO, SFT and KTO trainers do (Rafailov et al., 2023, arXiv:2305.18290; Ethayarajh et
al., 2024, arXiv:2402.01306), as a run: so that people's data and a model's own can be compared at
one budget, and either goes on from the other's adapter.
"""

from functools import partial
from typing import Any

from selfevo_jax.evolve.lessons import data_row
from selfevo_jax.evolve.run import DataRow, Policy, Run

TURNS = ("last", "all")


def defaults() -> dict[str, Any]:
    """This method's own settings."""
    return {
        "data": {
            "source": "",  # FILE.jsonl | hf:NAME[:SPLIT] | tfds:NAME[:SPLIT], in TRL's formats
            "turns": "last",  # of the assistant in a conversation, what is learned: last | all
        }
    }


def offline(run: Run) -> Policy:
    """Evaluate, train on every row, evaluate."""
    c = run.config
    run.check_choices("data.turns", [c.data.turns], TURNS)
    run.check_given("data.source", "FILE.jsonl, hf:NAME:SPLIT or tfds:NAME:SPLIT")
    base = run.base()
    run.evaluate(base)
    for _ in run.rounds(1):
        taken = partial(data_row, turns=c.data.turns, pairs=run.learns_pairs)
        rows = run.examples("data", c.data.source, taken, DataRow)
        policy = run.train(rows, start=base)
        run.evaluate(policy)
    return policy
