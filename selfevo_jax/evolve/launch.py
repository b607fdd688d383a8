"""From a configuration to a finished run: lock, plan, stages.

A workdir holds config.json, run.json, log.jsonl and round_NN/STAGE/ for every stage; what was
replaced is under superseded/.
"""

import contextlib
import importlib
import importlib.metadata
import logging
import platform
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import FrozenConfigDict

from selfevo_jax.config import changed_settings, flat, plain
from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.file_task import FileTask
from selfevo_jax.evaluate.task import Split, Task
from selfevo_jax.evaluate.tasks import get_task
from selfevo_jax.evolve.backend import JaxBackend
from selfevo_jax.evolve.files import LOCK, disk_full_is_a_message, locked, read_json, write_json
from selfevo_jax.evolve.methods import defaults, method
from selfevo_jax.evolve.model_stages import Need
from selfevo_jax.evolve.plan import expected_memory, print_plan, print_table
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.run import Run
from selfevo_jax.evolve.stages import StageFolder
from selfevo_jax.models.quantize import BYTES
from selfevo_jax.parallel.distributed import agreed, barrier, carried, first, own_name
from selfevo_jax.sample.http.endpoint import Endpoint
from selfevo_jax.text.terminal import escape_controls

PACKAGES = ("selfevo-jax", "jax", "jaxlib", "flax", "optax", "tokenizers", "reasoning-gym")
BACKENDS = {
    "jax": "selfevo_jax.evolve.backend:JaxBackend",
    "torch": "selfevo_jax.torch_backend.backend:TorchBackend",
}
EXECUTORS = ("local", "ray")
# Settings that are counts, wherever they stand.
COUNTS = ("rounds", "n", "per_prompt", "slots", "actors", "shard")
# Settings that say how many questions of a split are drawn.
AMOUNTS: dict[Split, tuple[str, ...]] = {
    "train": ("prompts.n", "pool.n"),
    "validation": ("accept.questions", "validation.questions", "gauges.questions"),
    "test": ("evaluate.n", "criteria.questions"),
}
DRAWING_SECONDS = 5.0  # for counting what a generator can make, in each split


def launch(
    config: FrozenConfigDict,
    workdir: Path,
    progress: Progress,
    *,
    command: str,
    dry_run: bool = False,
) -> None:
    """Runs `config` in `workdir`, going on from whatever is there; `dry_run` stops at the plan.

    `command` is what a person would type to get this run again; it is kept in `run.json`.

    Raises: UserError for a mistake in the configuration, a workdir in use, a full disk, or a stage
    that gave less than it must.
    """
    check_config(config)
    with contextlib.ExitStack() as stack:
        if not dry_run:
            safe = "Every finished stage and record is safe."
            stack.enter_context(disk_full_is_a_message(safe))
            stack.enter_context(held(workdir))
            progress.log_to(workdir / own_name("log.jsonl"))
        stack.enter_context(told_by_logging(progress))
        task = get_task(config.task.name, **config.task.args.to_dict())
        backend = open_backend(config, progress, workdir)
        if not dry_run:  # a plan may be made far from the devices that it is for
            backend.check_mesh()
        _tell_changes(config, workdir, progress)
        plan = show_plan(config, workdir, task, backend, progress)
        barrier()  # the plan looks at what host 0 is about to change
        if not dry_run:
            _execute(config, workdir, task, backend, progress, plan, command)


def open_backend(
    config: FrozenConfigDict, progress: Progress, workdir: Path | None = None
) -> JaxBackend:
    """The backend that `config.backend` and `config.executor` name, for a run in `workdir`.

    Raises UserError for others.
    """
    if config.backend not in BACKENDS:
        raise UserError(f"--config.backend={config.backend}: use {' or '.join(BACKENDS)}")
    if config.executor not in EXECUTORS:
        raise UserError(f"--config.executor={config.executor}: use {' or '.join(EXECUTORS)}")
    if config.executor == "ray" and config.backend != "jax":
        raise UserError("--config.executor=ray needs --config.backend=jax: its actors run on JAX")
    # Imported by name: torch is no part of the base install, and stands above this package.
    ray = config.executor == "ray"
    where = "selfevo_jax.evolve.ray_pool:RayBackend" if ray else BACKENDS[config.backend]
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)(config, progress, workdir)


