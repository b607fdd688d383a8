"""XLA's flags for NVIDIA cards, which must be set before JAX starts."""

from collections.abc import MutableMapping
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/version")
# Exchanges between cards run beside computation (https://docs.jax.dev, GPU performance tips).
WANTED = {"xla_gpu_enable_latency_hiding_scheduler": "true"}


def set_gpu_flags(environment: MutableMapping[str, str], driver: Path = DRIVER) -> None:
    """Adds what XLA_FLAGS does not name yet, on a machine with NVIDIA's driver."""
    given = environment.get("XLA_FLAGS", "")
    missing = [f"--{name}={value}" for name, value in WANTED.items() if name not in given]
    if driver.exists() and missing:
        environment["XLA_FLAGS"] = " ".join([given, *missing]).strip()
