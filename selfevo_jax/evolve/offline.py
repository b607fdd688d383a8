"""Training on what is there already: a file of preferences, of answers, or of labelled answers.

What TRL's DPO, SFT and KTO trainers do (Rafailov et al., 2023, arXiv:2305.18290; Ethayarajh et
al., 2024, arXiv:2402.01306), as a run: so that people's data and a model's own can be compared at
one budget, and either goes on from the other's adapter.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.run import DataRow, Policy, Run
from selfevo_jax.text.datasets import read_examples

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
    if not c.data.source:
        raise UserError(
            "there is nothing to train on: give --config.data.source=FILE.jsonl, "
            "hf:NAME:SPLIT or tfds:NAME:SPLIT"
        )
    base = run.base()
    run.evaluate(base)
    for _ in run.rounds(1):
        taken = partial(data_row, turns=c.data.turns)
        rows = run.read("data", c.data.source, taken, DataRow, rows=read_examples)
        policy = run.train(rows, start=base)
        run.evaluate(policy)
    return policy


def data_row(row: Mapping[str, Any], turns: str) -> DataRow:
    """A row as a record. Raises UserError for a prompt alone, which teaches nothing."""
    messages, completions = tuple(row["messages"]), tuple(row["completions"])
    if turns == "all" and len(completions) == 1 and "label" not in row:
        messages, completions = (*messages, {"role": "assistant", "content": completions[0]}), ()
    if not completions and messages[-1]["role"] != "assistant":
        raise UserError(f"record {row['id']}: it is a prompt alone, there is nothing to learn")
    return DataRow.make(
        source_id=row["id"], messages=messages, completions=completions, label=row.get("label")
    )
