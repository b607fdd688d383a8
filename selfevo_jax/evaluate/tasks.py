"""The registers: what a run can draw questions from, and what `selfevo eval` can ask.

A new task is one more module in `benchmarks/` and one more name in `MODULES`.
"""

import importlib.metadata
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.benchmark import Benchmark, Generate, Reading
from selfevo_jax.evaluate.benchmarks import (
    aqua,
    bbh,
    boolq,
    creak,
    gsm8k,
    humaneval,
    ifeval,
    instructions,
    logiqa,
    math,
    mbpp,
    mmlu,
    natural_instructions,
    preferences,
    qasc,
    squad,
    strategyqa,
    svamp,
)
from selfevo_jax.evaluate.benchmarks.code import sandbox
from selfevo_jax.evaluate.data import Data, Row, Rows
from selfevo_jax.evaluate.file_task import FileSpec, FileTask
from selfevo_jax.evaluate.mixture import MixtureTask
from selfevo_jax.evaluate.reasoning_gym import ReasoningGymTask, dataset_names
from selfevo_jax.evaluate.task import STYLES, Task, check_choice, nearest

MODULES = (
    aqua, bbh, boolq, creak, gsm8k, humaneval, ifeval, instructions, logiqa, math, mbpp, mmlu,
    natural_instructions, preferences, qasc, squad, strategyqa, svamp,
)  # fmt: skip
SPECS = [m.SPEC for m in MODULES if hasattr(m, "SPEC")] + list(instructions.SPECS)
FILE_TASKS: dict[str, FileSpec] = {spec.name: spec for spec in SPECS}
PLAIN = ":plain"
ALL = "all"


def task_names() -> list[str]:
    """Every name that `get_task` takes."""
    return [*sorted(FILE_TASKS), MixtureTask.name, *dataset_names()]


def get_task(name: str, **args: Any) -> Task:
    """The task called `name`, for a run to draw questions from.

    File tasks take `data_dir` and `style`; "rg:NAME" takes `style`, `parse` and the settings of
    that reasoning-gym dataset; "mix" takes `of`, names of tasks with the settings of each. Raises
    UserError with the nearest names for an unknown task or setting, with the way to get the data
    where it is missing, and for a task that runs programs where that is not safe.
    """
    if name.startswith("rg:"):
        return ReasoningGymTask(name, **args)
    if name == MixtureTask.name:
        return _mixture(args)
    if name not in FILE_TASKS:
        check_choice(name, task_names(), "task")
    known = set(inspect.signature(FileTask).parameters) - {"spec"}
    for key in args:
        if key not in known:
            raise UserError(f"task {name} has no setting {key!r}; {nearest(key, known)}")
    task = FileTask(FILE_TASKS[name], **args)
    if task.spec.code:
        sandbox()  # made now: a run ends before it samples, not after
    return task


def _mixture(args: Mapping[str, Any]) -> MixtureTask:
    of = args.get("of", {})
    if set(args) != {"of"} or len(of) < 2 or MixtureTask.name in of:
        raise UserError(
            "task mix takes `of`, two tasks or more with their settings, none of them a mixture: "
            'of={"gsm8k": {"data_dir": "data"}, "rg:chain_sum": {}}'
        )
    return MixtureTask([get_task(name, **settings) for name, settings in of.items()])


def _plain(spec: FileSpec) -> Benchmark:
    """A run's wording of a task as a benchmark: `NAME:plain`, on what runs never train on."""

    def read(text: str, row: Row) -> Reading:
        check = spec.check(text, spec.gold(row), row)
        more = spec.figures(text, row) if spec.figures else {}
        return Reading(check.parsed, {spec.metric: check.score, **more})

    return Benchmark(
        name=spec.name + PLAIN,
        data=spec.data,
        prompt=lambda row: STYLES[spec.style].format(question=spec.question(row).strip()),
        target=spec.gold,
        ask=Generate({"none": read}, max_new_tokens=spec.max_new_tokens, code=spec.code),
        cluster=spec.cluster,
        own=True,
    )


def drawn(name: str, n: int, seed: int) -> tuple[Benchmark, Rows]:
    """A reasoning-gym task as a benchmark, with `n` held-out questions as its rows."""
    task = get_task(name)
    prompts = {prompt.id: prompt for prompt in task.prompts("test", n, seed)}

    def read(text: str, row: Row) -> Reading:
        check = task.check(prompts[row["id"]], text)
        return Reading(check.parsed, {"exact_match": float(check.correct), "score": check.score})

    rows = tuple(
        {"id": p.id, "question": p.messages[-1]["content"], "answer": p.answer, **p.meta}
        for p in prompts.values()
    )
    benchmark = Benchmark(
        name=name,
        data=Data({"test": name}, {"question": str}, "reasoning-gym"),
        prompt=lambda row: row["question"],
        target=lambda row: row["answer"] or "",
        ask=Generate({"none": read}),
        own=True,
    )
    origin = {"reasoning-gym": importlib.metadata.version("reasoning-gym")}
    return benchmark, Rows(rows, tuple(f"{name}:{row['id']}" for row in rows), origin)


def _register(benchmarks: Iterable[Benchmark]) -> dict[str, Benchmark]:
    found: dict[str, Benchmark] = {}
    for benchmark in benchmarks:
        assert benchmark.name not in found, benchmark.name
        found[benchmark.name] = benchmark
    return found


BENCHMARKS = _register([b for m in MODULES for b in m.BENCHMARKS] + [_plain(s) for s in SPECS])
GROUPS = sorted({group for benchmark in BENCHMARKS.values() for group in benchmark.groups})
# A task with no wording but ours needs no ":plain" behind its name.
SHORT = {s.name: s.name + PLAIN for s in SPECS if s.name not in {*BENCHMARKS, *GROUPS}}


def benchmark_groups() -> dict[str, list[str]]:
    """Name of a group -> its benchmarks.

    "all" has each task once: in its ordinary wording, or in ours where the ordinary one is a
    group of many (BIG-bench Hard, MMLU).
    """
    groups: dict[str, list[str]] = {name: [] for name in GROUPS}
    for benchmark in BENCHMARKS.values():
        for group in benchmark.groups:
            groups[group].append(benchmark.name)
    once = [b.name for b in BENCHMARKS.values() if not (b.groups or b.own or _variant(b.name))]
    ours = [s.name + PLAIN for s in SPECS if s.name not in BENCHMARKS]
    return groups | {ALL: once + ours}


def _variant(name: str) -> bool:
    """Whether the name is another's with an ending: gsm8k_cot of gsm8k."""
    return any(name.startswith(f"{other}_") for other in BENCHMARKS)


def benchmark_names() -> list[str]:
    """Every name that `get_benchmarks` takes, apart from "rg:NAME"."""
    return [*BENCHMARKS, *SHORT, *benchmark_groups()]


def get_benchmarks(names: str) -> list[str]:
    """The tasks that comma-separated names stand for, each once, in order.

    Names are those of benchmarks, of groups, or "rg:NAME". Raises UserError with the nearest
    names for an unknown one.
    """
    found: list[str] = []
    groups = benchmark_groups()
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name.startswith("rg:"):
            check_choice(name, dataset_names(), "task")
        else:
            check_choice(name, [*benchmark_names(), *dataset_names()], "task")
        name = SHORT.get(name, name)
        found += groups.get(name, [name])
    if not found:
        raise UserError("--tasks names no task; try gsm8k, boolq, or selfevo eval --tasks list")
    return list(dict.fromkeys(found))
