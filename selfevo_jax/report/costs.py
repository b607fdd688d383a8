"""What every stage of a run cost, in tokens and seconds, to compare methods at equal budget, and
how a training's time was spent."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from selfevo_jax.learn.goodput import PARTS
from selfevo_jax.report.folder import RunFolder

TOKENS = ("generated_tokens", "read_tokens", "trained_tokens")


def stage_costs(folder: RunFolder, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every stage that has a folder, in the order of the plan.

    {"stage", "measuring", "generated_tokens", "read_tokens", "trained_tokens", "seconds", "mfu"},
    over all interrupted attempts; of one that was killed up to ten seconds are missing. `measuring`
    stages look at the test split and decide nothing. `mfu` is the mean over the seconds of those
    steps that noted one, None where the device's peak is not known.
    """
    plan = {step["stage"]: step for step in run.get("plan", [])}
    order = {name: place for place, name in enumerate(plan)}
    found = [
        _stage(folder, number, name, plan)
        for number in folder.rounds()
        for name in folder.stages(number)
    ]
    return sorted(found, key=lambda row: order.get(row["stage"], len(order)))


def _stage(
    folder: RunFolder, number: int, name: str, plan: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    label = f"round_{number:02d}/{name}"
    lines = list(folder.rows(number, name, "timings"))
    steps = folder.rows(number, name, "metrics")
    return {
        "stage": label,
        "measuring": bool(plan.get(label, {}).get("measuring")),
        "generated_tokens": sum(int(line.get("generated_tokens", 0)) for line in lines),
        "read_tokens": sum(int(line.get("read_tokens", 0)) for line in lines),
        "trained_tokens": sum(int(step.get("tokens", 0)) for step in steps),
        "seconds": round(sum(float(line.get("seconds", 0.0)) for line in lines), 3),
        "mfu": _mfu(lines),
    }


def _mfu(lines: Sequence[Mapping[str, Any]]) -> float | None:
    noted = [(line["mfu"], line["seconds"]) for line in lines if "mfu" in line]
    seconds = sum(spent for _, spent in noted)
    return sum(share * spent for share, spent in noted) / seconds if seconds else None


def total_cost(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the method cost by itself, and under `measuring` what looking at the test split did."""
    measuring = [row for row in stages if row["measuring"]]
    return _sums([row for row in stages if not row["measuring"]]) | {"measuring": _sums(measuring)}


def goodput(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How the time of a fit was spent, from the lines of its `goodput.jsonl` over all attempts.

    Seconds by `learn.goodput.PARTS`, of `steps` only those that were not done again after a kill,
    whose time is under `again`; `seconds` in all and `share`, the useful part of it. `hosts`: step
    times of each, where there are several. {} without lines.
    """
    spent = dict.fromkeys((*PARTS, "again"), 0.0)
    begun = math.inf  # the first step of the lines after this one
    for line in reversed(lines):
        for part in PARTS:
            spent[part] += line[part]
        taken = line["last"] - line["first"]
        repeated = max(line["last"] - max(line["first"], begun), 0)
        again = line["steps"] * repeated / taken if taken else 0.0
        spent["steps"], spent["again"] = spent["steps"] - again, spent["again"] + again
        begun = min(begun, line["first"])
    seconds = sum(spent.values())
    if not seconds:
        return {}
    hosts = [line["hosts"] for line in lines if "hosts" in line][-1:]
    found = {part: round(value, 3) for part, value in spent.items()}
    found |= {"seconds": round(seconds, 3), "share": round(spent["steps"] / seconds, 4)}
    return found | ({"hosts": hosts[0]} if hosts else {})


def _sums(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    tokens = {name: sum(row[name] for row in rows) for name in TOKENS}
    return tokens | {"seconds": round(sum(row["seconds"] for row in rows), 3)}
