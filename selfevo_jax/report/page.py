"""The page of a run: one HTML file with everything in it, for any browser, without a network.

What a model wrote is hostile. It travels as JSON in which no `<` is left, is shown through text
nodes only, and a content security policy allows the page's own script and style, by hash, and
nothing else.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from selfevo_jax.report.folder import Place, RunFolder
from selfevo_jax.report.judges import contests, judges
from selfevo_jax.report.lineage import lineage
from selfevo_jax.report.now import progress
from selfevo_jax.report.selections import selections
from selfevo_jax.report.summary import finite, summarise, write_whole
from selfevo_jax.report.tested import answers, tests
from selfevo_jax.report.texts import conversation, questions, shorten, within_budget

MAX_POINTS = 400  # of a curve in one round
BINS = 24
SCRIPTS = (
    "base.js", "shell.js", "charts.js", "browser.js", "lineage.js", "records.js", "page.js",
)  # fmt: skip
LIVE_SCRIPTS = ("live.js",)
FOLLOWING = "; connect-src 'self'"  # what a page that follows a run may do besides
SHOWN = (
    "rounds tested gains concluded totals cost stages trainings tables gauges accepted overlap"
).split()  # of the summary
CURVES = ("loss", "margin", "reward_chosen", "reward_rejected", "accuracy")


def write_page(workdir: str | Path) -> Path:
    """Write `report.html` into the workdir, whole or not at all; return its path."""
    path = Path(workdir) / "report.html"
    write_whole(path, build_page(workdir))
    return path


def build_page(workdir: str | Path, live: str = "") -> str:
    """The page of a run, finished or not. Raises UserError for a damaged or empty workdir.

    `live`: the version of the files, for a page that a server keeps up to date.
    """
    data = page_data(RunFolder(workdir), summarise(workdir)) | {"version": live}
    scripts = (*SCRIPTS, *LIVE_SCRIPTS) if live else SCRIPTS
    return rendered(data, scripts, _plain(data), FOLLOWING if live else "")


def rendered(data: Mapping[str, Any], scripts: Sequence[str], plain: str, allowed: str = "") -> str:
    """A page of ours: `scripts` of the template folder draw `data`; `plain` is for no script.

    `allowed` is added to what the content security policy allows.
    """
    script = '"use strict";\n' + "\n".join(_template(name) for name in scripts)
    style = _template("page.css")
    parts = {
        "policy": _policy(script, style) + allowed,
        "style": style,
        "script": script,
        "plain": html.escape(plain),
        "data": embed_json(data),
    }
    page = _template("page.html")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)


def embed_json(value: Any) -> str:
    """JSON that is safe inside a script element: no `<`, `>` or `&`, no line separators."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    unsafe = {
        "<": "\\u003c",
        ">": "\\u003e",
        "&": "\\u0026",
        "\u2028": "\\u2028",
        "\u2029": "\\u2029",
    }
    return re.sub("[<>&\u2028\u2029]", lambda match: unsafe[match[0]], text)


def page_data(folder: RunFolder, summary: dict[str, Any]) -> dict[str, Any]:
    """Everything that the page shows, as plain JSON values."""
    config, run = summary["config"], summary["run"]
    curves, note = _curves(folder)
    tasks = [task for row in summary["tested"] for task in row["tasks"]]
    wanted = config.get("task", {}).get("name")
    return {
        "name": str(run.get("name") or folder.path.resolve().name),
        "about": _about(config, run),
        "now": progress(folder.path, run),
        "headline": wanted if wanted in tasks else (tasks[0] if tasks else ""),
        "summary": {key: summary[key] for key in SHOWN},
        "curves": curves,
        "curves_note": note,
        "lengths": _lengths(folder),
        "judges": judges(folder),
        "contests": contests(folder),
        "selections": selections(folder, config),
        "lineage": lineage(folder, run),
        "answers": _answers(folder, config),
        "pairs": _pairs(folder),
        "command": _command(run),
        "environment": flat(run) + _machines(summary["machines"]),
        "settings": flat(config),
        "footer": "Made by selfevo report from the files of the run. Nothing here is loaded "
        "from or sent to a network.",
    }


def _machines(found: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What trainings ran on; numbered where the run went from one machine to another."""
    several = len(found) > 1
    return [
        row
        for number, machine in enumerate(found, start=1)
        for row in flat(machine, f"machine {number}." if several else "machine.")
    ]


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as (dotted name, text) rows."""
    if isinstance(value, Mapping):
        return [row for key in value for row in flat(value[key], f"{prefix}{key}.")]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return [(prefix.rstrip("."), shorten(text))]


def _template(name: str) -> str:
    return (files("selfevo_jax.report") / "template" / name).read_text(encoding="utf-8")


def _policy(script: str, style: str) -> str:
    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"default-src 'none'; script-src 'sha256-{digest(script)}'; "
        f"style-src 'sha256-{digest(style)}'; img-src data:; base-uri 'none'; form-action 'none'"
    )


def _plain(data: Mapping[str, Any]) -> str:
    """The headline in one sentence, for a browser without scripts."""
    task, summary = data["headline"], data["summary"]
    gains, place = summary["gains"].get(task), summary["concluded"].get(task)
    if not gains:
        return "No trained round has been evaluated yet."
    if place is None:
        return f"{len(gains)} policies were tested on {task} beside the first."
    gain = gains[place]
    return (
        f"Accuracy on {task}: {gain['before']:.1%} before, {gain['after']:.1%} after, "
        f"gain {100 * gain['gain']:+.1f} points (95 % interval {100 * gain['low']:+.1f} to "
        f"{100 * gain['high']:+.1f}, n = {gain['n']})."
    )


