"""`selfevo judge winrate`: the files of AlpacaEval and Arena-Hard, from answers to figures."""

import csv
import json

import pytest
from rich.console import Console

from selfevo_jax import cli
from selfevo_jax.cli import winrate
from selfevo_jax.evaluate import alpaca_eval, arena_hard
from selfevo_jax.evaluate.data import jsonl
from selfevo_jax.judge.asking import JudgeModel
from selfevo_jax.judge.health import health
from selfevo_jax.judge.pairwise import PairwiseJudge, protocol

QUESTIONS = ("Say {hello}", "Count to 3", "Name a colour")


def alpaca_file(path, generator, say):
    rows = [{"instruction": q, "output": say(q), "generator": generator} for q in QUESTIONS]
    path.write_text(alpaca_eval.outputs_json(rows))
    return path


def arena_file(path, model, say):
    rows = [arena_hard.answer_row(f"u{n}", model, q, say(q)) for n, q in enumerate(QUESTIONS)]
    path.write_text(jsonl(rows))
    return path


@pytest.fixture
def judged(rules, tmp_path, capsys):
    """Judges answer files by length; gives the comparisons of each label, and what was said."""

    def judge(*paths, baseline):
        made = {}

        def compare(label, contests):
            judge = PairwiseJudge(JudgeModel("longer", rules.Rule(rules.longer)), protocol("base"))
            made[label] = list(judge.compare(contests))
            return made[label]

        console, sides = Console(width=140), winrate.read_sides(paths, baseline)
        winrate.judge_answers(sides, tmp_path / "out", compare, health, console)
        return made, capsys.readouterr().out

    return judge


def test_alpaca_eval_from_answers_to_the_leaderboard(judged, tmp_path, capsys):
    base = alpaca_file(tmp_path / "base.json", "base", lambda q: f"No: {q}")
    own = alpaca_file(tmp_path / "own.json", "a/b", lambda q: "!" if "3" in q else f"{q}? Gladly.")
    made, said = judged(own, baseline=base)
    out = tmp_path / "out"
    rows = alpaca_eval.read_annotations(out / "annotations_a_b.json")
    found = made["winrate-a_b"]
    assert [row["preference"] for row in rows] == [2 - c.p_first for c in found]
    assert [row["preference"] > 1.5 for row in rows] == [True, False, True]
    assert [row["output_2"] for row in rows] == [
        "Say {hello}? Gladly.",
        "!",
        "Name a colour? Gladly.",
    ]
    (line,) = csv.DictReader((out / "leaderboard.csv").open())
    mean = 100 * sum(1 - c.p_first for c in found) / 3
    assert float(line["win_rate"]) == pytest.approx(mean) and line["name"] == "a/b"
    assert f"{mean:.2f}" in said
    assert cli.main(["judge", "winrate", f"--judgments={out / 'annotations_a_b.json'}"]) == 0
    again = capsys.readouterr().out
    first, second, table = said.split("\n", 2)
    assert again.split() == table.split()
    assert (
        first == "a/b against base: 3 pairs; flips 0.00 (0/3), ties 0.00 (0/3), failures 0.00 (0/3)"
    )
    assert "named the longer 1.00 (3/3)" in second


def test_arena_hard_from_answers_to_standings(judged, tmp_path, capsys):
    base = arena_file(tmp_path / "base.jsonl", "base", lambda q: f"No: {q}")
    own = arena_file(tmp_path / "own.jsonl", "own", lambda q: "!" if "3" in q else f"{q}? Gladly.")
    short = arena_file(tmp_path / "short.jsonl", "short", lambda q: "-")
    _, said = judged(own, short, baseline=base)
    rows = arena_hard.read_judgments(tmp_path / "out" / "own.jsonl")
    # The baseline is A in the first game and B in the second.
    won, lost = ["B>A", "A>B"], ["A>B", "B>A"]
    assert [[game["score"] for game in row["games"]] for row in rows] == [won, lost, won]
    assert {(row["model"], row["baseline"], row["judge"]) for row in rows} == {
        ("own", "base", "longer")
    }
    lines = [line.split()[0] for line in said.splitlines() if " [" in line]
    assert lines == ["own", "base", "short"]
    assert "66.7 [" in said and "games without a verdict: 0" in said
    assert cli.main(["judge", "winrate", f"--judgments={tmp_path / 'out' / 'own.jsonl'}"]) == 0
    assert "66.7 [" in capsys.readouterr().out


