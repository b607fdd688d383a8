"""Tries one backend in a process of its own and prints what works as one JSON object.

    python -m selfevo_jax.cli.probe jax|torch|deepspeed

`selfevo doctor` starts it, so that a driver that hangs or aborts cannot take the doctor with it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SIDE = 512  # of the matrices multiplied


def probe_jax() -> dict[str, Any]:
    """A product on every device, and one training step of a tiny model."""
    import jax
    import jax.numpy as jnp

    from selfevo_jax.learn.trainer import JaxTrainer

    ones = jnp.ones((SIDE, SIDE))
    found = [
        _tried(
            device.device_kind,
            (device.memory_stats() or {}).get("bytes_limit"),
            jax.device_put(ones, device),
        )
        for device in jax.local_devices()
    ]
    config, params = _tiny()
    trainer = JaxTrainer(config, params, base_hash="tiny")
    return {"platform": jax.default_backend(), "devices": found, "step": _step(trainer)}


def probe_torch() -> dict[str, Any]:
    """A product on every device, and one training step of a tiny model."""
    import jax
    import torch

    jax.config.update("jax_platforms", "cpu")
    from selfevo_jax.models.config import Compute
    from selfevo_jax.torch_backend.model import Decoder
    from selfevo_jax.torch_backend.trainer import TorchTrainer

    places = [("CPU", None, "cpu")]
    if torch.cuda.is_available():
        cards = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        places = [(card.name, card.total_memory, f"cuda:{i}") for i, card in enumerate(cards)]
    found = [
        _tried(name, memory, torch.ones((SIDE, SIDE), device=place))
        for name, memory, place in places
    ]
    config, params = _tiny()
    trainer = TorchTrainer(Decoder.from_tree(config, params, Compute()), base_hash="tiny")
    return {"platform": places[0][2].partition(":")[0], "devices": found, "step": _step(trainer)}


def probe_deepspeed() -> dict[str, Any]:
    """Its import, which finds most of what is wrong with it."""
    from selfevo_jax.torch_backend import zero

    return {"platform": zero.deepspeed.accelerator.get_accelerator().device_name(), "devices": []}


def _tried(kind: str, memory: int | None, ones: Any) -> dict[str, Any]:
    """Whether a product of two matrices of ones is right where they lie; `memory` in bytes."""
    return {"kind": kind, "memory": memory, "works": float((ones @ ones)[0, 0]) == SIDE}


def _tiny() -> tuple[Any, dict]:
    import jax

    from selfevo_jax.models.llama import init_params
    from selfevo_jax.models.presets import preset

    return preset("tiny"), init_params(preset("tiny"), jax.random.key(0))


def _step(trainer: Any) -> float:
    """Seconds of one step, compilation included."""
    import numpy as np

    from selfevo_jax.learn.losses import Objective
    from selfevo_jax.learn.protocol import FitSettings
    from selfevo_jax.text.render import TokenExample, TokenSpan

    def span(first: int, loss: bool) -> TokenSpan:
        return TokenSpan(np.arange(first, first + 4, dtype=np.int32), np.full(4, loss))

    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        examples = [TokenExample("one", span(1, False), (span(5, True),))]
        trainer.fit(examples, Objective("sft"), FitSettings(steps=1, batch_size=1), Path(folder))
    return round(time.monotonic() - begun, 2)


PROBES = {"jax": probe_jax, "torch": probe_torch, "deepspeed": probe_deepspeed}

if __name__ == "__main__":
    print("FOUND " + json.dumps(PROBES[sys.argv[1]]()), flush=True)
