"""What `selfevo eval` says on the screen: warnings, the first question, the table."""

from collections.abc import Iterable, Sequence

from rich.console import Console

from selfevo_jax.evaluate.benchmark import Generate
from selfevo_jax.evaluate.benchmarks.code import sandbox
from selfevo_jax.evaluate.results import TaskResult
from selfevo_jax.evaluate.running import Outcome
from selfevo_jax.evaluate.stats import Difference
from selfevo_jax.evolve.evaluation import Evaluation, Prepared
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.text.terminal import PlainTable, say

SHOWN = 1_500  # characters of the first prompt: its end is what matters
LISTED = 5  # questions that are too long, by name


def warn_template(evaluation: Evaluation, prepared: Sequence[Prepared], progress: Progress) -> None:
    """Says so when a model with a chat template is asked without it."""
    bare = [task.benchmark.name for task in prepared if not task.wording.chat]
    if evaluation.model.has_template and bare:
        progress.say(
            f"warning: {evaluation.model.name} has a chat template and is asked without it "
            f"({', '.join(bare[:3])}{', ...' if len(bare) > 3 else ''}); "
            "--apply_chat_template asks in its turns"
        )


def tell_sandbox(prepared: Sequence[Prepared], progress: Progress) -> None:
    """Says what holds the programs that the tasks are about to run."""
    if any(
        isinstance(task.benchmark.ask, Generate) and task.benchmark.ask.code for task in prepared
    ):
        progress.say(sandbox().enforced.report())


def print_first(console: Console, result: TaskResult) -> None:
    """The first question of a task as the model read it, its reply, and what was read in it."""
    first = result.first
    prompt = first.prompt
    cut = "... " if len(prompt) > SHOWN else ""
    say(console, f"--- {result.task}, first prompt:\n{cut}{prompt[-SHOWN:]}")
    if first.logps:
        shown = zip(first.replies, first.logps, strict=True)
        say(console, "log-probabilities: " + ", ".join(f"{c!r} {p}" for c, p in shown))
    elif first.replies:
        say(console, f"--- reply:\n{first.replies[0]}")
    for name, reading in first.readings.items():
        scores = ", ".join(f"{metric} {value:g}" for metric, value in reading["scores"].items())
        say(
            console,
            f"parsed ({name}): {reading['parsed'][0]!r}; right: {first.target[-80:]!r}; {scores}",
        )


def print_item(console: Console, outcome: Outcome, other: Outcome | None) -> None:
    """One question with its replies, what was read in them, and what another model replied."""
    say(console, f"--- {outcome.task} {outcome.place}, right: {outcome.target!r}")
    prompt = outcome.prompt
    say(console, "... " * (len(prompt) > SHOWN) + prompt[-SHOWN:])
    for title, one in (("before", other), ("reply", outcome)):
        if one is not None:
            _print_replies(console, title, one)


def _print_replies(console: Console, title: str, outcome: Outcome) -> None:
    name, reading = next(iter(outcome.readings.items()))
    scores = ", ".join(f"{metric} {value:g}" for metric, value in reading["scores"].items())
    if outcome.logps:
        shown = zip(outcome.replies, outcome.logps, strict=True)
        text = ", ".join(f"{choice!r} {logp}" for choice, logp in shown)
    else:
        text = "\n".join(outcome.replies)
    say(console, f"{title}: {text}\nparsed ({name}): {reading['parsed']}; {scores}")


def print_table(console: Console, results: Sequence[TaskResult]) -> None:
    """Every figure with its interval and the parse rate beside it."""
    names = ("task", "reading", "metric", "n", "value", "95 % interval", "std error", "parsed")
    table = PlainTable(*names, box=None)
    for result in results:
        for figure in result.figures:
            error = "-" if figure.error is None else f"{figure.error:.3f}"
            interval = f"{figure.interval.low:.3f} to {figure.interval.high:.3f}"
            table.add_row(
                figure.task, figure.reading, figure.metric, str(figure.n), f"{figure.mean:.3f}",
                interval, error, f"{figure.parsed:.0%}",
            )  # fmt: skip
    console.print(table)
    for result in results:
        _print_notes(console, result)


def _print_notes(console: Console, result: TaskResult) -> None:
    if result.too_long:
        say(
            console,
            f"{result.task}: {len(result.too_long)} prompts too long for the model were not asked "
            f"and count as wrong ({_some(result.too_long)}); raise --max-length or give fewer "
            "examples",
        )
    if result.refused:
        reason = next(iter(result.refused.values()))
        say(
            console,
            f"{result.task}: {len(result.refused)} questions were refused by the server and count "
            f"as wrong ({_some(result.refused)}), the first: {reason}",
        )
    if result.unjudged:
        say(
            console,
            f"{result.task}: {len(result.unjudged)} questions could not be judged and are left out "
            f"({_some(result.unjudged)})",
        )
    if result.cut:
        console.print(
            f"{result.task}: {result.cut} replies ended for want of room; "
            "--gen_kwargs max_gen_toks=N gives more"
        )
    needed = result.figures[0].needed if result.figures else None
    if needed is not None and needed > result.n:
        console.print(
            f"{result.task}: to see a gain of 2 points, about {needed} questions are needed"
        )


def _some(places: Iterable[str]) -> str:
    """The first of the places."""
    found = list(places)
    return ", ".join(found[:LISTED]) + (", ..." if len(found) > LISTED else "")


def print_comparison(console: Console, differences: Sequence[tuple[str, str, Difference]]) -> None:
    """Paired gains of one evaluation over another."""
    table = PlainTable("task", "metric", "n", "before", "after", "gain", "95 % interval", "p")
    for task, metric, found in differences:
        table.add_row(
            task, metric, str(found.n), f"{found.before:.3f}", f"{found.after:.3f}",
            f"{found.gain:+.3f}", f"{found.low:+.3f} to {found.high:+.3f}", f"{found.p_value:.3g}",
        )  # fmt: skip
    console.print(table)
