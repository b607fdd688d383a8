"""Outcomes to figures, and the files that carry them, in the shape of lm-evaluation-harness.

`results_KEY.json` and `samples_TASK_KEY.jsonl` have the harness's fields and nothing that
differs from run to run: KEY names what was evaluated, where the harness writes the time. Ours
beside them: `METRIC_ci95,READING`, `parse_rate,READING`, and what was too long or cut short.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from selfevo_jax.evaluate.benchmark import Benchmark, Choose
from selfevo_jax.evaluate.metrics import best_threshold
from selfevo_jax.evaluate.running import Outcome
from selfevo_jax.evaluate.stats import (
    Interval,
    clustered_interval,
    mean_interval,
    n_for_difference,
    standard_error,
)
from selfevo_jax.evaluate.task import SPLIT_SALT
from selfevo_jax.sample.protocol import SamplingParams

POINTS = 0.02  # the gain whose detection `n_for_2_points` counts items for


@dataclass(frozen=True)
class Figure:
    """One metric of one reading over `n` items; `parsed` is the share of readable replies.

    `threshold` is the log-probability of "no answer" above which replies were taken back, of the
    metrics `best_*`. It is chosen on the same items: their intervals take it as given.
    """

    task: str
    reading: str
    metric: str
    n: int
    mean: float
    error: float | None
    interval: Interval
    parsed: float
    needed: int | None
    threshold: float | None = None


@dataclass(frozen=True)
class TaskResult:
    """What an evaluation says of one task. `first` is its first outcome, to look at.

    `too_long` are the places of prompts that were not asked, `refused` those that a server did
    not answer, with its reason, and `unjudged` those of programs that could not be run.
    """

    task: str
    n: int
    figures: tuple[Figure, ...]
    too_long: tuple[str, ...]
    refused: Mapping[str, str]
    unjudged: tuple[str, ...]
    cut: int
    tokens: float
    first: Outcome


def summarise(task: str, outcomes: Iterable[Outcome]) -> TaskResult:
    """The figures of a task; the first figure is the one to look at. Needs one outcome or more."""
    rows = list(outcomes)
    figures = tuple(_figure(task, rows, *key) for key in _keys(rows))
    figures += tuple(_best(task, rows, *key) for key in _keys(rows) if _doubted(rows, *key))
    return TaskResult(
        task=task,
        n=len(rows),
        figures=figures,
        too_long=tuple(row.place for row in rows if row.too_long),
        refused={row.place: row.refused for row in rows if row.refused},
        unjudged=tuple(row.place for row in rows if not _scored(row)),
        cut=sum(row.cut for row in rows),
        tokens=sum(row.tokens for row in rows) / len(rows),
        first=rows[0],
    )


def _scored(row: Outcome) -> bool:
    return any(found["scores"] for found in row.readings.values())


def _keys(rows: Sequence[Outcome]) -> list[tuple[str, str]]:
    """(reading, metric) in order of first appearance."""
    keys = {}
    for row in rows:
        for reading, found in row.readings.items():
            keys |= {(reading, metric): None for metric in found["scores"]}
    return sorted(keys, key=lambda key: list(rows[0].readings).index(key[0]))


def _figure(task: str, rows: Sequence[Outcome], reading: str, metric: str) -> Figure:
    scored = [row for row in rows if metric in row.readings[reading]["scores"]]
    counts = [row.readings[reading].get("counts", {}).get(metric, 1) for row in scored]
    values = [
        row.readings[reading]["scores"][metric]
        for row, count in zip(scored, counts, strict=True)
        for _ in range(count)
    ]
    clusters = _clusters(scored, counts)
    replies = [parsed for row in rows for parsed in row.readings[reading]["parsed"]]
    mean = sum(values) / len(values)
    return Figure(
        task=task,
        reading=reading,
        metric=metric,
        n=len(values),
        mean=mean,
        error=_error(values, clusters),
        interval=clustered_interval(values, clusters) if clusters else mean_interval(values),
        parsed=sum(parsed is not None for parsed in replies) / len(replies),
        needed=_needed(values, mean),
    )


THRESHOLDED = ("exact", "f1")


def _doubted(rows: Sequence[Outcome], reading: str, metric: str) -> bool:
    """Whether a metric has a best threshold on the log-probability of no answer."""
    return metric in THRESHOLDED and any("no_answer" in row.readings[reading] for row in rows)


def _best(task: str, rows: Sequence[Outcome], reading: str, metric: str) -> Figure:
    found = [row.readings[reading] for row in rows]
    scores = [reading["scores"][metric] for reading in found]
    # A prompt that was not answered stays wrong whatever the threshold.
    lost = [row.too_long or bool(row.refused) for row in rows]
    answerable = [x or f"HasAns_{metric}" in r["scores"] for x, r in zip(lost, found, strict=True)]
    doubts = [0.0 if x else r["no_answer"] for x, r in zip(lost, found, strict=True)]
    values, threshold = best_threshold(scores, answerable, doubts)
    plain = _figure(task, rows, reading, metric)
    clusters = _clusters(rows, [1] * len(rows))
    return replace(
        plain,
        metric=f"best_{metric}",
        mean=sum(values) / len(values),
        error=_error(values, clusters),
        interval=clustered_interval(values, clusters) if clusters else mean_interval(values),
        needed=None,
        threshold=threshold,
    )


def _clusters(rows: Sequence[Outcome], counts: Sequence[int]) -> list[str] | None:
    """What each value belongs to: a shared passage, or the question that gave several values."""
    if rows[0].cluster is None and set(counts) == {1}:
        return None
    names = [str(row.number) if row.cluster is None else row.cluster for row in rows]
    return [name for name, count in zip(names, counts, strict=True) for _ in range(count)]


def _error(values: Sequence[float], clusters: Sequence[str] | None) -> float | None:
    """None where the spread cannot be told: fewer than two values or clusters."""
    if len(set(clusters or range(len(values)))) < 2:
        return None
    return standard_error(values, clusters)


def _needed(values: Sequence[float], mean: float) -> int | None:
    """Items to see a gain of two points with 80 % power, two independent runs of this accuracy."""
    discordant = 2 * mean * (1 - mean)
    if not set(values) <= {0.0, 1.0} or discordant < POINTS:
        return None
    return n_for_difference(POINTS, discordant)


@dataclass(frozen=True)
class Asked:
    """How a task was asked, with `shots` examples; `rows` are those of the whole split.

    `divided`: whether the split is a part of a file by question hash, which SPLIT_SALT decides.
    """

    benchmark: Benchmark
    rows: int
    origin: Mapping[str, str]
    shots: int
    sampling: SamplingParams
    repeats: int
    divided: bool


def results_json(
    results: Sequence[TaskResult], asked: Mapping[str, Asked], config: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of `results_KEY.json`; `asked` is by task."""
    return {
        "results": {result.task: _figures_json(result) for result in results},
        "groups": _groups(results, asked),
        "versions": {task: how.benchmark.version for task, how in asked.items()},
        "n-shot": {task: how.shots for task, how in asked.items()},
        "n-samples": {r.task: {"original": asked[r.task].rows, "effective": r.n} for r in results},
        "higher_is_better": {
            r.task: {figure.metric: True for figure in r.figures} for r in results
        },
        "configs": {task: _task_config(how) for task, how in asked.items()},
        "data": {task: dict(how.origin) for task, how in asked.items()},
        "config": {**config, "splits": {task: _split(how) for task, how in asked.items()}},
        "model_name": config["model"],
    }


