"""The model card that goes with an export: base, data, method, results, licence.

Front matter as the hub reads it (huggingface.co/docs/hub/model-cards), then Markdown. A function of
the run's files; what is not known is said to be unknown.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfevo_jax.report.folder import read_document
from selfevo_jax.report.summary import summarise

LIBRARIES = {"peft": "peft", "safetensors": "transformers", "gguf": "gguf"}


def model_card(workdir: str | Path, policy: str, form: str, license_id: str | None = None) -> str:
    """The card of `policy`, exported as `form` (a key of LIBRARIES), under licence `license_id`.

    Raises UserError for a folder that is no run or is damaged.
    """
    summary = summarise(workdir)
    kept = summary["run"].get("policies", {}).get(policy, {})
    parts = (
        _front_matter(summary["run"], form, license_id),
        _intro(summary["run"], policy),
        _made(summary, policy, _settings(Path(workdir), kept)),
        _results(summary, policy),
        _licence(license_id),
    )
    return "\n\n".join(parts) + "\n"


def _front_matter(run: Mapping[str, Any], form: str, license_id: str | None) -> str:
    model = str(run.get("model", ""))
    fields: dict[str, Any] = {
        "library_name": LIBRARIES[form],
        "pipeline_tag": "text-generation",
        "tags": ["selfevo_jax", str(run.get("method", ""))],
    }
    if model.startswith("hf:"):
        fields["base_model"] = model.removeprefix("hf:").partition("@")[0]
    if license_id:
        fields["license"] = license_id
    # JSON is YAML, so no value can break out of its line.
    lines = [f"{name}: {json.dumps(value)}" for name, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _intro(run: Mapping[str, Any], policy: str) -> str:
    return (
        f"# {_cell(policy)} of a selfevo_jax run\n\n"
        f"{_code(run.get('model'))} trained on its own output by the method "
        f"{_code(run.get('method'))}, on {_code(run.get('task'))}."
    )


def _made(summary: Mapping[str, Any], policy: str, training: Mapping[str, Any]) -> str:
    run, config = summary["run"], summary["config"]
    kept = run.get("policies", {}).get(policy, {})
    rows = {
        "Base model": run.get("model"),
        "SHA-256 of the base": run.get("model_hash"),
        "Data": {"task": run.get("task"), **config.get("task", {}).get("args", {})},
        "Method": run.get("method"),
        "Rounds": run.get("rounds"),
        "Seed": run.get("seed"),
        "Started from": kept.get("parent"),
        "Trained in": str(Path(kept["adapter"]).parent) if kept.get("adapter") else None,
        "Objective": training.get("objective", config.get("objective")),
        "LoRA": training.get("learn", {}).get("lora", config.get("lora")),
        "Versions": run.get("versions"),
        "Command": run.get("command"),
    }
    lines = [f"| {name} | {_code(value)} |" for name, value in rows.items() if value is not None]
    return "\n".join(["## How it was made", "", "| | |", "| --- | --- |", *lines])


def _settings(workdir: Path, kept: Mapping[str, Any]) -> dict[str, Any]:
    """How a policy was trained, which a branch may do in its own way; {} where nothing tells."""
    sealed = workdir / Path(kept.get("adapter") or "").parent / "stage.json"
    return read_document(sealed).get("stage", {}).get("settings", {}) if sealed.is_file() else {}


def _results(summary: Mapping[str, Any], policy: str) -> str:
    """Every test of the run, those of `policy` in bold."""
    gains = {
        (task, gain["stage"], gain["round"], gain["title"]): gain
        for task, rows in summary["gains"].items()
        for gain in rows
    }
    lines = [
        _result(test, task, measured, gains, own=test["policy"] == policy)
        for test in summary["tested"]
        for task, measured in test["tasks"].items()
    ]
    if not lines:
        return "## Results\n\nNot measured."
    head = ["| Policy | Task | n | Accuracy | 95 % interval | Gain over the first, points |"]
    mine = any(test["policy"] == policy for test in summary["tested"])
    whose = (
        "This model's own figures are in bold; the others are what else its run tested."
        if mine
        else "This model was not tested: these are other models of its run."
    )
    note = (
        f"{whose} Greedy answers to held-out questions; "
        "Wilson intervals; gains over the first row on the same questions (Newcombe's paired "
        "interval)."
    )
    table = [*head, "| --- " * 6 + "|", *lines]
    return "\n".join(["## Results", "", *table, "", note])


def _result(
    test: Mapping[str, Any],
    task: str,
    row: Mapping[str, Any],
    gains: Mapping[tuple[Any, ...], Mapping[str, Any]],
    *,
    own: bool,
) -> str:
    gain, gained = gains.get((task, test["stage"], test["round"], test["title"])), ""
    if gain is not None:
        low, high = 100 * gain["low"], 100 * gain["high"]
        gained = f"{100 * gain['gain']:+.1f} ({low:+.1f} to {high:+.1f})"
    interval = f"{row['low']:.1%} to {row['high']:.1%}"
    accuracy = f"**{row['score']:.1%}**" if own else f"{row['score']:.1%}"
    name = f"**{_code(test['title'])}**" if own else _code(test["title"])
    cells = (name, _code(task), str(row["n"]), accuracy, interval, gained)
    return f"| {' | '.join(cells)} |"


def _licence(license_id: str | None) -> str:
    own = f"Published under {_code(license_id)}. " if license_id else ""
    return (
        f"## Licence\n\n{own}The terms of the base model and of the data hold for this model too."
    )


def _code(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"`{_cell(text).replace('`', chr(39))}`"


def _cell(text: str) -> str:
    """Text that stays in one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
