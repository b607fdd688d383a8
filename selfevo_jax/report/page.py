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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.tasks import get_task
from selfevo_jax.report.folder import RunFolder
from selfevo_jax.report.judges import judges
from selfevo_jax.report.lineage import lineage
from selfevo_jax.report.now import progress
from selfevo_jax.report.summary import finite, summarise, write_whole

MAX_ROWS = 100_000  # kept in each table of the page
MAX_CHARACTERS = 40_000_000  # of text in each table
MAX_TEXT = 8_000  # characters of one text; the rest is named
MAX_POINTS = 400  # of a curve in one round
BINS = 24
SCRIPTS = ("base.js", "shell.js", "charts.js", "browser.js", "lineage.js", "page.js")
LIVE_SCRIPTS = ("live.js",)
SHOWN = (
    "rounds gains totals cost stages trainings tables gauges accepted overlap".split()
)  # of the summary
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
    return rendered(data, scripts, _plain(data), "; connect-src 'self'" if live else "")


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
    tasks = [task for row in summary["rounds"] for task in row["tasks"]]
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
        "lineage": lineage(folder.path, run),
        "answers": _answers(folder, config),
        "pairs": _pairs(folder),
        "command": _command(run),
        "environment": flat(run),
        "settings": flat(config),
        "footer": "Made by selfevo report from the files of the run. Nothing here is loaded "
        "from or sent to a network.",
    }


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested JSON as (dotted name, text) rows."""
    if isinstance(value, Mapping):
        return [row for key in value for row in flat(value[key], f"{prefix}{key}.")]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return [(prefix.rstrip("."), shorten(text))]


def shorten(text: str) -> str:
    """The text, or its first `MAX_TEXT` characters and how many are left out."""
    if len(text) <= MAX_TEXT:
        return text
    return f"{text[:MAX_TEXT]} [... {len(text) - MAX_TEXT} characters are left out of this page]"


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
    gains = data["summary"]["gains"].get(data["headline"])
    if not gains:
        return "No trained round has been evaluated yet."
    gain = gains[-1]
    return (
        f"Accuracy on {data['headline']}: {gain['before']:.1%} before, {gain['after']:.1%} after, "
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
    stages = [(number, stage) for number in folder.rounds() for stage in folder.stages(number)]
    for number, stage in stages:
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
    """Histograms of answer lengths with the same bins in each round, up to the 99th percentile."""
    lengths = {
        number: [int(row.get("tokens") or 0) for row in folder.rows(number, "evaluate")]
        for number in folder.rounds()
    }
    everything = sorted(length for row in lengths.values() for length in row)
    if not everything:
        return {"edges": [], "rounds": []}
    top = max(1, everything[int(0.99 * (len(everything) - 1))])
    width = -(-(top + 1) // BINS)
    edges = [width * i for i in range(-(-(top + 1) // width) + 1)]
    rounds = [_histogram(n, row, width, len(edges) - 1) for n, row in lengths.items() if row]
    return {"edges": edges, "rounds": rounds}


def _histogram(number: int, lengths: list[int], width: int, bins: int) -> dict[str, Any]:
    counts = [0] * bins
    for length in lengths:
        counts[min(length // width, bins - 1)] += 1
    return {
        "round": number,
        "n": len(lengths),
        "counts": counts,
        "mean": sum(lengths) / len(lengths),
        "longest": max(lengths),
        "over": sum(length >= width * bins for length in lengths),
    }


def _answers(folder: RunFolder, config: Mapping[str, Any]) -> dict[str, Any]:
    """One row per held-out question, with its reply in each evaluation, of all branches."""
    sides = list(_evaluations(folder))
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    tasks: dict[str, int] = {}
    for place, (number, stage) in enumerate(sides):
        for row in folder.rows(number, stage):
            key = (row["task"], row["prompt_id"])
            if key not in rows:
                task = tasks.setdefault(row["task"], len(tasks))
                replies = [None] * len(sides)
                rows[key] = {
                    "id": row["prompt_id"],
                    "task": task,
                    "gold": row.get("gold"),
                    "replies": replies,
                }
            rows[key]["replies"][place] = _reply(row)
    kept = _within_budget(rows.values(), _answer_size)
    questions = _questions(folder, config, {row["id"] for row in kept})
    for row in kept:
        row["gold"] = None if row["gold"] is None else shorten(row["gold"])
        row["question"] = shorten(questions.get(row["id"], f"(question {row['id']} is not stored)"))
    answered = [i for i in range(len(sides)) if any(row["replies"][i] for row in kept)]
    for row in kept:
        row["replies"] = [row["replies"][i] for i in answered]
    shown = [{"round": sides[i][0], "stage": sides[i][1]} for i in answered]
    return {"sides": shown, "tasks": list(tasks), "total": len(rows), "rows": kept}


def _evaluations(folder: RunFolder) -> Iterator[tuple[int, str]]:
    """(round, stage) of every evaluation on held-out questions."""
    for number in folder.rounds():
        for stage in folder.stages(number):
            if stage.rpartition(".")[2].startswith("evaluate"):
                yield number, stage


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
    return 200 + sum(len(reply[0]) for reply in row["replies"] if reply)


def _within_budget(rows: Iterable[Any], size: Callable[[Any], int]) -> list[Any]:
    """The first rows, up to `MAX_ROWS` of them and `MAX_CHARACTERS` of text."""
    kept: list[Any] = []
    room = MAX_CHARACTERS
    for row in rows:
        room -= size(row)
        if len(kept) == MAX_ROWS or room < 0:
            break
        kept.append(row)
    return kept


def _questions(folder: RunFolder, config: Mapping[str, Any], wanted: set[str]) -> dict[str, str]:
    """The text of each wanted prompt: from the records of the run, else made again by its task."""
    found = {}
    for prompt_id, messages in _stored_prompts(folder):
        if prompt_id in wanted:
            found[prompt_id] = conversation(messages)
    if wanted - found.keys():
        found |= _made_again(config, wanted)
    return found


def _stored_prompts(folder: RunFolder) -> Iterator[tuple[str, Sequence[Mapping[str, str]]]]:
    for number in folder.rounds():
        for stage in folder.stages(number):
            for row in folder.rows(number, stage):
                if "messages" not in row:
                    break  # the records of a stage are of one kind
                yield row["id"], row["messages"]


def _made_again(config: Mapping[str, Any], wanted: set[str]) -> dict[str, str]:
    """Held-out prompts are a function of the task and its seed; {} where its data is not here."""
    task, number = config.get("task", {}), config.get("evaluate", {}).get("n")
    try:
        made = get_task(task.get("name", ""), **task.get("args", {}))
        prompts = list(made.prompts("test", number, config.get("seed", 0)))
    except UserError:
        return {}
    return {p.id: conversation(p.messages) for p in prompts if p.id in wanted}


def conversation(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages as one text; roles are named where there is more than the user's."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)


def _pairs(folder: RunFolder) -> dict[str, Any]:
    kept: list[dict[str, Any]] = []
    total, room = 0, MAX_CHARACTERS
    for number, stage, row in _stored_pairs(folder):
        total += 1
        texts = {
            "question": shorten(conversation(row["prompt"])),
            "chosen": shorten(row["chosen"]),
            "rejected": shorten(row["rejected"]),
        }
        room -= 200 + sum(map(len, texts.values()))
        if len(kept) < MAX_ROWS and room > 0:
            kept.append({"round": number, "stage": stage, **texts})
    return {"total": total, "rows": kept}


def _stored_pairs(folder: RunFolder) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """(round, stage, row) of the preference pairs of all stages that made some."""
    for number in folder.rounds():
        for stage in folder.stages(number):
            for row in folder.rows(number, stage):
                if not {"prompt", "chosen", "rejected"} <= row.keys():
                    break  # the records of a stage are of one kind
                yield number, stage, row
