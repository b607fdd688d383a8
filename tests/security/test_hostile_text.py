"""Text that others wrote, wherever it is shown: it drives no terminal, is no markup, no formula.

The pages are looked at in a browser: tests/report/browser/test_hostile.py.
"""

import csv
import io
import json
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from selfevo_jax import cli
from selfevo_jax.cli.eval_report import print_first, print_item, print_table
from selfevo_jax.cli.judge_tables import print_grades
from selfevo_jax.cli.sample import Output
from selfevo_jax.evaluate.alpaca_eval import LEADERBOARD, leaderboard_csv
from selfevo_jax.evaluate.results import summarise
from selfevo_jax.evaluate.running import Outcome
from selfevo_jax.evolve.plan import print_table as print_conclusion
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.judge.pointwise import Grades
from selfevo_jax.records import Row
from selfevo_jax.sample.protocol import Completion

DRIVING = "\x1b[2J\x07\u202eg\u202c\u200b\x9b1m\r"
MARKUP = "[/red][b]x[/][link=y]"
HOSTILE = DRIVING + MARKUP


def screen() -> tuple[Console, io.StringIO]:
    """A terminal as a person has one: with colours."""
    said = io.StringIO()
    return Console(file=said, force_terminal=True, width=400, highlight=False), said


def harmless(said: str) -> bool:
    """No control character came through but rich's own bold, and the markup came out as text."""
    said = re.sub(r"\x1b\[[0-9;]*m", "", said)
    return not set("\x1b\x07\x9b\r\u202e\u202c\u200b") & set(said) and MARKUP in said


def jsonl(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def answered(text: str) -> Outcome:
    readings = {"none": {"parsed": [text], "scores": {"exact": 0.0}}}
    return Outcome.make(
        task=text, number=0, place=text, doc={}, prompt=text, target=text, replies=(text,),
        logps=(), readings=readings, cluster=None, prompt_tokens=1, tokens=1, cut=0,
        too_long=False, refused=text,
    )  # fmt: skip


def graded(reason: str) -> Grades:
    return Grades.make(
        item_id="a", judge="j", prompt="p", replies=(), marks=None, mean=None, failure=reason,
        cut={}, neutralised=(),
    )  # fmt: skip


# ---- terminals


def test_a_run_s_lines():
    console, said = screen()
    with Progress(console).busy(HOSTILE):
        Progress(console).say(f"the server said {HOSTILE}")
    assert harmless(said.getvalue()) and "\\x1b[2J" in said.getvalue()


def test_what_a_method_concludes():
    console, said = screen()
    print_conclusion(console, "table", [Row.make(source_id="a", values={"policy": HOSTILE})])
    assert harmless(said.getvalue())


def test_a_sampled_text(capsys):
    with Output(None) as write:
        write(Completion("a\x1b", HOSTILE, (1,), (0.0,), "stop", 1))
    assert harmless(capsys.readouterr().out)


def test_the_questions_of_an_evaluation():
    console, said = screen()
    outcome = answered(HOSTILE)
    result = summarise("task", [outcome])
    print_first(console, result)
    print_item(console, outcome, outcome)
    print_table(console, [result])
    assert harmless(said.getvalue())


def test_why_a_judge_failed():
    console, said = screen()
    print_grades(console, [graded(HOSTILE)])
    assert harmless(said.getvalue())


def test_names_in_arena_hard_s_judgments(tmp_path, capsys):
    games = [{"score": "A>B"}, {"score": "B>A"}]
    row = {"category": "c", "judge": "j", "baseline": "b", "model": HOSTILE, "games": games}
    file = jsonl(tmp_path / "j.jsonl", [row | {"uid": f"{n}"} for n in range(4)])
    assert cli.main(["judge", "winrate", f"--judgments={file}"]) == 0
    assert harmless(capsys.readouterr().out)


def test_names_in_alpaca_eval_s_annotations(tmp_path, capsys):
    row = {"instruction": "i", "output_1": "a", "output_2": "bb", "generator_2": HOSTILE}
    rows = [row | {"preference": value} for value in (1.2, 1.9, 1.4)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert cli.main(["judge", "winrate", f"--judgments={tmp_path / 'a.json'}"]) == 0
    assert harmless(capsys.readouterr().out)


def test_a_mistake_that_quotes_a_file(tmp_path, capsys):
    file = jsonl(tmp_path / "rows.jsonl", [{"prompt": HOSTILE, "completion": 1}])
    assert cli.main(["data", "check", file]) in (1, 2)
    said = capsys.readouterr()
    assert not set("\x1b\x07\x9b\r\u202e") & set(said.out + said.err)


def test_the_name_of_a_file_of_training_records(tmp_path, capsys):
    """Of another's folder; it stands before every line that is told of it."""
    row = {"question": " ".join(f"word{n}" for n in range(20)), "answer": "#### 1"}
    (tmp_path / "gsm8k").mkdir()
    for part in ("train", "test"):
        jsonl(tmp_path / f"gsm8k/{part}.jsonl", [row])
    name = DRIVING + MARKUP.replace("/", "")
    file = jsonl(tmp_path / name, [{"prompt": row["question"], "completion": "1"}])
    ask = ["eval", "--tasks=gsm8k", f"--data={tmp_path}", f"--contamination={file}"]
    assert cli.main(ask) == 0 and cli.main(["data", "check", file]) == 0
    said = capsys.readouterr().out
    assert said.count("\\x1b[2J\\x07\\u202eg") == 2
    assert not set("\x1b\x07\x9b\r\u202e\u202c\u200b") & set(said)


# ---- spreadsheets


@pytest.mark.parametrize(
    "name", ["=cmd|'/C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"]
)
def test_no_name_in_a_leaderboard_is_a_formula_or_a_second_row(name):
    even = SimpleNamespace(**dict.fromkeys(LEADERBOARD[1:], 50.0))
    text = leaderboard_csv({name: even})
    (row,) = list(csv.DictReader(io.StringIO(text)))
    assert row["name"][0] in "'\\" and row["name"].endswith(name.strip())
    assert len(text.splitlines()) == 2
