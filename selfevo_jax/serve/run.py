"""`selfevo serve` from the models' sources to a socket that listens."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.jax_model import JaxModel
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.sample.http.endpoint import is_loopback
from selfevo_jax.sample.http.secret import Secret
from selfevo_jax.serve.app import make_app
from selfevo_jax.serve.dispatch import Dispatcher
from selfevo_jax.serve.prompts import ServedModel

MOST_CONNECTIONS = 1024


def check_address(host: str, key: Secret | None) -> None:
    """Raises `UserError` for an address that others can reach when there is no key."""
    if key is None and not is_loopback(host):
        raise UserError(
            f"without a key nobody else may reach this server, and --host {host} is not loopback; "
            "give --key-file or --key-env, or leave --host away"
        )


def load(
    model: JaxModel, adapters: Mapping[str, Path]
) -> tuple[JaxGenerator, dict[str, ServedModel]]:
    """One engine, and what it serves: the base under its source's name, and the adapters."""
    config = model.files.config
    engine = JaxGenerator(
        config,
        model.params,
        model.tokenizer,
        adapters={name: model.applied(folder) for name, folder in adapters.items()},
        slots=model.settings["slots"],
        max_length=min(model.settings["max_length"], config.max_position),
        compute=model.compute,
        mesh=model.sampling_mesh,
    )
    served = {
        name: ServedModel(name, adapter, model.tokenizer, config.vocab_size, engine.max_length)
        for name, adapter in [(model.source, None), *((name, name) for name in adapters)]
    }
    return engine, served


def serve(
    source: str,
    compute: Mapping[str, Any],
    adapters: Mapping[str, Path],
    *,
    host: str,
    port: int,
    key: Secret | None,
) -> None:
    """Serves until interrupted. Prints the address when it listens."""
    check_address(host, key)
    progress = Progress()
    listening = listen(host, port)
    engine, models = load(JaxModel(source, compute, progress), adapters)
    dispatcher = Dispatcher(engine)
    settings = uvicorn.Config(
        make_app(models, dispatcher, key),
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=5,
        ws="none",
    )
    address = listening.getsockname()
    shown = f"[{address[0]}]" if ":" in address[0] else address[0]
    print(f"serving {', '.join(models)} at http://{shown}:{address[1]}/v1", flush=True)
    try:
        uvicorn.Server(settings).run(sockets=[listening])
    finally:
        dispatcher.close()


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address, port 0 for any free one. Raises `UserError`."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"cannot listen on {host}:{port}: {error}; choose another --port"
        ) from error
