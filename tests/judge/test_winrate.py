"""`selfevo judge winrate`: the files of AlpacaEval and Arena-Hard, from answers to figures."""

import csv
import json

import pytest

from selfevo_jax import cli
from selfevo_jax.evaluate import alpaca_eval, arena_hard
from selfevo_jax.evolve.stages import StageFolder, read_records
from selfevo_jax.judge.pairwise import Comparison

QUESTIONS = ("Say {hello}", "Count to 3", "Name a colour")


def alpaca_file(path, generator, say):
    rows = [{"instruction": q, "output": say(q), "generator": generator} for q in QUESTIONS]
    path.write_text(alpaca_eval.outputs_json(rows))
    return path


def arena_file(path, model, say):
    rows = [arena_hard.answer_row(f"u{n}", model, q, say(q)) for n, q in enumerate(QUESTIONS)]
    path.write_text(arena_hard.jsonl(rows))
    return path


def judged(byte_model, out, *options):
    own = [f"--model={byte_model.folder}", f"--out={out}", "--slots=4", "--max-length=2048"]
    return cli.main(["judge", "winrate", *own, *map(str, options)])


def comparisons(out, name):
    (folder,) = out.glob(f"winrate-{name}-*")
    return list(read_records(StageFolder(folder), Comparison))


def test_alpaca_eval_from_answers_to_the_leaderboard(byte_model, tmp_path, capsys):
    base = alpaca_file(tmp_path / "base.json", "base", lambda q: f"No: {q}")
    own = alpaca_file(tmp_path / "own.json", "a/b", lambda q: f"{q}? Yes, gladly.")
    out = tmp_path / "out"
    options = (f"--answers={own}", f"--baseline={base}")
    assert judged(byte_model, out, *options) == 0
    said = capsys.readouterr().out
    rows = alpaca_eval.read_annotations(out / "annotations_a_b.json")
    found = comparisons(out, "a_b")
    assert [row["preference"] for row in rows] == [2 - c.p_first for c in found]
    assert [row["output_2"] for row in rows] == [f"{q}? Yes, gladly." for q in QUESTIONS]
    (line,) = csv.DictReader((out / "leaderboard.csv").open())
    mean = 100 * sum(1 - c.p_first for c in found) / 3
    assert float(line["win_rate"]) == pytest.approx(mean) and line["name"] == "a/b"
    assert f"{mean:.2f}" in said
    files = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert judged(byte_model, out, *options) == 0
    assert capsys.readouterr().out == said
    assert files == {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    finished = f"--judgments={out / 'annotations_a_b.json'}"
    assert cli.main(["judge", "winrate", finished]) == 0
    assert capsys.readouterr().out == said


def test_arena_hard_from_answers_to_standings(byte_model, tmp_path, capsys):
    base = arena_file(tmp_path / "base.jsonl", "base", lambda q: f"No: {q}")
    own = arena_file(tmp_path / "own.jsonl", "own", lambda q: f"{q}? Yes, gladly.")
    out = tmp_path / "out"
    assert judged(byte_model, out, f"--answers={own}", f"--baseline={base}") == 0
    said = capsys.readouterr().out
    rows = arena_hard.read_judgments(out / "own.jsonl")
    for row, comparison in zip(rows, comparisons(out, "own"), strict=True):
        assert (row["uid"], row["model"], row["baseline"]) == (comparison.item_id, "own", "base")
        base_wins = {ballot["order"]: ballot["p"] > 0.5 for ballot in comparison.ballots}
        # The baseline is A in the first game and B in the second.
        wanted = ["A>B" if base_wins["ab"] else "B>A", "B>A" if base_wins["ba"] else "A>B"]
        assert [game["score"] for game in row["games"]] == wanted
    (own_score,) = [
        standing.score
        for standing in arena_hard.standings(arena_hard.battles(rows)[0], "base")
        if standing.model == "own"
    ]
    assert f"{own_score:.1f} [" in said
    assert cli.main(["judge", "winrate", f"--judgments={out / 'own.jsonl'}"]) == 0
    assert "games without a verdict: 0" in capsys.readouterr().out


def test_mistakes_of_win_rates_are_named(byte_model, tmp_path, capsys):
    base = alpaca_file(tmp_path / "base.json", "base", str.upper)
    rows = json.loads(base.read_text())
    (tmp_path / "few.json").write_text(json.dumps(rows[:2]))
    for options, message in (
        ((), "needs --answers=FILE of each model"),
        (("--answers=x.json", "--baseline=nowhere.json"), "nowhere.json does not exist"),
        ((f"--answers={tmp_path / 'few.json'}", f"--baseline={base}"), "1 instructions are answ"),
    ):
        assert judged(byte_model, tmp_path / "out", *options) == 2
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
