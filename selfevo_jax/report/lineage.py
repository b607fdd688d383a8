"""Where each policy of a run came from: the policy that it began as, and the data it was shown."""

from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.report.folder import Place, RunFolder, label, place_of

NOUNS = {"chosen": "pairs", "completion": "examples", "completions": "rows"}  # by a field


def lineage(folder: RunFolder, run: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """{"policies", "data"} of a run, parents before children.

    Of a policy: `depth` counts trainings since the base; `inputs` are the stages whose records it
    was trained on. Of those, in `data`: how many `records` of which `kind`, and `by`, the policies
    whose replies or verdicts they come from. `column`: after all that a node comes from.
    Raises UserError for a damaged stage.json or run.json.
    """
    kept = {**run.get("policies", {}), **run.get("roles", {})}
    policies = sorted(
        (_policy(folder, run, name, kept) for name in kept), key=lambda node: node["depth"]
    )
    names = dict.fromkeys(name for node in policies for name in node["inputs"])
    hashes = {policy["hash"]: name for name, policy in reversed(kept.items()) if policy.get("hash")}
    data = [_data(folder, name, hashes) for name in names]
    columns = _columns(policies, data)
    for kind, nodes in (("policy", policies), ("data", data)):
        for node in nodes:
            node["column"] = columns[kind, node["name"]]
    return {"policies": policies, "data": data}


def _columns(
    policies: Sequence[Mapping[str, Any]], data: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, str], int]:
    """Of each node one more than the last of those that it comes from.

    Data that comes from no policy stands right before what was trained on it first.
    """
    behind = {("data", d["name"]): [("policy", name) for name in d["by"]] for d in data}
    for node in policies:
        parents = [("policy", node["parent"])] if node["parent"] else []
        behind["policy", node["name"]] = parents + [("data", name) for name in node["inputs"]]
    columns: dict[tuple[str, str], int] = {}
    try:
        for name in TopologicalSorter(behind).static_order():
            columns[name] = max((columns[one] + 1 for one in behind.get(name, ())), default=0)
    except CycleError as error:
        raise UserError("run.json is damaged: its policies come from each other") from error
    for d in (d for d in data if not d["by"]):
        users = [columns["policy", n["name"]] for n in policies if d["name"] in n["inputs"]]
        columns["data", d["name"]] = min(users) - 1
    return columns


def _policy(
    folder: RunFolder, run: Mapping[str, Any], name: str, kept: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    policy = kept[name]
    stage = str(Path(policy["adapter"]).parent) if policy.get("adapter") else None
    place = place_of(stage) if stage else None
    counts = folder.document(f"{stage}/stage.json").get("counts", {}) if stage else {}
    return {
        "name": name,
        "parent": policy.get("parent"),
        "depth": len(list(_ancestors(name, kept))),
        "model": policy.get("model") or run.get("model"),
        "hash": str(policy.get("hash") or "")[:12],
        "stage": stage,
        "inputs": [label(read) for read in folder.read_by(place)] if place else [],
        "counts": counts,
    }


def _data(folder: RunFolder, name: str, hashes: Mapping[str, str]) -> dict[str, Any]:
    place = place_of(name)
    assert place is not None, f"{name} is no stage"
    first = next(folder.rows(*place), {})
    counts = folder.document(f"{name}/stage.json").get("counts", {})
    return {
        "name": name,
        "records": counts.get("records", 0),
        "kind": next((noun for field, noun in NOUNS.items() if field in first), "records"),
        "by": list(dict.fromkeys(_asked(folder, place, hashes))),
    }


def _asked(folder: RunFolder, place: Place, hashes: Mapping[str, str]) -> Iterator[str]:
    """The policies that were asked in its round for a stage's records, or for what made them."""
    for read in (place, *folder.behind(place)):
        yield from (hashes[value] for value in folder.inputs(read).values() if value in hashes)


def _ancestors(name: str, kept: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    seen = {name}
    while (parent := kept.get(name, {}).get("parent")) and parent not in seen:
        name = parent
        seen.add(name)
        yield name
