"""`selfevo merge`: one PEFT adapter from several of one base."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from selfevo_jax.cli.common import nothing_left, verb
from selfevo_jax.errors import UserError


def add(verbs) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "merge",
        act,
        "Merge PEFT adapters of one base into a new one. Equal to PEFT's own merges.",
        "selfevo merge adapter-1 adapter-2 --method=ties --out=merged",
    )
    parser.add_argument("adapters", nargs="+", type=Path, metavar="ADAPTER")
    parser.add_argument(
        "--method", default="ties", help="linear | ties | dare_ties | dare_linear | cat (ties)"
    )
    parser.add_argument(
        "--density", type=float, default=0.2, help="share of values kept (%(default)s)"
    )
    parser.add_argument("--weights", metavar="W,W,...", help="of the adapters (1 each)")
    parser.add_argument("--seed", type=int, default=0, help="of what dare_* drops (%(default)s)")
    parser.add_argument("--model", metavar="SOURCE", help="the base (what the adapters name)")
    parser.add_argument("--out", required=True, type=Path, help="a folder that does not exist yet")


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    if arguments.out.exists():
        raise UserError(f"{arguments.out} exists already; give another --out")
    from selfevo_jax.evolve.jax_model import open_source
    from selfevo_jax.models.merge import Part, merge_adapters
    from selfevo_jax.weights.peft import load_peft, read_origin, save_peft

    folders = arguments.adapters
    weights = _weights(arguments.weights, len(folders))
    origins = [read_origin(folder) for folder in folders]
    name = arguments.model or _one_base(folders, [origin.base for origin in origins])
    base = open_source(name)
    parts = []
    for folder, weight in zip(folders, weights, strict=True):
        tree, lora = load_peft(folder, base.config, base.hash)
        parts.append(Part(tree, lora, weight, folder.name))
    tree, lora, lineage = merge_adapters(
        parts, arguments.method, density=arguments.density, seed=arguments.seed
    )
    for row, origin in zip(lineage["adapters"], origins, strict=True):
        row |= {"sha256": origin.sha256, "lineage": origin.lineage}
    save_peft(arguments.out, tree, lora, name, base.hash, lineage)
    print(f"written: {arguments.out}, rank {lora.rank}, {arguments.method} of {len(folders)}")
    return 0


def _weights(text: str | None, count: int) -> list[float]:
    try:
        weights = [float(part) for part in text.split(",")] if text else [1.0] * count
    except ValueError as error:
        raise UserError(f"--weights={text}: write numbers with commas, such as 1,0.5") from error
    if len(weights) != count:
        raise UserError(f"--weights={text} are {len(weights)} for {count} adapters")
    return weights


def _one_base(folders: Sequence[Path], names: Sequence[str | None]) -> str:
    """The base that all adapters name. Raises UserError where they name several, or none."""
    for folder, name in zip(folders, names, strict=True):
        if not name:
            raise UserError(f"{folder} names no base model; give it as --model")
        if name != names[0]:
            raise UserError(
                f"{folder} is for the base {name}, {folders[0]} for {names[0]}: adapters of "
                "different bases cannot be merged (if both names mean one model, give --model)"
            )
    return names[0]