def test_difficulty_of_instructions_is_read_from_a_file(judged, tmp_path, capsys):
    """Where difficulty alone explains who won, equal lengths change nothing; else they do."""
    base = alpaca_file(tmp_path / "base.json", "base", lambda q: "No.")
    own = alpaca_file(tmp_path / "own.json", "own", lambda q: "!" if "3" in q else f"{q}? Gladly.")
    judged(own, baseline=base)
    hard = tmp_path / "hard.csv"
    figures = {q: -3.0 if "3" in q else 3.0 for q in QUESTIONS}
    rows = "".join(f'"{q}",{x}\n' for q, x in figures.items())
    hard.write_text(f"instruction,instruction_difficulty\n{rows}")
    path = tmp_path / "out/annotations_own.json"
    command = ["judge", "winrate", f"--judgments={path}", f"--difficulty={hard}"]
    assert cli.main(command) == 0
    annotations = alpaca_eval.read_annotations(path)
    known = alpaca_eval.win_rate(annotations, figures)
    plain = alpaca_eval.win_rate(annotations)
    assert f"{known.length_controlled_winrate:.2f}" in capsys.readouterr().out
    assert known.length_effect != pytest.approx(plain.length_effect, rel=0.1)
    hard.write_text(hard.read_text().replace("Count to 3", "Count to 4"))
    assert cli.main(command) == 2
    assert "the difficulty of 'Count to 3' is not given" in capsys.readouterr().err
    hard.write_text(hard.read_text().replace("3.0", "hard", 1))
    assert cli.main(command) == 2
    assert "hard.csv" in capsys.readouterr().err


def command(byte_model, out, *options):
    own = [f"--model={byte_model.folder}", f"--out={out}", "--slots=4", "--max-length=2048"]
    return cli.main(["judge", "winrate", *own, *map(str, options)])


def test_a_judge_without_a_verdict_prefers_nobody(byte_model, tmp_path, capsys):
    """A random model never gives its labels enough probability: that is a failure, not a tie."""
    base = alpaca_file(tmp_path / "base.json", "base", str.lower)
    own = alpaca_file(tmp_path / "own.json", "own", str.upper)
    out = tmp_path / "out"
    assert command(byte_model, out, f"--answers={own}", f"--baseline={base}") == 2
    assert "0 of 3 annotations have a preference" in capsys.readouterr().err
    rows = alpaca_eval.read_annotations(out / "annotations_own.json")
    assert [row["preference"] for row in rows] == [None] * 3


def test_mistakes_of_win_rates_are_named(byte_model, tmp_path, capsys):
    base = alpaca_file(tmp_path / "base.json", "base", str.upper)
    rows = json.loads(base.read_text())
    (tmp_path / "few.json").write_text(json.dumps(rows[:2]))
    for options, message in (
        ((), "needs --answers=FILE of each model"),
        (("--answers=x.json", "--baseline=nowhere.json"), "nowhere.json does not exist"),
        ((f"--answers={tmp_path / 'few.json'}", f"--baseline={base}"), "1 instructions are answ"),
    ):
        assert command(byte_model, tmp_path / "out", *options) == 2
        assert message in capsys.readouterr().err
    assert cli.main(["judge", "winrate", f"--answers={base}", f"--baseline={base}"]) == 2
    assert "--model is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shape", "read"),
    [("alpaca_eval", alpaca_eval.read_outputs), ("arena_hard", arena_hard.read_answers)],
)
def test_a_model_s_answers_are_written_in_either_shape(byte_model, tmp_path, shape, read):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "answers"
    rows = [{"uid": f"u{n}", "prompt": q} for n, q in enumerate(QUESTIONS)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = out.with_suffix(".json" if shape == "alpaca_eval" else ".jsonl")
    command = ["sample", f"--model={byte_model.folder}", f"--prompts={prompts}", f"--out={out}"]
    command += [f"--answers-as={shape}", "--temperature=0", "--max-new-tokens=4"]
    assert cli.main(command) == 0
    answers = read(out)
    keys = QUESTIONS if shape == "alpaca_eval" else ("u0", "u1", "u2")
    assert tuple(answers) == keys
    if shape == "arena_hard":
        assert [answer.prompt for answer in answers.values()] == list(QUESTIONS)
    assert cli.main([*command, "--n=2"]) == 2
