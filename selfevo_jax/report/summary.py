"""The summary of a run: what was measured, what changed, what it cost, how to repeat it.

A pure function of the files in the workdir; `summary.json` holds it.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfevo_jax.evaluate.stats import mean_interval, paired_difference, wilson_interval
from selfevo_jax.learn.goodput import PARTS
from selfevo_jax.report.costs import goodput, stage_costs, total_cost
from selfevo_jax.report.folder import Place, RunFolder, label, place_of
from selfevo_jax.report.tested import Row, Test, tests


def summarise(workdir: str | Path) -> dict[str, Any]:
    """Summarise a run, finished or not.

    `tested`: one row for every test of a policy on held-out questions, of all branches and in the
    order of the plan: round, stage, policy, title, line, and `tasks[task]`: n, score (share
    correct), low and high (95 %, Wilson), mean_score, parsed (share of replies with an answer in
    them), tokens (mean length). `gains[task]`: the gain of each later test over the first on the
    items that both answered, its paired 95 % interval, exact McNemar p, and how many answers were
    fixed and broken. `concluded[task]`: which of the gains is that of the policy that the run ends
    with (None: several stand side by side). `rounds[i].tasks` are those of the main line alone.
    `trainings`: one row for every stage that trains, with its goodput and what it cost.
    `stages` and `cost`: see `costs`. `machines`: what trainings ran on.
    `gauges` and `accepted`: one row for every trained policy that was gauged or decided on.
    `tables`: what the method concludes.
    `overlap`: for every training what its records share with held-out questions, before it began.
    Raises UserError for a damaged file.
    """
    folder = RunFolder(workdir)
    run = folder.document("run.json")
    found = tests(folder)
    rounds = [_round(folder, number, found) for number in folder.rounds()]
    stages = stage_costs(folder)
    gains = _gains(found)
    return {
        "config": folder.document("config.json"),
        "run": run,
        "stages": stages,
        "cost": total_cost(stages),
        "machines": _machines(folder),
        "gauges": _concluded(folder, "gauge"),
        "accepted": _concluded(folder, "accept"),
        "trainings": list(_trainings(folder, stages)),
        "tables": [{"name": name, "rows": _table(folder, name)} for name in run.get("tables", [])],
        "overlap": _overlap(folder),
        "tested": [_tested(test) for test in found],
        "rounds": rounds,
        "gains": gains,
        "concluded": {task: _final(rows, run.get("best")) for task, rows in gains.items()},
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
        for number, stage in folder.places()
        if stage.rpartition(".")[2] == kind
        for row in folder.rows(number, stage, needs=("values",))
    ]


def _trainings(folder: RunFolder, costs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    spent = {row["stage"]: row for row in costs}
    for number, stage in folder.places():
        seen = _training(folder.rows(number, stage, "metrics"))
        if not seen:
            continue
        cost = spent[label((number, stage))]
        yield {
            "round": number,
            "stage": stage,
            **seen,
            **{name: cost[name] for name in ("flops", "mfu", "seconds")},
            "goodput": goodput(list(folder.rows(number, stage, "goodput", needs=PARTS))),
            "sampled": _sampled(folder, (number, stage)),
        }


def _sampled(folder: RunFolder, training: Place) -> dict[str, Any]:
    """How the replies of its round were marked that a training's records come from."""
    n = correct = unparsed = 0
    for place in folder.behind(training):
        for row in folder.rows(*place):
            if not {"sample_id", "correct"} <= row.keys():
                break  # the records of a stage are of one kind
            n += 1
            correct += bool(row["correct"])
            unparsed += row.get("parsed") is None
    return {"n": n, "correct": correct, "unparsed": unparsed}


def _machines(folder: RunFolder) -> list[dict[str, Any]]:
    """What the trainings ran on, each once, with the stages that did."""
    found: dict[str, dict[str, Any]] = {}
    for place in folder.places():
        for line in folder.rows(*place, "timings"):
            if "machine" in line:
                key = json.dumps(line["machine"], sort_keys=True)
                row = found.setdefault(key, {"stages": [], **line["machine"]})
                row["stages"] = list(dict.fromkeys([*row["stages"], label(place)]))
    return list(found.values())


