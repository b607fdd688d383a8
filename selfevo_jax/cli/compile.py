"""`selfevo compile`: what a step costs on TPUs or cards that are not here, by compiling it for
them."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import fields

from selfevo_jax.cli.common import nothing_left, verb
from selfevo_jax.errors import UserError

GIB = 2**30
TABLE_MODELS = (
    "open_llama_3b", "open_llama_7b", "open_llama_13b", "llama3_8b", "qwen25_7b", "gemma2_9b",
)  # fmt: skip
TABLE_TOPOLOGIES = ("v4-8", "v4-32", "v5e-16", "v5e-64", "v5p-8", "v5p-32", "v6e-8", "v6e-64")
TABLE_STEPS = ("sft_lora", "dpo_lora", "sft_full", "decode")


def add(verbs) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "compile",
        act,
        "Compile a step for TPUs or cards that are not here: does it fit?",
        "selfevo compile --preset=llama3_8b --step=dpo_lora --topology=v5e:4x4",
    )
    parser.add_argument("--preset", help="a model's shape, such as llama3_8b")
    parser.add_argument(
        "--step", default="dpo_lora", help="sft_lora | dpo_lora | sft_full | prefill | decode"
    )
    parser.add_argument("--topology", help="v5e:4x4, v5e-16, v4-32, h100:8, ...")
    parser.add_argument("--chips", help="the slice to plan for, such as v5e:16; with --plan")
    parser.add_argument(
        "--mesh", default="1,-1,1", help="data,fsdp,tensor[,sequence] (%(default)s)"
    )
    parser.add_argument("--batch", type=int, default=64, help="rows, all chips (%(default)s)")
    parser.add_argument("--micro", type=int, help="rows at a time (all of the batch)")
    parser.add_argument("--seq", type=int, default=2048, help="tokens of a row (%(default)s)")
    parser.add_argument("--dtype", default="bf16", help="bf16 | float32 (%(default)s)")
    parser.add_argument("--quant", help="the base in few bits: nf4 | int8 | fp8 (no)")
    parser.add_argument("--remat", default="full", help="none | dots | full (%(default)s)")
    parser.add_argument("--rank", type=int, default=16, help="of the adapter (%(default)s)")
    parser.add_argument(
        "--chunk", type=int, default=256, help="prompt tokens at a time, prefill (%(default)s)"
    )
    parser.add_argument("--shardings", action="store_true", help="list what each array gets")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--plan", action="store_true", help="search mesh and micro-batch")
    mode.add_argument("--table", metavar="FILE", help="make the table of docs/pods.md; goes on")


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    # A program is compiled for chips that are elsewhere: this machine's own are left alone.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    if arguments.table:
        from selfevo_jax.aot.table import make_table

        make_table(arguments.table, TABLE_MODELS, TABLE_STEPS, TABLE_TOPOLOGIES, _say)
        return 0
    case = _case(arguments)
    if arguments.plan:
        return _plan(case, arguments.json)
    return _compile(case, arguments)


def _case(arguments: argparse.Namespace):
    from selfevo_jax.aot.steps import Case

    if not arguments.preset:
        raise UserError("compile needs a model: --preset llama3_8b")
    if arguments.chips and not arguments.plan:
        raise UserError("--chips goes with --plan; without it name the slice by --topology")
    where = (arguments.chips or arguments.topology) if arguments.plan else arguments.topology
    if not where:
        raise UserError(
            "compile needs a slice: --topology v5e:4x4"
            if not arguments.plan
            else "--plan needs a slice: --chips v5e:16"
        )
    given = {field.name: getattr(arguments, field.name) for field in fields(Case)}
    return Case(**{**given, "topology": where})


def _compile(case, arguments: argparse.Namespace) -> int:
    from selfevo_jax.aot.cost import measure
    from selfevo_jax.aot.placement import placements, warnings
    from selfevo_jax.aot.plan import fitting

    for line in warnings(case):
        _say(f"warning: {line}")
    report = measure(case)
    remedy = None if report.fits else fitting(case, _say)
    if arguments.json:
        found = None if remedy is None else {"options": remedy[0], **_facts(remedy[1])}
        extra = {} if report.fits else {"would_fit": found}
        if arguments.shardings:
            extra["shardings"] = [vars(item) for item in placements(case)]
        print(json.dumps({**_facts(report), **extra}))
        return 0
    if arguments.shardings:
        for item in placements(case):
            share = f"{item.chip_bytes / 2**20:10.2f} MiB"
            print(f"{item.name:58} {str(list(item.shape)):24} {item.axes:24} {share}")
    print(_text(report))
    if not report.fits:
        print(
            "nothing that was tried fits: use more chips"
            if remedy is None
            else f"fits with {remedy[0]}\n{_text(remedy[1])}"
        )
    return 0


def _plan(case, as_json: bool) -> int:
    from selfevo_jax.aot.plan import search

    found = search(case, _say)
    if as_json:
        print(json.dumps([_facts(report) for report in found]))
        return 0
    best = found[0]
    print(_text(best))
    if best.fits:
        print(f"best: --mesh {best.case.mesh} --micro {best.case.rows}")
    else:
        print("nothing that was tried fits: use more chips")
    return 0


def _facts(report) -> dict:
    facts = report.as_json()
    return {**facts.pop("case"), **facts}


def _text(report) -> str:
    case, lines = report.case, []
    lines.append(
        f"{case.preset} {case.step} on {case.slice.name} ({case.slice.chips} chips), mesh "
        f"{case.mesh}, {case.batch} rows ({case.rows} at a time) x {case.seq} tokens, {case.dtype}"
    )
    verdict = "fits" if report.fits else "does not fit"
    lines.append(
        f"{verdict}: {report.hbm_bytes_per_chip / GIB:.2f} of "
        f"{report.hbm_capacity / GIB:.2f} GiB of HBM a chip"
    )
    for name, part in report.memory.items():
        if part.compiled:
            sizes = ("arguments", "temporaries", "output", "code", "beside")
            parts = ", ".join(f"{size} {getattr(part, size) / GIB:.2f}" for size in sizes)
            lines.append(f"  {name}: {part.total / GIB:.2f} GiB ({parts})")
        else:
            lines.append(f"  {name}: the compiler asked for {part.total / GIB:.2f} GiB")
    lines.append(f"compile: {report.compile_seconds:.1f} s")
    return "\n".join(lines + _costs(report))


def _costs(report) -> list[str]:
    if report.est_step_seconds is None:
        return [f"flops: {report.flops:.3e} in all"]
    lines = [
        f"flops: {report.flops:.3e} in all, of which the model needs {report.model_flops:.3e}",
        f"HBM traffic: {report.bytes_accessed / GIB:.2f} GiB a chip",
        f"links: {report.collective_bytes / GIB:.3f} GiB sent by a chip",
    ]
    for kind, (count, sent) in sorted(report.collectives.items()):
        lines.append(f"  {kind}: {count:.0f} x, {sent / GIB:.3f} GiB")
    tokens = report.case.tokens / report.est_step_seconds / report.case.slice.chips
    lines.append(
        f"estimate (roofline, bound by {report.bound}; a real step is slower): "
        f"{report.est_step_seconds:.4f} s, MFU {report.est_mfu:.1%}, "
        f"{tokens:,.0f} tokens/s a chip"
    )
    return lines


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