def check_config(config: FrozenConfigDict) -> None:
    """Refuses what no stage could use, or none reads. Raises UserError."""
    settings = flat(config)
    known = flat(defaults(config.method))
    odd = [key for key in settings if key not in known and not key.startswith("task.args")]
    if odd or not known.keys() <= settings.keys() | {"task.args"}:
        raise UserError(
            f"--config.method={config.method}: the config file is for another method; "
            f"take configs/{config.method}.py"
        )
    for name, value in settings.items():
        if name.startswith("task.args"):
            continue
        if name.rpartition(".")[2] in COUNTS and value < 1:
            raise UserError(f"--config.{name}={value}: it must be at least 1")
        if isinstance(value, tuple) and len(set(value)) < len(value):
            raise UserError(f"--config.{name}={value}: a value is there twice")
        if isinstance(value, str) and value.startswith(("http://", "https://")):
            Endpoint(*value.partition("#")[::2])  # a key in it would be in every file of the run


def show_plan(
    config: FrozenConfigDict, workdir: Path, task: Task, backend: JaxBackend, progress: Progress
) -> Run:
    """Prints the plan, the expected memory and the first prompt as the model will read it."""
    run = Run(config, workdir, task, backend, progress, planning=True)
    method(config.method)(run)
    run.check_repeated()
    agreed(lambda: check_supply(config, task, run.needs))
    compute = config.compute
    value_bytes = backend.model.compute.dtype(0).itemsize
    memory = expected_memory(
        backend.model.files.config,
        value_bytes=value_bytes,
        kernel_bytes=BYTES.get(backend.model.quant, value_bytes),
        slots=compute.slots,
        max_length=compute.max_length,
        train_tokens=config.learn.micro_rows * (config.learn.row_length or compute.max_length),
        rank=config.lora.rank,
        remat=compute.remat,
    )
    print_plan(progress.console, run.plan, memory)
    for name, bill in run.bills.items():
        said = f"roles.{name} is on a server: {bill.text(config.roles[name].price_out)}"
        progress.console.print(said, markup=False)
    for name in _unasked(config, run):
        said = f"roles.{name} is given, and no stage of these settings asks it"
        progress.console.print(said, markup=False)
    first = next(iter(task.prompts("train", 1, config.seed)))
    progress.console.print("first prompt, as the model reads it:", markup=False)
    text = backend.first_prompt(first.messages)
    progress.console.print(escape_controls(text), markup=False)
    return run


def _unasked(config: FrozenConfigDict, run: Run) -> list[str]:
    """The roles that are given a model or an adapter, and that the planned stages never ask."""
    asked = {policy.name for policy in run.policies if policy.role is not None}
    roles = config.get("roles", {})
    given = [name for name in roles if roles[name].model or roles[name].adapter]
    return [name for name in given if name not in asked]


def check_supply(config: FrozenConfigDict, task: Task, needs: Mapping[Split, Need]) -> None:
    """Refuses a run whose task has too few different questions of a split. Raises UserError."""
    settings = flat(config)
    for split, need in needs.items():
        found = _count(task, split, need.total, config.seed)
        if found < need.total:
            names = [name for name in AMOUNTS[split] if settings.get(name)]
            names += ["rounds"] if need.total > need.own else []
            ways = [f"lower --config.{name} (now {settings[name]})" for name in names]
            raise UserError(
                f"{need.stage} needs {need.total} different {split} questions in all, and "
                f"{task.name} has {found}: {' or '.join([*ways, 'give the task more of them'])}"
            )


def _count(task: Task, split: Split, wanted: int, seed: int) -> int:
    """How many questions of a split a task has; `wanted` where it makes them and takes long."""
    if isinstance(task, FileTask):
        return sum(1 for _ in task.prompts(split))
    found, end = 0, time.monotonic() + DRAWING_SECONDS
    with contextlib.suppress(UserError):  # of a generator that has no more
        for _ in task.prompts(split, wanted, seed):
            found += 1
            if time.monotonic() > end:
                return wanted
    return found


