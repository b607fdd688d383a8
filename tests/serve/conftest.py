"""Real server processes over a tiny random model, on loopback."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import jax
import pytest

from selfevo_jax.evolve.jax_model import JaxModel
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.models.lora import LoraConfig, init_lora
from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.weights.peft import save_peft

MODEL = "random:tiny?seed=0"
MAX_LENGTH = 256
COMPUTE = {
    "dtype": "float32", "remat": "none", "mesh": "1,-1,1", "slots": 4, "max_length": MAX_LENGTH,
}  # fmt: skip


@dataclass(frozen=True)
class Running:
    """A server process."""

    process: subprocess.Popen
    url: str
    headers: dict[str, str]

    def post(self, path: str, body, **settings) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=self.headers, timeout=60, **settings)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=self.headers, timeout=60)

    def gauge(self, name: str) -> float:
        """The sum of a metric over its labels."""
        text = self.get("/metrics").text
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))

    def idle(self, seconds: float = 20.0) -> bool:
        """Whether nothing waits and no row is taken, at the latest after some seconds."""
        end = time.monotonic() + seconds
        while self.gauge("selfevo_running") or self.gauge("selfevo_waiting"):
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def resident_mib(self) -> float:
        """Memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024


def start(*options: str, environment: dict[str, str] | None = None, key: str = "") -> Running:
    command = [sys.executable, "-m", "selfevo_jax.cli", "serve", f"--model={MODEL}", "--port=0"]
    process = subprocess.Popen(
        [*command, "--slots=4", f"--max-length={MAX_LENGTH}", *options],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | (environment or {}),
    )
    lines = iter(process.stdout.readline, "")
    found = next(filter(None, (re.search(r"at (http://\S+)/v1", line) for line in lines)), None)
    if found is None:
        process.kill()
        raise AssertionError("the server did not start")
    return Running(process, found[1], {"Authorization": f"Bearer {key}"} if key else {})


def stop(server: Running) -> None:
    server.process.terminate()
    assert server.process.wait(20) is not None
    server.process.stdout.close()


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory, local_model) -> Path:
    """An adapter that changes what the model says."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    lora = LoraConfig(rank=4, alpha=64.0)
    tree = init_lora(local_model.files.config, lora, jax.random.key(2))
    noisy = jax.tree.map(lambda leaf: leaf + 0.05, tree)
    save_peft(folder, noisy, lora, MODEL, local_model.files.hash)
    return folder


@pytest.fixture(scope="session")
def local_model() -> JaxModel:
    """The served model in this process, to compare with."""
    return JaxModel(MODEL, COMPUTE, Progress())


@pytest.fixture(scope="session")
def engine(local_model, adapter_folder) -> JaxGenerator:
    """What the server should answer with, asked directly."""
    return JaxGenerator(
        local_model.files.config, local_model.params, local_model.tokenizer,
        adapters={"tuned": local_model.applied(adapter_folder)},
        slots=4, max_length=MAX_LENGTH, mesh=local_model.mesh,
    )  # fmt: skip


@pytest.fixture(scope="session")
def server(adapter_folder) -> Iterator[Running]:
    """Without a key; serves the base and the adapter `tuned`."""
    running = start(f"--adapter=tuned={adapter_folder}")
    yield running
    stop(running)


@pytest.fixture
def start_server() -> Iterator[Callable[..., Running]]:
    """Starts more servers; stops them afterwards."""
    running: list[Running] = []

    def begin(*options: str, **settings) -> Running:
        running.append(start(*options, **settings))
        return running[-1]

    yield begin
    for one in running:
        stop(one)