def _about(config: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    named = {
        "method": config.get("method"),
        "model": config.get("model"),
        "task": config.get("task", {}).get("name"),
        "seed": config.get("seed"),
    }
    about = [f"{name} {value}" for name, value in named.items() if value not in (None, "")]
    return about + ["not finished yet"] * (run.get("finished") is False)


def _command(run: Mapping[str, Any]) -> str:
    command = run.get("command") or ""
    return command if isinstance(command, str) else " ".join(map(str, command))


def _curves(folder: RunFolder) -> tuple[list[dict[str, Any]], str]:
    """Per training its metrics over a step count that runs through all of them."""
    curves, start, thinned = [], 0, False
    for number, stage in folder.places():
        rows = list(folder.rows(number, stage, "metrics"))
        if not rows:
            continue
        values = {}
        for name in CURVES:
            points = [
                (start + i, v)
                for i, row in enumerate(rows)
                if (v := finite(row.get(name))) is not None
            ]
            if points:
                values[name] = thin(points)
                thinned |= len(points) > MAX_POINTS
        curves.append({"round": number, "stage": stage, "start": start, "values": values})
        start += len(rows)
    note = (
        f"Long curves are shown as means over {MAX_POINTS} stretches of each training."
        if thinned
        else ""
    )
    return curves, note


def thin(points: Sequence[tuple[int, float]]) -> list[tuple[float, float]]:
    """At most `MAX_POINTS` points: means over equal stretches."""
    stretch = -(-len(points) // MAX_POINTS)
    groups = [points[i : i + stretch] for i in range(0, len(points), stretch)]
    return [tuple(sum(axis) / len(group) for axis in zip(*group, strict=True)) for group in groups]


def _lengths(folder: RunFolder) -> dict[str, Any]:
    """Histograms of answer lengths with the same bins in each test, up to the 99th percentile."""
    lengths = [
        (
            test,
            [int(row["tokens"] or 0) for by_id in test.answers.values() for row in by_id.values()],
        )
        for test in tests(folder)
    ]
    everything = sorted(length for _, row in lengths for length in row)
    if not everything:
        return {"edges": [], "tests": []}
    top = max(1, everything[int(0.99 * (len(everything) - 1))])
    width = -(-(top + 1) // BINS)
    edges = [width * i for i in range(-(-(top + 1) // width) + 1)]
    shown = [
        {"round": test.place[0], "title": test.title} | _histogram(row, width, len(edges) - 1)
        for test, row in lengths
    ]
    return {"edges": edges, "tests": shown}


def _histogram(lengths: list[int], width: int, bins: int) -> dict[str, Any]:
    counts = [0] * bins
    for length in lengths:
        counts[min(length // width, bins - 1)] += 1
    return {
        "n": len(lengths),
        "counts": counts,
        "mean": sum(lengths) / len(lengths),
        "longest": max(lengths),
        "over": sum(length >= width * bins for length in lengths),
    }


def _answers(folder: RunFolder, config: Mapping[str, Any]) -> dict[str, Any]:
    """One row per held-out question, with its reply in each test, of all branches."""
    sides: dict[tuple[Place, str], int] = {}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    tasks: dict[str, int] = {}
    for place, answer in _told(folder):
        side = sides.setdefault((place, answer.get("title", answer["policy"])), len(sides))
        task = tasks.setdefault(answer["task"], len(tasks))
        key = (answer["task"], answer["prompt_id"])
        row = rows.setdefault(
            key, {"id": key[1], "task": task, "gold": answer.get("gold"), "replies": {}}
        )
        row["replies"][side] = _reply(answer)
    kept, total = within_budget(rows.values(), _answer_size)
    asked = questions(folder, config, {row["id"] for row in kept})
    for row in kept:
        row["gold"] = None if row["gold"] is None else shorten(row["gold"])
        row["question"] = asked[row["id"]]
        row["replies"] = [row["replies"].get(side) for side in range(len(sides))]
    shown = [{"round": place[0], "stage": place[1], "title": title} for place, title in sides]
    return {"sides": shown, "tasks": list(tasks), "total": total, "rows": kept}


def _told(folder: RunFolder) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Every answer to a held-out question, with the stage that marked it."""
    for place in folder.places():
        if not folder.decides(place):
            yield from ((place, row) for row in answers(folder, place))


def _reply(row: Mapping[str, Any]) -> list[Any]:
    parsed = row.get("parsed")
    return [
        shorten(str(row.get("text", ""))),
        None if parsed is None else shorten(str(parsed)),
        int(bool(row.get("correct"))),
        int(row.get("tokens") or 0),
        finite(row.get("score")) or 0.0,
    ]


def _answer_size(row: Mapping[str, Any]) -> int:
    return sum(len(reply[0]) for reply in row["replies"].values())


def _pairs(folder: RunFolder) -> dict[str, Any]:
    rows, total = within_budget(_stored_pairs(folder), _pair_size)
    return {"total": total, "rows": rows}


def _stored_pairs(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """The preference pairs of all stages that made some."""
    for number, stage in folder.places():
        for row in folder.rows(number, stage):
            if not {"prompt", "chosen", "rejected"} <= row.keys():
                break  # the records of a stage are of one kind
            yield {
                "round": number,
                "stage": stage,
                "question": shorten(conversation(row["prompt"])),
                "chosen": shorten(row["chosen"]),
                "rejected": shorten(row["rejected"]),
            }


def _pair_size(row: Mapping[str, Any]) -> int:
    return sum(len(row[name]) for name in ("question", "chosen", "rejected"))