def _table(folder: RunFolder, name: str) -> list[dict[str, Any]]:
    place = place_of(name)
    rows = folder.rows(*place, needs=("values",)) if place else ()
    return [row["values"] for row in rows]


def _overlap(folder: RunFolder) -> list[dict[str, Any]]:
    """The overlap.json of every training (`selfevo_jax.evolve.overlap`), with its stage."""
    found = []
    for place in folder.places():
        if told := folder.document(f"{label(place)}/overlap.json"):
            found.append({"stage": label(place), **told})
    return found


def _tested(test: Test) -> dict[str, Any]:
    tasks = {task: _task(list(by_id.values())) for task, by_id in sorted(test.answers.items())}
    return _named(test) | {"tasks": tasks}


def _named(test: Test) -> dict[str, Any]:
    number, stage = test.place
    return {
        "round": number,
        "stage": stage,
        "policy": test.policy,
        "title": test.title,
        "line": test.line,
    }


def _round(folder: RunFolder, number: int, found: Sequence[Test]) -> dict[str, Any]:
    mine = [test for test in found if test.place[0] == number]
    tasks = {
        task: row for test in mine if not test.line for task, row in _tested(test)["tasks"].items()
    }
    places = [(number, stage) for stage in folder.stages(number)]
    counts, generated = _made(folder, places)
    answered = sum(
        int(r["tokens"] or 0) for t in mine for by_id in t.answers.values() for r in by_id.values()
    )
    trained = [_training(folder.rows(*place, "metrics")).get("tokens", 0) for place in places]
    return {
        "round": number,
        "tasks": tasks,
        "counts": counts,
        "tokens": {"generated": generated, "evaluated": answered, "trained": sum(trained)},
        "seconds": {stage: round(folder.seconds(n, stage), 3) for n, stage in places},
    }


KINDS = {
    "prompts": {"messages", "answer"},
    "samples": {"parent_id", "finish"},
    "verdicts": {"sample_id", "correct"},
    "pairs": {"chosen", "rejected"},
}  # of record, by fields that no other kind has


def _made(folder: RunFolder, places: Sequence[Place]) -> tuple[dict[str, int], int]:
    """How many different records of each of KINDS some stages made, and the tokens of the samples.

    What only measured is left out. A sample that was chosen among others is the same one.
    """
    ids: dict[str, set[str]] = {kind: set() for kind in KINDS}
    tokens = 0
    for place in places:
        kind = _kind(folder, place)
        if kind is None:
            continue
        for row in folder.rows(*place):
            if row["id"] not in ids[kind]:
                tokens += len(row["tokens"]) if kind == "samples" else 0
                ids[kind].add(row["id"])
    return {kind: len(found) for kind, found in ids.items()}, tokens


def _kind(folder: RunFolder, place: Place) -> str | None:
    """Which of KINDS a stage made for the run to go by."""
    measuring = folder.plan.get(label(place), {}).get("measuring")
    first = {} if measuring else next(folder.rows(*place), {})
    return next((kind for kind, fields in KINDS.items() if fields <= first.keys()), None)


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


def _gains(found: Sequence[Test]) -> dict[str, list[dict[str, Any]]]:
    """Per task, each later test against the first, on the items that both have."""
    first, later = (found[0].answers, found[1:]) if found else ({}, ())
    gains: dict[str, list[dict[str, Any]]] = {}
    for task, before in sorted(first.items()):
        for test in later:
            after = test.answers.get(task, {})
            shared = sorted(before.keys() & after.keys())
            if shared:
                pairs = [(bool(before[i]["correct"]), bool(after[i]["correct"])) for i in shared]
                gains.setdefault(task, []).append(_named(test) | _gain(pairs))
    return gains


def _final(rows: Sequence[Mapping[str, Any]], best: str | None) -> int | None:
    """The place of the last gain of the policy `best`, else of the main line, else None."""
    for wanted in (lambda row: row["policy"] == best, lambda row: not row["line"]):
        places = [place for place, row in enumerate(rows) if wanted(row)]
        if places:
            return places[-1]
    return None


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
