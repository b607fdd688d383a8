"""The page of a comparison: accuracy over cost in one SVG, with intervals, and the two tables.

One file without a script and without anything loaded; all text is escaped.
"""

import base64
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files

from selfevo_jax.evaluate.stats import wilson_interval
from selfevo_jax.report.compare import Comparison, Contest, Result, Standing
from selfevo_jax.report.compare_read import Line

Scale = Callable[[float], float]  # a value's place on an axis, in pixels

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 920, 420, 60, 24, 24, 46
# Okabe and Ito's colours, which most eyes tell apart; with more lines, dashes do.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")
DASHES = ("", "7 4", "2 4", "10 3 2 3")
HEADS = (
    "method", "n", "before", "at the budget", "tokens", "after", "gain, points",
    "in the end", "tokens", "after", "gain, points",
)  # fmt: skip
OWN_STYLE = """
svg .axis { stroke: var(--line); }
svg .budget { stroke: var(--soft); stroke-dasharray: 3 5; }
main { padding-bottom: 3rem; }
.key { display: inline-block; width: 2.4rem; vertical-align: middle; margin-right: .5rem; }
"""


def page(comparison: Comparison) -> str:
    """The whole HTML file."""
    style = (files("selfevo_jax.report") / "template" / "page.css").read_text("utf-8") + OWN_STYLE
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Runs compared</title><style>{style}</style></head>\n"
        f'<body><main class="wrap">{"".join(_body(comparison))}</main></body></html>\n'
    )


