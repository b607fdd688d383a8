"""AlpacaEval's files and figures: win rate, and win rate with length controlled.

Dubois et al. 2024, "Length-Controlled AlpacaEval: A Simple Way to Debias Automatic Evaluators".
Files have AlpacaEval's fields: answers are a JSON list of `instruction, output, generator`;
annotations add `output_1` (the baseline's), `output_2` (the model's), `annotator` and
`preference` in [1, 2], 2 meaning that the model's answer is better; the leaderboard is a CSV.

The judge's preference is a probability, so a win rate is a mean, not a count of wins. The
length-controlled one is the mean of sigmoid(theta + gamma_i), what would be preferred at equal
length: see `judge.aggregate.fit_length`. An instruction's difficulty gamma_i is given, or none.
"""

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.data import raw_rows
from selfevo_jax.evaluate.stats import standard_error
from selfevo_jax.judge.aggregate import fit_length
from selfevo_jax.text.terminal import escape_controls

LEADERBOARD = (
    "name", "length_controlled_winrate", "win_rate", "standard_error", "n_total", "avg_length",
)  # fmt: skip


@dataclass(frozen=True)
class WinRate:
    """Figures of a model over a baseline, in percent as the leaderboard has them.

    `length_effect` is phi: above 0 the judge prefers longer answers. `unjudged` annotations had
    no preference; they are counted, not taken as ties. `avg_length` is in characters.
    """

    win_rate: float
    standard_error: float
    length_controlled_winrate: float
    length_effect: float
    n_total: int
    unjudged: int
    avg_length: float


def win_rate(
    annotations: Sequence[Mapping[str, Any]], difficulty: Mapping[str, float] | None = None
) -> WinRate:
    """The figures of annotations (see the module). `difficulty`: instruction -> gamma, in logits.

    Raises UserError for fewer than two judged annotations, a preference outside [1, 2], or an
    instruction of unknown difficulty.
    """
    judged = [(n, a) for n, a in enumerate(annotations) if a.get("preference") is not None]
    if len(judged) < 2:
        raise UserError(f"{len(judged)} of {len(annotations)} annotations have a preference")
    wins = np.array([_probability(n, annotation) for n, annotation in judged])
    lengths = np.array([[len(a["output_1"]), len(a["output_2"])] for _, a in judged], float)
    gamma = np.array([_gamma(annotation, difficulty) for _, annotation in judged])
    theta, phi = fit_length(wins, lengths[:, 1] - lengths[:, 0], gamma)
    return WinRate(
        win_rate=100 * float(wins.mean()),
        standard_error=100 * standard_error(wins.tolist()),
        length_controlled_winrate=100 * float(special.expit(theta + gamma).mean()),
        length_effect=phi,
        n_total=len(wins),
        unjudged=len(annotations) - len(wins),
        avg_length=float(lengths[:, 1].mean()),
    )


def _gamma(annotation: Mapping[str, Any], difficulty: Mapping[str, float] | None) -> float:
    if difficulty is None:
        return 0.0
    if annotation["instruction"] not in difficulty:
        raise UserError(f"the difficulty of {annotation['instruction'][:80]!r} is not given")
    return difficulty[annotation["instruction"]]


def _probability(number: int, annotation: Mapping[str, Any]) -> float:
    preference = annotation["preference"]
    if isinstance(preference, bool) or not isinstance(preference, int | float):
        raise UserError(f"annotation {number}: the preference {preference!r} is not a number")
    if not 1 <= preference <= 2 or math.isnan(preference):
        raise UserError(f"annotation {number}: the preference {preference} is not in [1, 2]")
    return preference - 1.0


def read_outputs(path: Path) -> dict[str, Mapping[str, Any]]:
    """instruction -> row of a model's answers. Raises UserError for a bad or repeated row."""
    found: dict[str, Mapping[str, Any]] = {}
    for place, row in raw_rows(path):
        _need(row, ("instruction", "output", "generator"), place)
        if row["instruction"] in found:
            raise UserError(f"{place}: the instruction came before; keep one answer of each")
        found[row["instruction"]] = row
    if not found:
        raise UserError(f"{path} holds no answers")
    return found


def read_annotations(path: Path) -> list[Mapping[str, Any]]:
    """The rows of an annotations file. Raises UserError for a bad row."""
    rows = []
    for place, row in raw_rows(path):
        _need(row, ("instruction", "output_1", "output_2"), place)
        if "preference" not in row:
            raise UserError(f"{place}: the field 'preference' is missing (null: no verdict)")
        rows.append(row)
    return rows


def read_difficulty(path: Path) -> dict[str, float]:
    """instruction -> `instruction_difficulty` of a file. Raises UserError naming a bad row."""
    found = {}
    for place, row in raw_rows(path):
        _need(row, ("instruction",), place)
        try:
            found[row["instruction"]] = float(row["instruction_difficulty"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{place}: 'instruction_difficulty' is missing or no number") from error
    return found


def _need(row: Mapping[str, Any], names: Sequence[str], place: str) -> None:
    for name in names:
        if not isinstance(row.get(name), str):
            raise UserError(f"{place}: the field {name!r} is missing or no text")


def paired_outputs(
    model: Mapping[str, Mapping[str, Any]], baseline: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, str]]:
    """What a judge is to compare, joined by instruction, never by row.

    Raises UserError when the two files do not answer the same instructions.
    """
    if odd := sorted(set(model) ^ set(baseline)):
        raise UserError(
            f"{len(odd)} instructions are answered in one file only, the first: {odd[0][:80]!r}"
        )
    return [
        {
            "instruction": instruction,
            "output_1": baseline[instruction]["output"],
            "generator_1": baseline[instruction]["generator"],
            "output_2": row["output"],
            "generator_2": row["generator"],
        }
        for instruction, row in model.items()
    ]


def annotation(pair: Mapping[str, str], annotator: str, preference: float | None) -> dict[str, Any]:
    """A row of annotations.json. `preference`: 1 + probability that output_2 is better, or None."""
    return {**pair, "annotator": annotator, "preference": preference}


def outputs_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of an answers or annotations file."""
    return json.dumps([dict(row) for row in rows], indent=2, ensure_ascii=False) + "\n"


def leaderboard_csv(results: Mapping[str, WinRate]) -> str:
    """The text of a leaderboard file, the best length-controlled win rate first."""
    out = io.StringIO()
    writer = csv.DictWriter(out, LEADERBOARD, lineterminator="\n")
    writer.writeheader()
    ranked = sorted(results.items(), key=lambda item: -item[1].length_controlled_winrate)
    for name, result in ranked:
        values = {field: getattr(result, field) for field in LEADERBOARD[1:]}
        writer.writerow({"name": _no_formula(name)} | values)
    return out.getvalue()


def _no_formula(text: str) -> str:
    """Text that a spreadsheet takes for the text of one cell: names come from files of others."""
    shown = escape_controls(text).replace("\n", "\\n")
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown
