"""What a run says: lines where there is no terminal, bars where there is one, events in a file."""

import io
import json
import time

from rich.console import Console

from selfevo_jax.evolve import progress as module
from selfevo_jax.evolve.progress import Progress


def said_by(act, *, terminal: bool = False, every: float = 0.0) -> str:
    said = io.StringIO()
    act(Progress(Console(file=said, force_terminal=terminal, width=200), every=every))
    return said.getvalue()


def count_to_three(progress: Progress) -> None:
    with progress.stage("round_01/sample", 3, "samples") as bar:
        for number in range(3):
            bar.advance(1, f"loss {number}")


def test_lines_without_a_terminal():
    lines = said_by(count_to_three).splitlines()
    assert len(lines) == 4
    assert "round_01/sample: 1/3 samples loss 0" in lines[0]
    assert "3/3 samples loss 2 in " in lines[-1]
    assert "\x1b" not in "".join(lines)


def test_lines_come_every_few_seconds_only():
    assert len(said_by(count_to_three, every=60.0).splitlines()) == 1


def test_a_bar_on_a_terminal():
    said = said_by(count_to_three, terminal=True)
    assert "\x1b" in said and "3/3" in said and "loss 2" in said


def test_what_is_slow_says_that_it_still_works(monkeypatch):
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)

    def slowly(progress: Progress) -> None:
        with progress.busy("loading"):
            time.sleep(0.12)
        with progress.stage("round_01/train", None, "steps"):
            time.sleep(0.2)

    said = said_by(slowly, every=60.0)
    assert "loading ..." in said and "still loading" in said and "loading: 0." in said
    assert "nothing new for" in said and "waits for compilation" in said


def test_events_go_to_the_log(tmp_path):
    def logged(progress: Progress) -> None:
        progress.log_to(tmp_path / "log.jsonl")
        count_to_three(progress)

    said_by(logged)
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert events[0]["event"] == "begin" and events[0]["total"] == 3
    assert events[-1]["event"] == "end" and events[-1]["done"] == 3


def test_markup_in_model_text_is_only_text():
    assert "[red]x[/red]" in said_by(lambda progress: progress.say("[red]x[/red]"))
