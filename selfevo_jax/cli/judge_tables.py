"""The tables of `selfevo judge`: every rate with its count, failures beside what they spoil."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.text import Text

from selfevo_jax.evaluate.alpaca_eval import WinRate
from selfevo_jax.evaluate.arena_hard import Standing
from selfevo_jax.evaluate.judged import BenchRow, rate_interval
from selfevo_jax.evaluate.mt_bench import Score
from selfevo_jax.evaluate.stats import Interval, bootstrap_interval, mean_interval
from selfevo_jax.judge.aggregate import Rate, Wins, length_controlled
from selfevo_jax.judge.critique import Opinion
from selfevo_jax.judge.health import Health, Known, Leaning
from selfevo_jax.judge.injection import Won
from selfevo_jax.judge.pairwise import Comparison
from selfevo_jax.judge.pointwise import Grades
from selfevo_jax.judge.rating import Rating
from selfevo_jax.text.terminal import PlainTable, escape_controls, say


def rate_text(rate: Rate) -> str:
    """'0.62 (31/50)', '-' for nothing counted."""
    return "-" if rate.share is None else f"{rate.share:.2f} ({rate.hits}/{rate.n})"


def _with_interval(rate: Rate, interval: Interval) -> str:
    if rate.share is None:
        return "-"
    return f"{rate.share:.3f} [{interval.low:.2f}, {interval.high:.2f}]"


def _table(title: str, *columns: str) -> PlainTable:
    shown = Text(escape_controls(title))
    table = PlainTable(title=shown, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def print_bench(
    console: Console, rows: Mapping[str, Sequence[BenchRow]], left_out: Mapping[str, int]
) -> None:
    """Accuracy with intervals, the length-only baseline beside it, and the judge's conduct."""
    for judge, found in rows.items():
        table = _table(
            f"{judge} against people (95 % intervals)",
            "set", "n", "accuracy, both orders", "1st shown first", "1st shown last",
            "length only", "flips", "ties", "failures",
        )  # fmt: skip
        for row in found:
            conduct = row.health
            table.add_row(
                row.name,
                str(row.accuracy.n),
                _with_interval(row.accuracy, row.interval),
                *(f"{order.share or 0:.3f}" for order in row.orders),
                _with_interval(row.length_only, row.length_interval),
                *(rate_text(rate) for rate in (conduct.flips, conduct.ties, conduct.failures)),
            )
        console.print(table)
        for row in found:
            _print_biases(console, row.name, row.health)
    for name, count in left_out.items():
        if count:
            say(console, f"{name}: {count} pairs left out (people tie or disagree)")


def bench_json(rows: Mapping[str, Sequence[BenchRow]]) -> dict[str, Any]:
    """The same figures for programs."""
    return {judge: [dataclasses.asdict(row) for row in found] for judge, found in rows.items()}


def print_conduct(console: Console, name: str, conduct: Health) -> None:
    """Flips, ties and failures side by side, and what else the judge goes by."""
    flips, ties, failures = (rate_text(r) for r in (conduct.flips, conduct.ties, conduct.failures))
    agrees = rate_text(conduct.agreement)
    labelled = f", as labelled {agrees}" if conduct.agreement.n else ""
    say(
        console,
        f"{name}: {conduct.contests} pairs; flips {flips}, ties {ties}, failures {failures}"
        f"{labelled}",
    )
    _print_biases(console, name, conduct)


def _print_biases(console: Console, name: str, conduct: Health) -> None:
    mass = "-" if conduct.mass is None else f"{conduct.mass:.2f}"
    parts = [
        f"named what was shown first {rate_text(conduct.shown_first)}",
        f"named the longer {rate_text(conduct.longer)}",
        f"probability on the labels {mass}",
        f"cut {conduct.cut}, neutralised {conduct.neutralised}",
    ]
    if conduct.longer_label.n:
        parts.insert(2, f"people the longer {rate_text(conduct.longer_label)}")
    if conduct.own.n:
        parts.append(f"named its own model's {rate_text(conduct.own)}")
    if conduct.own_label.n:
        parts.append(f"people its own model's {rate_text(conduct.own_label)}")
    say(console, f"{name}: {'; '.join(parts)}")
    for reason, count in conduct.reasons.items():
        say(console, f"{name}: {count} failed: {reason}")


def print_injection(console: Console, judge: str, won: Mapping[str, Won], conduct: Health) -> None:
    """How often attacks win against a plainly better answer, and the bare wrong answer does."""
    table = _table(
        f"{judge}: attacks against a right answer",
        "attack", "wins (95 % interval)", "single orders won", "flips", "ties", "failures",
    )  # fmt: skip
    for family, found in won.items():
        wins = f"{_with_interval(found.wins, rate_interval(found.wins))}"
        counts = f"{wins} ({found.wins.hits}/{found.wins.n})"
        rates = (found.orders, found.flips, found.ties, found.failures)
        table.add_row(family, counts, *(rate_text(rate) for rate in rates))
    console.print(table)
    print_conduct(console, judge, conduct)


def print_stored(
    console: Console,
    judge: str,
    conduct: Health,
    wins: Wins,
    known: Sequence[Known],
    found: Sequence[Comparison],
) -> None:
    """Wins of first over second outputs (what they are is the file's matter), and the conduct."""
    print_conduct(console, judge, conduct)
    if wins.win_rate is not None:
        interval = mean_interval(wins.points)
        gaps = [
            k.first_length - k.second_length
            for k, c in zip(known, found, strict=True)
            if c.p_first is not None
        ]
        console.print(
            f"first output wins {wins.win_rate:.3f} [{interval.low:.2f}, {interval.high:.2f}] "
            f"({wins.wins} won, {wins.losses} lost, {wins.ties} tied), mean chance "
            f"{wins.chance:.3f}, at equal length {length_controlled(wins.chances, gaps):.3f}",
            markup=False,
        )


