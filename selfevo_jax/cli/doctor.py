"""`selfevo doctor`: what this machine has, what of it works, and the one command that mends it."""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from selfevo_jax.cli.common import nothing_left, verb

GIB = 2**30
SECONDS = 300  # for one probe
PACKAGES = (
    "selfevo-jax", "jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "numpy", "flax", "optax",
    "orbax-checkpoint", "torch", "transformers", "peft", "deepspeed", "bitsandbytes",
)  # fmt: skip


@dataclass(frozen=True)
class Hardware:
    """Accelerators that are plugged in, whether software sees them or not."""

    gpus: tuple[str, ...]  # one line each: name, memory, driver
    tpu_chips: int
    driver_missing: bool  # NVIDIA cards without their driver


@dataclass(frozen=True)
class Finding:
    """What a backend does here. Where something is to be mended, `extras` are those of ours whose
    installation mends it, over what is there where that is `broken`; or the setting `hiding` hides
    the accelerators from it."""

    name: str
    text: str
    extras: tuple[str, ...] | None = None
    broken: bool = False
    hiding: str | None = None


def add(verbs) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "doctor",
        act,
        "Try what is installed on this machine. Ends with the one command that mends the rest.",
        "selfevo doctor",
    )
    parser.add_argument("--list", action="store_true", help="only say what is here; try nothing")


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it; the exit status is 1 when something that should work does not."""
    nothing_left(rest)
    hardware = find_hardware()
    for line in describe(hardware):
        print(line)
    if arguments.list:
        return 0
    print("\ntrying the backends, each in a process of its own ...", flush=True)
    findings = [examine(name, hardware) for name in ("jax", "torch", "deepspeed")]
    for finding in findings:
        print(f"{finding.name}: {finding.text}")
    print(f"code sandbox: {sandbox_line()}")
    remedy = mend(findings, hardware, origin())
    print(f"\nto mend it: {remedy}" if remedy else "\nnothing to mend")
    return 1 if remedy else 0


def find_hardware() -> Hardware:
    """Asks the NVIDIA driver, the PCI bus and the device files."""
    listed: tuple[str, ...] = ()
    if shutil.which("nvidia-smi"):
        fields = "--query-gpu=name,memory.total,driver_version"
        asked = _run(["nvidia-smi", fields, "--format=csv,noheader"], 60)
        listed = tuple(asked.stdout.splitlines()) if asked.returncode == 0 else ()
    chips = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    return Hardware(listed, len(chips), not listed and _nvidia_on_bus(Path("/sys/bus/pci/devices")))


def _nvidia_on_bus(bus: Path) -> bool:
    """Whether a display controller (class 03) of NVIDIA (vendor 10de) is plugged in."""
    for device in bus.glob("*"):
        vendor, kind = (device / "vendor").read_text(), (device / "class").read_text()
        if vendor.startswith("0x10de") and kind.startswith("0x03"):
            return True
    return False


def describe(hardware: Hardware) -> list[str]:
    """System, memory, disk, accelerators and versions."""
    from selfevo_jax.weights.storage import cache_folder

    cache = cache_folder()
    at = next(path for path in (cache, *cache.parents) if path.exists())
    writable = "" if os.access(at, os.W_OK) else ", NOT writable"
    lines = [
        f"system: {platform.platform()}, Python {platform.python_version()}",
        f"processor: {len(os.sched_getaffinity(0))} cores, {memory_gib():.0f} GiB of memory",
        f"cache: {cache} ({shutil.disk_usage(at).free / GIB:.0f} GiB free{writable})",
        *(f"GPU: {line}" for line in hardware.gpus),
    ]
    if hardware.tpu_chips:
        lines.append(f"TPU: {hardware.tpu_chips} chips")
    if hardware.driver_missing:
        lines.append("GPU: an NVIDIA card whose driver does not answer")
    if not (hardware.gpus or hardware.tpu_chips or hardware.driver_missing):
        lines.append("accelerators: none found")
    installed = ((name, version_of(name)) for name in PACKAGES)
    return [*lines, "packages: " + ", ".join(f"{n} {v}" for n, v in installed if v)]


def memory_gib() -> float:
    """Physical memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB


def version_of(package: str) -> str | None:
    """The installed version, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def sandbox_line() -> str:
    """What holds programs that a model wrote, or why none can be run here."""
    from selfevo_jax.errors import UserError
    from selfevo_jax.judge.sandbox import platform as tried

    try:
        return tried().report()
    except UserError as error:
        return str(error)


def examine(name: str, hardware: Hardware) -> Finding:
    """Tries a backend and says in a line what it found."""
    own = {"jax": (), "torch": ("torch",), "deepspeed": ("deepspeed",)}[name]
    if importlib.util.find_spec(name) is None:
        missed = len(hardware.gpus) > 1 and name == "deepspeed" and version_of("torch")
        use = {"torch": "backend=torch", "deepspeed": "backend=torch on several GPUs"}
        text = f"not installed; needed for {use.get(name, 'everything')}"
        return Finding(name, text, own if missed or name == "jax" else None)
    found = _tried(name, hardware, own)
    return found if found.extras is None else replace(found, hiding=hiding(name, os.environ))


def _tried(name: str, hardware: Hardware, own: tuple[str, ...]) -> Finding:
    """What an installed backend does in a process of its own."""
    tried = _run([sys.executable, "-m", "selfevo_jax.cli.probe", name], SECONDS)
    lines = [line for line in tried.stdout.splitlines() if line.startswith("FOUND ")]
    if tried.returncode or not lines:
        said = (tried.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Finding(name, f"fails: {said}", own, broken=True)
    return judge(name, json.loads(lines[-1].removeprefix("FOUND ")), hardware)


def hiding(name: str, environment: Mapping[str, str]) -> str | None:
    """The environment variable that keeps a backend from the accelerators."""
    if name == "jax" and environment.get("JAX_PLATFORMS"):
        return "JAX_PLATFORMS"
    hidden = environment.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return "CUDA_VISIBLE_DEVICES" if hidden else None


def judge(name: str, found: dict, hardware: Hardware) -> Finding:
    """What a probe's answer means on this hardware."""
    kinds = [_kind(device) for device in found["devices"]]
    wrong = sorted({device["kind"] for device in found["devices"] if not device["works"]})
    text = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    text = f"works on {text or found['platform']}"
    if "step" in found:
        text += f"; a training step of a tiny model took {found['step']} s with compilation"
    if wrong:
        return Finding(name, f"{text}; WRONG PRODUCTS on {', '.join(wrong)}", (), broken=True)
    idle = found["platform"] == "cpu"
    if idle and name == "jax" and (hardware.gpus or hardware.tpu_chips):
        extra, plugin = ("tpu", "libtpu") if hardware.tpu_chips else ("cuda", "jax-cuda12-plugin")
        text = f"{text}; it does not see the accelerators"
        return Finding(name, text, (extra,), broken=version_of(plugin) is not None)
    if idle and name == "torch" and hardware.gpus:
        return Finding(name, f"{text}; this build does not see the GPU", ("torch",), broken=True)
    return Finding(name, text)


def _kind(device: dict) -> str:
    memory = device["memory"]
    return device["kind"] + (f" ({memory / GIB:.0f} GiB)" if memory else "")


def origin() -> dict | None:
    """Where pip had this package from, if from no index (PEP 610)."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        told = importlib.metadata.distribution("selfevo-jax").read_text("direct_url.json")
        return json.loads(told) if told else None
    return None


def mend(
    findings: Sequence[Finding], hardware: Hardware, source: Mapping | None = None
) -> str | None:
    """The one thing to do next, for a package from `source` (see `origin`); None where all works
    that can."""
    if hardware.driver_missing:
        return "install the NVIDIA driver (nvidia-smi must list the card), then ask again"
    ill = [finding for finding in findings if finding.extras is not None]
    if not ill:
        return None
    if hidden := next(filter(None, (finding.hiding for finding in ill)), None):
        return f"unset {hidden} && selfevo doctor"
    extras = sorted({extra for finding in ill for extra in finding.extras or ()})
    wanted = f"[{','.join(extras)}]" if extras else ""
    if not any(finding.broken for finding in ill):
        return f"pip install 'selfevo_jax{wanted}'"
    return f"pip install --force-reinstall {_anew(wanted, source)}"


def _anew(extras: str, source: Mapping | None) -> str:
    """What pip reinstalls. A package that came from a folder or a file is in no index."""
    if source is None:
        return f"'selfevo_jax{extras}'"
    url = urlsplit(source["url"])
    if source.get("dir_info", {}).get("editable"):
        return f"-e '{url2pathname(url.path)}{extras}'"
    system = source.get("vcs_info", {}).get("vcs")
    return f"'selfevo_jax{extras} @ {system + '+' if system else ''}{url.geturl()}'"


def _run(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess:
    # Unfiltered, the last line of a traceback is the error itself.
    settings = {**os.environ, "JAX_TRACEBACK_FILTERING": "off"}
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, env=settings
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"no answer within {seconds:.0f} s")