def _body(comparison: Comparison) -> Iterator[str]:
    yield "<section><h1>Runs side by side</h1><p class='lead'>"
    yield f"At equal budget: {comparison.budget:,} tokens generated and trained on. In the end: "
    yield "whatever each has cost. Intervals are 95 %.</p>"
    yield f"<figure class='panel'>{_plot(comparison)}</figure></section>"
    yield f"<section><h2>Results</h2>{_standings(comparison.standings)}"
    yield from (f"<p class='note'>{escape(line)}</p>" for line in lacking(comparison))
    yield "</section>"
    for where, contests in comparison.meetings:
        if contests:
            yield f"<section><h2>Against each other, {where}</h2><p class='note'>On the questions "
            yield "that both answered; p by McNemar's exact test, and corrected for all tests of "
            yield f"the table (Holm).</p>{_contests(where, contests)}</section>"
    for first, second in comparison.apart:
        yield f"<p>Not comparable: {escape(first)} and {escape(second)} answered different "
        yield "questions.</p>"


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML; the first of a row is its name. The caption is spoken, not seen."""
    head = "".join(f"<th scope='col'>{escape(text)}</th>" for text in heads)
    body = "".join(
        f"<tr><th scope='row'>{row[0]}</th>"
        + "".join(f"<td class='number'>{cell}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    spoken = f"role='region' aria-label='{escape(caption)}' tabindex='0'"
    return f"<div class='scroll' {spoken}><table><tr>{head}</tr>{body}</table></div>"


def _standings(standings: Sequence[Standing]) -> str:
    rows = [
        (f"{_key(number)}{escape(standing.line.label)}", *map(escape, cells(standing)))
        for number, standing in enumerate(standings)
    ]
    return _table("Results", ("run", *HEADS), rows)


def cells(standing: Standing) -> tuple[str, ...]:
    """What the table says of a line, under HEADS."""
    first = standing.line.points[0]
    about = (standing.line.method, f"{len(first.correct)}", f"{first.accuracy:.1%}")
    return (*about, *_result(standing.at), *_result(standing.end))


def _result(result: Result | None) -> tuple[str, str, str, str]:
    if result is None:
        return ("nothing", "-", "-", "-")
    at, span, gain = result.point, result.interval, result.gain
    return (
        at.policy,
        f"{at.tokens:,}",
        f"{at.accuracy:.1%} ({span.low:.1%} to {span.high:.1%})",
        f"{points(gain.gain)} ({points(gain.low)} to {points(gain.high)})",
    )


def lacking(comparison: Comparison) -> list[str]:
    """A sentence on every line that has nothing at the budget."""
    return [
        f"{s.line.label} has nothing within {comparison.budget:,} tokens: {s.lacks}"
        for s in comparison.standings
        if s.lacks
    ]


def _contests(where: str, contests: Sequence[Contest]) -> str:
    rows = [
        (
            f"{escape(c.second)} over {escape(c.first)}", f"{c.difference.n}", f"{c.differing}",
            points(c.difference.gain),
            f"{points(c.difference.low)} to {points(c.difference.high)}",
            f"{c.difference.p_value:.3g}", f"{c.p_holm:.3g}",
        )
        for c in contests
    ]  # fmt: skip
    heads = (
        "run over run",
        "n",
        "not shared",
        "difference, points",
        "interval",
        "p",
        "p, corrected",
    )
    return _table(f"Against each other, {where}", heads, rows)


def points(share: float) -> str:
    """A difference of shares in points."""
    return f"{100 * share:+.1f}"


def _key(number: int) -> str:
    stroke = _stroke(number)
    return (
        f"<svg class='key' viewBox='0 0 40 8'><line x1='0' x2='40' y1='4' y2='4' {stroke}/></svg>"
    )


def _stroke(number: int) -> str:
    dash = DASHES[number // len(COLOURS) % len(DASHES)]
    dashed = f" stroke-dasharray='{dash}'" if dash else ""
    return f"fill='none' stroke-width='2' stroke='{COLOURS[number % len(COLOURS)]}'{dashed}"


def _plot(comparison: Comparison) -> str:
    lines = [standing.line for standing in comparison.standings]
    most = max(line.points[-1].tokens for line in lines)
    spans = [
        wilson_interval(sum(p.correct.values()), len(p.correct)) for x in lines for p in x.points
    ]
    low = math.floor(10 * min(span.low for span in spans)) / 10
    high = math.ceil(10 * max(span.high for span in spans)) / 10

    def at_x(tokens: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * tokens / most

    def at_y(share: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - share) / (high - low)

    spoken = "; ".join(
        f"{line.label} from {line.points[0].accuracy:.1%} to {line.points[-1].accuracy:.1%} "
        f"at {line.points[-1].tokens:,} tokens" for line in lines
    )  # fmt: skip
    parts = [f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{escape(spoken)}'>"]
    parts += _axes(most, low, high, at_x, at_y)
    x = at_x(min(comparison.budget, most))
    parts.append(
        f"<line class='budget' x1='{x:.1f}' x2='{x:.1f}' y1='{TOP}' y2='{at_y(low):.1f}'/>"
    )
    parts.append(f"<text x='{x - 6:.1f}' y='{TOP + 10}' text-anchor='end'>equal budget</text>")
    for number, line in enumerate(lines):
        parts += _series(number, line, at_x, at_y)
    return "".join([*parts, "</svg>"])


def _axes(most: int, low: float, high: float, at_x: Scale, at_y: Scale) -> Iterator[str]:
    for tenth in range(round(10 * low), round(10 * high) + 1):
        y = at_y(tenth / 10)
        yield f"<line class='grid' x1='{LEFT}' x2='{WIDTH - RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
        yield f"<text x='{LEFT - 8}' y='{y + 4:.1f}' text-anchor='end'>{tenth / 10:.0%}</text>"
    for quarter in range(5):
        tokens = most * quarter / 4
        yield _under(at_x(tokens), HEIGHT - BOTTOM + 18, f"{tokens:,.0f}")
    yield _under(WIDTH / 2, HEIGHT - 6, "tokens generated and trained on")


def _under(x: float, y: float, text: str) -> str:
    return f"<text x='{x:.1f}' y='{y}' text-anchor='middle'>{text}</text>"


def _series(number: int, line: Line, at_x: Scale, at_y: Scale) -> Iterator[str]:
    """The points of a line with their intervals, a little aside so that none hides another."""
    stroke, aside = _stroke(number), 3 * (number % 5)
    places = [(at_x(p.tokens) + aside, at_y(p.accuracy)) for p in line.points]
    yield f"<polyline {stroke} points='{' '.join(f'{x:.1f},{y:.1f}' for x, y in places)}'/>"
    for (x, y), point in zip(places, line.points, strict=True):
        span = wilson_interval(sum(point.correct.values()), len(point.correct))
        told = f"{line.label}, {point.policy}: {point.accuracy:.1%} at {point.tokens:,} tokens"
        whisker = f"M{x - 4:.1f} {at_y(span.high):.1f}h8m-4 0V{at_y(span.low):.1f}m-4 0h8"
        yield f"<g><title>{escape(told)}</title><path {stroke} d='{whisker}'/>"
        colour = COLOURS[number % len(COLOURS)]
        yield f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{colour}'/></g>"