def _execute(
    config: FrozenConfigDict,
    workdir: Path,
    task: Task,
    backend: JaxBackend,
    progress: Progress,
    plan: Run,
    command: str,
) -> None:
    agreed(lambda: _settle(config, workdir, plan, progress))
    about = describe(config, backend) | {"plan": [step.kept() for step in plan.plan]}
    about |= {"command": command, "tables": [table.name for table in plan.tables]}

    def remember(run: Run, finished: bool = False) -> None:
        if first():
            write_json(workdir / "run.json", about | lineage(run) | {"finished": finished})

    run = Run(config, workdir, task, backend, progress, remember=remember)
    remember(run)
    run.concluded(method(config.method)(run))
    remember(run, finished=True)
    for table in run.tables:
        print_table(progress.console, table.name, table)


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """The workdir, locked by host 0. Raises UserError where a host does not see the same one, and
    no other way brings it there."""
    with contextlib.ExitStack() as stack:
        agreed(lambda: stack.enter_context(locked(workdir)))
        lock = workdir / LOCK
        holder = agreed(lock.read_text)
        if not carried() and (not lock.exists() or lock.read_text() != holder):
            raise UserError(
                f"{workdir} is not the same folder on all hosts: give a --workdir in a bucket "
                "(gs://...), or on storage that all of them see"
            )
        yield


def _settle(config: FrozenConfigDict, workdir: Path, plan: Run, progress: Progress) -> None:
    """The workdir as the plan wants it, before any stage."""
    write_json(workdir / "config.json", plain(config))
    _set_aside_others(workdir, {step.stage for step in plan.plan}, progress)


def _set_aside_others(workdir: Path, planned: set[str], progress: Progress) -> None:
    """Moves stages that are not in the plan (fewer rounds, another method) out of the way."""
    for path in sorted(workdir.glob("round_*/*")):
        if path.is_dir() and str(path.relative_to(workdir)) not in planned:
            kept = StageFolder(path).set_aside(workdir).relative_to(workdir)
            progress.say(f"{path.relative_to(workdir)} is not in the plan; it is in {kept}")
    for folder in workdir.glob("round_*"):
        if not any(folder.iterdir()):
            folder.rmdir()


def describe(config: FrozenConfigDict, backend: JaxBackend) -> dict[str, Any]:
    """What `run.json` says of a run besides its lineage."""
    return {
        "method": config.method,
        "model": config.model,
        "model_hash": backend.model.files.hash,
        "tokenizer_hash": backend.model.tokenizer.hash,
        "template_hash": chat.hash if (chat := backend.model.tokenizer.chat) else None,
        "task": config.task.name,
        "seed": config.seed,
        "rounds": config.get("rounds", 1),
        "versions": versions(),
    }


def lineage(run: Run) -> dict[str, Any]:
    """The policies so far: hash, adapter folder, parent, whether accepted; and the best one."""
    policies = {
        p.name: p.lineage(run.workdir) | {"accepted": run.decided.get(p.name)}
        for p in run.policies
        if p.role is None
    }
    roles = {p.name: p.lineage(run.workdir) for p in run.policies if p.role is not None}
    best = run.best.name if run.best else None
    return {"policies": policies, "best": best} | ({"roles": roles} if roles else {})


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _tell_changes(config: FrozenConfigDict, workdir: Path, progress: Progress) -> None:
    """Says which settings differ from those that the workdir was begun with."""
    kept = workdir / "config.json"
    if kept.exists():
        for change in changed_settings(read_json(kept), plain(config)):
            progress.say(f"changed since the last run here: {change}")


@contextlib.contextmanager
def told_by_logging(progress: Progress) -> Iterator[None]:
    """What the lower packages log (compiling, saving, going on) is said by the run."""

    class Said(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            progress.say(record.getMessage())

    logger, handler = logging.getLogger("selfevo_jax"), Said(logging.INFO)
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before
