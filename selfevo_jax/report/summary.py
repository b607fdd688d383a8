"""The summary of a run: what was measured, what changed, what it cost, how to repeat it.

A pure function of the files in the workdir; `summary.json` holds it.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfevo_jax.evaluate.stats import mean_interval, paired_difference, wilson_interval
from selfevo_jax.learn.goodput import PARTS
from selfevo_jax.report.costs import goodput, stage_costs, total_cost
from selfevo_jax.report.folder import RunFolder

Row = Mapping[str, Any]


def summarise(workdir: str | Path) -> dict[str, Any]:
    """Summarise a run, finished or not.

    `rounds[i].tasks[task]`: n, score (share correct), low and high (95 %, Wilson), mean_score,
    parsed (share of replies with an answer in them), tokens (mean length). `gains[task][i]`: the
    gain over round 0 on the items that both rounds answered, its paired 95 % interval, exact
    McNemar p, and how many answers were fixed and broken. `stages` and `cost`: see `costs`.
    `rounds[i].goodput`: how the seconds of its training were spent, see `costs.goodput`.
    `gauges` and `accepted`: one row for every trained policy that was gauged or decided on.
    `trainings`: one row for every stage that trains. `tables`: what the method concludes.
    `overlap`: for every training what its records share with held-out questions, before it began.
    Raises UserError for a damaged file.
    """
    folder = RunFolder(workdir)
    run = folder.document("run.json")
    answers = {number: _answers(folder, number) for number in folder.rounds()}
    rounds = [_round(folder, number, answers[number]) for number in folder.rounds()]
    stages = stage_costs(folder, run)
    return {
        "config": folder.document("config.json"),
        "run": run,
        "stages": stages,
        "cost": total_cost(stages),
        "gauges": _concluded(folder, "gauge"),
        "accepted": _concluded(folder, "accept"),
        "trainings": list(_trainings(folder)),
        "tables": [{"name": name, "rows": _table(folder, name)} for name in run.get("tables", [])],
        "overlap": _overlap(folder),
        "rounds": rounds,
        "gains": _gains(answers),
        "totals": _totals(rounds),
    }


def write_summary(workdir: str | Path) -> Path:
    """Write `summary.json` whole or not at all; return its path."""
    path = Path(workdir) / "summary.json"
    text = json.dumps(summarise(workdir), indent=2, sort_keys=True, ensure_ascii=True)
    write_whole(path, text + "\n")
    return path


def write_whole(path: Path, text: str) -> None:
    """Put `text` at `path` in one step: a reader sees the old file or the new one.

    Lone surrogates, which JSON allows in model output, are written as JSON escapes.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(text.encode("utf-8", "backslashreplace"))
    os.replace(part, path)


def _concluded(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    """The values that the stages called `kind`, in whatever branch, have come to."""
    return [
        row["values"]
        for number in folder.rounds()
        for stage in folder.stages(number)
        if stage.rpartition(".")[2] == kind
        for row in folder.rows(number, stage, needs=("values",))
    ]


def _trainings(folder: RunFolder) -> Iterator[dict[str, Any]]:
    for number in folder.rounds():
        for stage in folder.stages(number):
            if seen := _training(folder.rows(number, stage, "metrics")):
                yield {"round": number, "stage": stage, **seen}


def _table(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    number, _, stage = name.partition("/")
    rows = folder.rows(int(number.removeprefix("round_")), stage, needs=("values",))
    return [row["values"] for row in rows]


def _overlap(folder: RunFolder) -> list[dict[str, Any]]:
    """The overlap.json of every training (`selfevo_jax.evolve.overlap`), with its stage."""
    found = []
    for number in folder.rounds():
        for stage in folder.stages(number):
            name = f"round_{number:02d}/{stage}"
            if told := folder.document(f"{name}/overlap.json"):
                found.append({"stage": name, **told})
    return found


def _answers(folder: RunFolder, number: int) -> dict[str, dict[str, Row]]:
    """Task to prompt id to answer, without the texts."""
    kept: dict[str, dict[str, Row]] = {}
    for row in folder.rows(number, "evaluate", needs=("task", "prompt_id", "correct")):
        slim = {key: row.get(key) for key in ("score", "correct", "parsed", "tokens")}
        kept.setdefault(row["task"], {})[row["prompt_id"]] = slim
    return kept


def _round(folder: RunFolder, number: int, answers: Mapping[str, dict[str, Row]]) -> dict[str, Any]:
    stages = folder.stages(number)
    training = _training(folder.rows(number, "train", "metrics"))
    counts = {"prompts": "prompts", "samples": "sample", "verdicts": "check", "pairs": "pair"}
    generated = sum(len(row.get("tokens", ())) for row in folder.rows(number, "sample"))
    answered = sum(int(r["tokens"] or 0) for by_id in answers.values() for r in by_id.values())
    return {
        "round": number,
        "tasks": {task: _task(list(by_id.values())) for task, by_id in sorted(answers.items())},
        "counts": {name: _count(folder.rows(number, stage)) for name, stage in counts.items()},
        "sampled": _sampled(folder.rows(number, "check")),
        "tokens": {
            "generated": generated,
            "evaluated": answered,
            "trained": training.pop("tokens", 0),
        },
        "training": training,
        "goodput": goodput(list(folder.rows(number, "train", "goodput", needs=PARTS))),
        "seconds": {stage: round(folder.seconds(number, stage), 3) for stage in stages},
    }


def _task(answers: list[Row]) -> dict[str, Any]:
    correct = sum(bool(row["correct"]) for row in answers)
    interval = wilson_interval(correct, len(answers))
    scores = [float(row["score"] or 0.0) for row in answers]
    mean = mean_interval(scores)
    return {
        "n": len(answers),
        "correct": correct,
        "score": correct / len(answers),
        **asdict(interval),
        "mean_score": {"value": sum(scores) / len(scores), **asdict(mean)},
        "parsed": sum(row["parsed"] is not None for row in answers) / len(answers),
        "tokens": sum(int(row["tokens"] or 0) for row in answers) / len(answers),
    }


def _sampled(verdicts: Iterable[Row]) -> dict[str, Any]:
    """How the training samples were marked."""
    n = correct = unparsed = 0
    for row in verdicts:
        n += 1
        correct += bool(row.get("correct"))
        unparsed += row.get("parsed") is None
    return {"n": n, "correct": correct, "unparsed": unparsed}


def _count(rows: Iterable[Row]) -> int:
    return sum(1 for _ in rows)


def _training(metrics: Iterable[Row]) -> dict[str, Any]:
    """Steps, tokens, and each curve's first and last finite value."""
    rows = list(metrics)
    if not rows:
        return {}
    result: dict[str, Any] = {"steps": len(rows)}
    result["tokens"] = int(sum(finite(row.get("tokens")) or 0 for row in rows))
    for name in ("loss", "margin", "accuracy", "grad_norm"):
        values = [value for row in rows if (value := finite(row.get(name))) is not None]
        if values:
            result[name] = {"first": values[0], "last": values[-1]}
    result["not_finite"] = sum("loss" in row and finite(row["loss"]) is None for row in rows)
    return result


def finite(value: Any) -> float | None:
    """The value as a float, None where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _gains(answers: Mapping[int, Mapping[str, dict[str, Row]]]) -> dict[str, list[dict[str, Any]]]:
    """Per task, each later round against round 0, on the items that both have."""
    first, *later = sorted(answers)
    gains: dict[str, list[dict[str, Any]]] = {}
    for task, before in sorted(answers[first].items()):
        for number in later:
            after = answers[number].get(task, {})
            shared = sorted(before.keys() & after.keys())
            if shared:
                pairs = [(bool(before[i]["correct"]), bool(after[i]["correct"])) for i in shared]
                gains.setdefault(task, []).append({"round": number, **_gain(pairs)})
    return gains


def _gain(pairs: list[tuple[bool, bool]]) -> dict[str, Any]:
    before, after = zip(*pairs, strict=True)
    difference = paired_difference([float(x) for x in before], [float(x) for x in after])
    return {
        **asdict(difference),
        "fixed": sum(a and not b for b, a in pairs),
        "broken": sum(b and not a for b, a in pairs),
    }


def _totals(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = sum(sum(r["seconds"].values()) for r in rounds)
    return {
        "samples": sum(r["counts"]["samples"] for r in rounds),
        "pairs": sum(r["counts"]["pairs"] for r in rounds),
        "tokens_generated": sum(r["tokens"]["generated"] for r in rounds),
        "tokens_evaluated": sum(r["tokens"]["evaluated"] for r in rounds),
        "tokens_trained": sum(r["tokens"]["trained"] for r in rounds),
        "seconds": round(seconds, 3),
    }