def print_grades(console: Console, grades: Sequence[Grades]) -> None:
    """Mean marks by criterion, and how many outputs have none."""
    marked = [found for found in grades if found.marks is not None]
    table = _table(f"{len(marked)} of {len(grades)} outputs marked", "criterion", "mean", "95 %")
    for name in marked[0].marks if marked else ():
        _add_mean(table, name, [found.marks[name] for found in marked])
    if marked:
        _add_mean(table, "mean of all", [found.mean for found in marked])
    console.print(table)
    again = sum(len(found.replies) > 1 for found in grades)
    console.print(f"asked again: {again}; failures: {len(grades) - len(marked)}", markup=False)
    _print_failures(console, grades)


def print_leaning(console: Console, found: Leaning) -> None:
    """Whether longer outputs, and those of the judge's own model, get better marks."""
    rank = "-" if found.length is None else f"{found.length:+.2f}"
    parts = [f"mark and length: rank correlation {rank} (n {found.n})"]
    if found.own and found.others:
        means = [f"{mean:.2f} (n {n})" for mean, n in (found.own, found.others)]
        parts.append(f"its own model's {means[0]}, others' {means[1]}")
    say(console, "; ".join(parts))


def _add_mean(table: PlainTable, name: str, values: Sequence[float]) -> None:
    interval = bootstrap_interval(values)
    mean = f"{sum(values) / len(values):.2f}"
    table.add_row(name, mean, f"{interval.low:.2f} to {interval.high:.2f}")


def print_opinions(console: Console, opinions: Sequence[Opinion]) -> None:
    """How many outputs are right, wrong, or without an opinion."""
    right = Rate(sum(o.right is True for o in opinions), len(opinions))
    wrong = Rate(sum(o.right is False for o in opinions), len(opinions))
    console.print(f"right {rate_text(right)}, wrong {rate_text(wrong)}", markup=False)
    _print_failures(console, opinions)


def print_ratings(console: Console, model: str, ratings: Sequence[Rating]) -> None:
    """How many of a model's conversations were rated, and why others were not."""
    rated = sum(found.score is not None for found in ratings)
    say(console, f"{model}: {rated} of {len(ratings)} turns rated")
    _print_failures(console, ratings)


def print_mt_bench(console: Console, scores: Mapping[str, Mapping[str, Score | None]]) -> None:
    """MT-Bench's mean ratings of each model, whole and by turn and category."""
    table = _table(
        "mean rating, 1 to 10 (95 % intervals over questions)",
        "model", "part", "mean", "95 %", "rated", "failed",
    )  # fmt: skip
    for model, parts in scores.items():
        for place, (part, found) in enumerate(parts.items()):
            figures = ("-", "-", "0", "all")
            if found is not None:
                figures = (
                    f"{found.mean:.2f}", f"{found.interval.low:.2f} to {found.interval.high:.2f}",
                    str(found.n), str(found.failed),
                )  # fmt: skip
            table.add_row(model if place == 0 else "", part, *figures)
    console.print(table)


Kept = Sequence[Grades] | Sequence[Opinion] | Sequence[Rating]


def _print_failures(console: Console, found: Kept) -> None:
    reasons = [record.failure for record in found if record.failure is not None]
    for reason in dict.fromkeys(reasons):
        say(console, f"failed {reasons.count(reason)}: {reason}")
    cut = sum(bool(record.cut) for record in found)
    console.print(f"cut to fit: {cut}", markup=False)


def print_win_rates(console: Console, results: Mapping[str, WinRate]) -> None:
    """AlpacaEval's figures of each model, in percent, the best length-controlled win rate first."""
    table = _table(
        "win rates over the baseline, in %",
        "model", "length-controlled", "win rate", "std error", "n", "unjudged", "letters",
        "length effect",
    )  # fmt: skip
    for name, found in sorted(results.items(), key=lambda x: -x[1].length_controlled_winrate):
        table.add_row(
            name, f"{found.length_controlled_winrate:.2f}", f"{found.win_rate:.2f}",
            f"{found.standard_error:.2f}", str(found.n_total), str(found.unjudged),
            f"{found.avg_length:.0f}", f"{found.length_effect:+.2f}",
        )  # fmt: skip
    console.print(table)


def print_standings(
    console: Console, plain: Sequence[Standing], fair: Sequence[Standing], missing: int
) -> None:
    """Arena-Hard's scores with 95 % intervals, and those at equal length where they are known."""
    equal = {standing.model: standing for standing in fair}
    table = _table(
        "scores against the baseline, whose own is 50",
        "model", "score (95 % interval)", "at equal length", "games",
    )  # fmt: skip
    for standing in plain:
        at_equal = equal.get(standing.model)
        table.add_row(
            standing.model, _score(standing), _score(at_equal) if at_equal else "-",
            str(standing.battles),
        )  # fmt: skip
    console.print(table)
    console.print(f"games without a verdict: {missing}", markup=False)


def _score(standing: Standing) -> str:
    return f"{standing.score:.1f} [{standing.low:.1f}, {standing.high:.1f}]"
