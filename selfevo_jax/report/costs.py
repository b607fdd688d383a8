"""What every stage of a run cost, in tokens and seconds, to compare methods at equal budget, and
how a training's time was spent."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from selfevo_jax.learn.goodput import PARTS
from selfevo_jax.report.folder import Place, RunFolder, label

TOKENS = ("generated_tokens", "read_tokens", "trained_tokens")


def stage_costs(folder: RunFolder) -> list[dict[str, Any]]:
    """A row for every stage that has a folder, in the order of the plan.

    {"stage", "measuring", "generated_tokens", "read_tokens", "trained_tokens", "flops", "seconds",
    "mfu"}, over all interrupted attempts (of one that was killed up to ten seconds are missing)
    and all hosts, whose tokens add up while the seconds are those of the host that took longest.
    `measuring` stages look at the test split and decide nothing. `flops`: what useful training
    tokens ask for (`models.flops`), None where no step noted it. `mfu` is the mean over the
    seconds of those steps that noted one, None where the device's peak is not known.
    """
    return [_stage(folder, place) for place in folder.places()]


def _stage(folder: RunFolder, place: Place) -> dict[str, Any]:
    lines = [line for host in folder.timings(*place) for line in host]
    return {
        "stage": label(place),
        "measuring": bool(folder.plan.get(label(place), {}).get("measuring")),
        "generated_tokens": sum(int(line.get("generated_tokens", 0)) for line in lines),
        "read_tokens": sum(int(line.get("read_tokens", 0)) for line in lines),
        "trained_tokens": sum(int(row.get("tokens", 0)) for row in folder.rows(*place, "metrics")),
        "flops": _noted(lines, "flops"),
        "seconds": round(folder.seconds(*place), 3),
        "mfu": _mfu(lines),
    }


def _noted(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """The sum of a figure over the lines that have it, None where none has."""
    noted = [float(line[name]) for line in lines if name in line]
    return sum(noted) if noted else None


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
    flops = [row["flops"] for row in rows if row["flops"] is not None]
    seconds = round(sum(row["seconds"] for row in rows), 3)
    return tokens | {"flops": sum(flops) if flops else None, "seconds": seconds}
