"""Where each policy of a run came from."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfevo_jax.report.folder import read_document


def lineage(workdir: Path, run: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One entry for each policy, parents before children: what it began from, what it learnt from.

    `depth` counts trainings since the base; `inputs` are the stages whose records it was trained
    on. Raises UserError for a damaged stage.json.
    """
    kept = {**run.get("policies", {}), **run.get("roles", {})}
    nodes = []
    for name, policy in kept.items():
        stage = _stage_of(workdir, policy.get("adapter"))
        nodes.append(
            {
                "name": name,
                "parent": policy.get("parent"),
                "depth": len(list(_ancestors(name, kept))),
                "model": policy.get("model") or run.get("model"),
                "hash": str(policy.get("hash") or "")[:12],
                "stage": str(Path(policy["adapter"]).parent) if policy.get("adapter") else None,
                "inputs": sorted(stage.get("stage", {}).get("inputs", {})),
                "counts": stage.get("counts", {}),
            }
        )
    return sorted(nodes, key=lambda node: node["depth"])


def _stage_of(workdir: Path, adapter: str | None) -> dict[str, Any]:
    if adapter is None:
        return {}
    path = workdir / Path(adapter).parent / "stage.json"
    return read_document(path) if path.is_file() else {}


def _ancestors(name: str, kept: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    seen = {name}
    while (parent := kept.get(name, {}).get("parent")) and parent not in seen:
        name = parent
        seen.add(name)
        yield name
