"""What a run chose among what it had: questions to have answered next, and one reply of several.

The log of an acquisition strategy is rows with `rank`, `strategy` and `score`. A choice among
replies is a stage that read them in groups and gave some of them again (a vote, a filter).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from selfevo_jax.report.folder import Place, RunFolder, place_of
from selfevo_jax.report.texts import questions, shorten, within_budget

LOGGED = {"rank", "strategy", "score"}
GROUPS = "groups of "  # how a stage names what it read in groups; the value is the shared field


def selections(folder: RunFolder, config: Mapping[str, Any]) -> dict[str, Any]:
    """{"rows", "total"} of everything that was chosen, with the text of its question.

    Each row: round, stage, question, `figures` (why, by name) and `replies`: (text, whether it was
    kept), of a question that was chosen the policy's own reply, if one was asked for.
    """
    rows, total = within_budget(_selections(folder), _size)
    told = questions(folder, config, {row["id"] for row in rows})
    for row in rows:
        row["question"] = told[row["id"]]
    return {"rows": rows, "total": total}


def _selections(folder: RunFolder) -> Iterator[dict[str, Any]]:
    for place in folder.places():
        first = next(folder.rows(*place), {})
        values = first.get("values")
        if isinstance(values, dict) and values.keys() >= LOGGED:
            chosen = _acquired(folder, place)
        elif {"prompt_id", "parent_id", "text"} <= first.keys():
            chosen = _picked(folder, place)
        else:
            continue
        for row in chosen:
            yield {"round": place[0], "stage": place[1]} | row


def _acquired(folder: RunFolder, place: Place) -> Iterator[dict[str, Any]]:
    """The questions of a selection log, with what the strategy knew of the policy's replies."""
    replies: dict[str, Mapping[str, Any]] = {}
    known: dict[str, Mapping[str, Any]] = {}
    for row in (row for read in folder.read_by(place) for row in folder.rows(*read)):
        if {"prompt_id", "text"} <= row.keys():
            replies[row["prompt_id"]] = row
        elif isinstance(row.get("values"), dict):
            known[row["source_id"]] = row["values"]
    for row in folder.rows(*place, needs=("source_id", "values")):
        reply = replies.get(row["source_id"])
        yield {
            "id": row["source_id"],
            "figures": row["values"] | (known.get(reply["id"], {}) if reply else {}),
            "replies": [[shorten(reply["text"]), 0]] if reply else [],
        }


def _picked(folder: RunFolder, place: Place) -> Iterator[dict[str, Any]]:
    """The groups of replies that a stage chose from; nothing where it made replies of its own."""
    kept = {row["id"] for row in folder.rows(*place)}
    for name, field in folder.inputs(place).items():
        read = place_of(name.removeprefix(GROUPS)) if name.startswith(GROUPS) else None
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for row in folder.rows(*read) if read else ():
            groups.setdefault(str(row.get(field)), []).append(row)
        known = {row["id"] for group in groups.values() for row in group}
        if kept <= known:
            yield from (_group(group, kept) for group in groups.values() if "text" in group[0])


def _group(group: list[Mapping[str, Any]], kept: set[str]) -> dict[str, Any]:
    chosen = [row["id"] in kept for row in group]
    return {
        "id": group[0]["prompt_id"],
        "figures": {"replies": len(group), "kept": sum(chosen)},
        "replies": [[shorten(row["text"]), int(c)] for row, c in zip(group, chosen, strict=True)],
    }


def _size(row: Mapping[str, Any]) -> int:
    return sum(len(text) for text, _ in row["replies"])