def _split(how: Asked) -> dict[str, str]:
    return {"split": how.benchmark.split} | ({"salt": SPLIT_SALT} if how.divided else {})


def _task_config(how: Asked) -> dict[str, Any]:
    """What the harness writes of a task, as far as it has a meaning here."""
    benchmark, sampling = how.benchmark, how.sampling
    config = {
        "task": benchmark.name,
        "test_split": benchmark.split,
        "fewshot_split": benchmark.shots.split,
        "target_delimiter": benchmark.delimiter,
        "num_fewshot": how.shots,
        "repeats": how.repeats,
        "output_type": "multiple_choice",
        "metadata": {"version": benchmark.version},
    }
    if isinstance(benchmark.ask, Choose):
        return config
    chosen = {name: getattr(sampling, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    kwargs = {
        "until": list(sampling.stop),
        "max_gen_toks": sampling.max_new_tokens,
        "do_sample": sampling.temperature > 0,
    }
    return config | {"output_type": "generate_until", "generation_kwargs": kwargs | chosen}


def _figures_json(result: TaskResult) -> dict[str, Any]:
    row: dict[str, Any] = {"alias": result.task}
    for figure in result.figures:
        metric, reading = figure.metric, figure.reading
        error = "N/A" if figure.error is None else figure.error
        row |= {
            f"{metric},{reading}": figure.mean,
            f"{metric}_stderr,{reading}": error,
            f"{metric}_ci95,{reading}": [figure.interval.low, figure.interval.high],
            f"parse_rate,{reading}": figure.parsed,
        }
        if figure.threshold is not None:
            row[f"{metric}_thresh,{reading}"] = figure.threshold
        if figure.needed is not None:
            row[f"{metric}_n_for_2_points,{reading}"] = figure.needed
    row |= {"too_long": list(result.too_long), "refused": dict(result.refused)}
    row |= {"unjudged": list(result.unjudged), "cut_replies": result.cut}
    return row | {"mean_tokens": result.tokens}


def _groups(results: Sequence[TaskResult], asked: Mapping[str, Asked]) -> dict[str, dict[str, Any]]:
    """Each group's first figure, its tasks weighted by their items."""
    members: dict[str, list[Figure]] = {}
    for result in results:
        for group in asked[result.task].benchmark.groups:
            members.setdefault(group, []).append(result.figures[0])
    return {group: _pooled(group, figures) for group, figures in members.items()}


def _pooled(group: str, figures: Sequence[Figure]) -> dict[str, Any]:
    n = sum(figure.n for figure in figures)
    mean = sum(figure.mean * figure.n for figure in figures) / n
    row = {"alias": group, f"{figures[0].metric},{figures[0].reading}": mean, "n": n}
    if all(figure.error is not None for figure in figures):
        error = math.sqrt(sum((figure.error * figure.n) ** 2 for figure in figures)) / n
        row[f"{figures[0].metric}_stderr,{figures[0].reading}"] = error
    return row | {"tasks": [figure.task for figure in figures]}


def sample_rows(outcomes: Iterable[Outcome]) -> Iterator[dict[str, Any]]:
    """The rows of `samples_TASK_KEY.jsonl`: one per outcome and reading, as the harness has it."""
    for outcome in outcomes:
        asked = [[outcome.prompt, reply] for reply in outcome.replies] if outcome.logps else []
        for reading, found in outcome.readings.items():
            yield {
                "doc_id": outcome.number,
                "doc": outcome.doc,
                "target": outcome.target,
                "arguments": _arguments(asked or [[outcome.prompt]]),
                "resps": [[str(logp)] for logp in outcome.logps] or [list(outcome.replies)],
                "filtered_resps": list(outcome.logps) or found["parsed"],
                "filter": reading,
                "metrics": list(found["scores"]),
                "doc_hash": _hash(json.dumps(outcome.doc, ensure_ascii=False, sort_keys=True)),
                "prompt_hash": _hash(outcome.prompt),
                "target_hash": _hash(outcome.target),
                "parsed": found["parsed"],
                "place": outcome.place,
                "too_long": outcome.too_long,
                "refused": outcome.refused,
                **({"no_answer": found["no_answer"]} if "no_answer" in found else {}),
                **found["scores"],
            }


def _arguments(asked: Sequence[Sequence[str]]) -> dict[str, dict[str, str]]:
    return {
        f"gen_args_{n}": {f"arg_{place}": text for place, text in enumerate(texts)}
        for n, texts in enumerate(asked)
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def task_slug(task: str) -> str:
    """A task's name as part of a file name."""
    return task.replace(":", "_")


def results_paths(out: Path, key: str) -> tuple[Path, Path]:
    """(results file, folder of the rest) for --out, a folder or a .json file."""
    if out.suffix == ".json":
        return out, out.with_suffix("")
    return out / f"results_{key}.json", out
