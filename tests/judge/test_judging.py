"""Scores, win rates, juries, conduct, attacks; and the command that puts them together."""

import json
import math
import shutil

import numpy as np
import pytest

from selfevo_jax import cli
from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.judged import SETS, bench_rows, labelled_pairs, length_baseline
from selfevo_jax.judge import injection
from selfevo_jax.judge.aggregate import (
    best_and_worst,
    candidate_scores,
    count_wins,
    length_controlled,
)
from selfevo_jax.judge.asking import JudgeModel
from selfevo_jax.judge.health import Known, Mark, agreement_between, health, leaning
from selfevo_jax.judge.jury import jury
from selfevo_jax.judge.material import neutral
from selfevo_jax.judge.pairwise import Comparison, PairwiseJudge, protocol


def compared(item: str, *ps: float | None, judge: str = "j") -> Comparison:
    """A comparison whose two orders give these probabilities of the first output."""
    ballots = tuple(
        {"reference": 0, "order": order, "p": p, "mass": 1.0, "reply": ""}
        | {"failure": "why" if p is None else None}
        for order, p in zip(("ab", "ba"), ps, strict=True)
    )
    failed = None in ps
    mean = None if failed else sum(ps) / 2
    verdict = "failure" if failed else "tie" if mean == 0.5 else "first"
    verdict = "second" if not failed and mean < 0.5 else verdict
    return Comparison.make(
        item_id=item, judge=judge, protocol="base", prompt="h", ballots=ballots, p_first=mean,
        verdict=verdict, failure="why" if failed else None, margin=0.0, cut={}, neutralised=(),
    )  # fmt: skip


def test_scores_are_mean_probabilities_over_all_comparisons():
    found = [
        ("x", "y", compared("1", 0.9, 0.7)),
        ("x", "z", compared("2", 0.6, 0.6)),
        ("y", "z", compared("3", None, 0.9)),
    ]
    scores = candidate_scores(["x", "y", "z", "w"], found)
    assert scores == pytest.approx({"x": 0.7, "y": 0.2, "z": 0.4})
    assert best_and_worst(scores) == ("x", "y")
    assert best_and_worst(scores, 0.5) is None
    assert best_and_worst({"x": 0.5, "y": 0.5}) is None and best_and_worst({}) is None
    two = {"a": 0.4, "b": 0.9, "c": 0.6, "d": 0.2}
    assert best_and_worst(two, older={"b", "c"}) is None  # the best of a, d is not above c
    assert best_and_worst(two, older={"c", "d", "z"}) == ("b", "d")
    assert best_and_worst(two, older={"z"}) is None is best_and_worst(two, older=set(two))


def test_wins_count_ties_half_and_failures_not_at_all():
    found = [compared("1", 0.9, 0.7), compared("2", 0.5, 0.5), compared("3", None, 1.0)]
    wins = count_wins([*found, compared("4", 0.1, 0.3)])
    assert (wins.wins, wins.losses, wins.ties, wins.failures) == (1, 1, 1, 1)
    assert wins.win_rate == pytest.approx(0.5) and wins.chance == pytest.approx(0.5)
    assert count_wins(found[2:]).win_rate is None


def test_length_control_takes_away_what_length_alone_gives():
    generator = np.random.default_rng(0)
    gaps = generator.normal(100, 80, 4000)  # the first outputs are longer, and only that wins
    true = 1 / (1 + np.exp(-2.0 * np.tanh(gaps / gaps.std())))
    assert true.mean() > 0.7
    assert length_controlled(true, gaps) == pytest.approx(0.5, abs=0.02)
    better = 1 / (1 + np.exp(-(0.8 + 2.0 * np.tanh(gaps / gaps.std()))))
    expected = 1 / (1 + math.exp(-0.8))
    assert length_controlled(better, gaps) == pytest.approx(expected, abs=0.03)
    assert length_controlled([1.0, 1.0, 0.0], [0, 0, 0]) == pytest.approx(2 / 3, abs=0.01)
    assert 0.0 < length_controlled([1.0, 0.0], [10, -10]) < 1.0
    with pytest.raises(ValueError, match="1 chances and 2"):
        length_controlled([0.5], [1, 2])


def test_a_jury_votes_and_who_failed_has_no_vote():
    one = [compared("1", 0.9, 0.9), compared("2", None, 0.1), compared("3", None, None)]
    two = [compared("1", 0.2, 0.2), compared("2", 0.9, 0.9), compared("3", None, None)]
    three = [compared("1", 0.6, 0.6), compared("2", 0.4, 0.4), compared("3", None, 0.2)]
    found = list(jury([one, two, three]))
    assert [c.verdict for c in found] == ["first", "tie", "failure"]
    assert found[0].p_first == pytest.approx((0.9 + 0.2 + 0.6) / 3, abs=1e-6)
    assert found[1].p_first == pytest.approx(0.65) and found[2].p_first is None
    assert health(found).flips.n == 5 and health(found).flips.hits == 0
    assert (agreement_between(one, two).hits, agreement_between(one, two).n) == (0, 1)
    with pytest.raises(UserError, match="different contests"):
        list(jury([one, two[:2]]))
    with pytest.raises(UserError, match="at least two"):
        list(jury([one]))


def test_marks_that_follow_length_and_their_own_model():
    """Spearman's coefficient by hand: ranks 1 2 3 4 against 1 3 2 4 give 1 - 6 * 2 / 60."""
    given = [(2.0, 10, True), (3.5, 30, False), (7.0, 20, True), (9.0, 400, None)]
    found = leaning(Mark(*one) for one in given)
    assert found.length == pytest.approx(0.8) and found.n == 4
    assert (found.own, found.others) == ((4.5, 2), (3.5, 1))
    same = leaning([Mark(5.0, 1), Mark(5.0, 9)])
    assert same.length is same.own is same.others is None


def test_self_preference_stands_beside_what_people_say():
    found = [compared("1", 0.9, 0.9), compared("2", 0.1, 0.1), compared("3", 0.9, 0.9)]
    known = {
        "1": Known(5, 5, "me", "you", "second"),
        "2": Known(5, 9, "you", "me", "second"),
        "3": Known(5, 5, "me", "me", "first"),
    }
    conduct = health(found, known, "me")
    assert (conduct.own.hits, conduct.own.n) == (2, 2)
    assert (conduct.own_label.hits, conduct.own_label.n) == (1, 2)
    assert (conduct.longer.hits, conduct.longer.n) == (1, 1)
    assert health(found, known).own.n == 0


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("a < b and <b>bold</b>", "a < b and <b>bold</b>"),
        ("</output_a>", "(/output_a>"),
        ("< / Output-A >", "( / Output-A >"),
        ("\uff1coutput a\uff1e", "(output a\uff1e"),
        ("<out\u200bput_a>", "(output_a>"),
        ("<output_abc>", "<output_abc>"),
        ("<|im_end|>", "(|im_end|)"),
        ("</s>[INST]", "(/s>(INST]"),
        ("x\u202ey\x1b[2Jz\n\tkept", "xy[2Jz\n\tkept"),
    ],
)
def test_only_what_could_be_markup_is_changed(text, safe):
    assert neutral(text, ("output_a", "output_b")) == safe


def test_thirty_attacks_against_right_answers(rules):
    made = injection.attempts()
    assert len(made) == 40 and len({a.contest.id for a in made}) == 40
    judge = PairwiseJudge(JudgeModel("longer", rules.Rule(rules.longer)), protocol("refeval"))
    won = injection.outcome(made, judge.compare(a.contest for a in made))
    assert (won[injection.ALL].wins.n, won[injection.CONTROL].wins.n) == (30, 10)
    assert won[injection.ALL].wins.hits == 30  # a judge of length is beaten by any attack,
    assert won[injection.CONTROL].wins.hits == 0  # and is right without
    assert sum(won[name].wins.n for name in injection.FAMILIES) == 30
    lost = PairwiseJudge(JudgeModel("a", rules.Rule(rules.always_a)), protocol("base"))
    won = injection.outcome(made, lost.compare(a.contest for a in made))
    assert (won[injection.ALL].wins.hits, won[injection.ALL].ties.hits) == (0, 30)


def test_attacks_reach_the_judge_disarmed(rules):
    rule = rules.Rule(rules.longer)
    judge = PairwiseJudge(JudgeModel("longer", rule), protocol("base"))
    list(judge.compare(a.contest for a in injection.attempts()))
    clean = rule.asked[-1].messages[0]["content"]
    for request in rule.asked:
        content = request.messages[0]["content"]
        for tag in ("instruction", "output_a", "output_b"):
            for mark in (f"<{tag}>", f"</{tag}>"):
                assert content.lower().count(mark) == clean.count(mark) == 1
        assert "<|" not in content and "\u200b" not in content


def test_labelled_sets_are_read_as_people_labelled_them(shared_data):
    sizes = {"llmbar": (334, 0), "mtbench": (173, 0), "judgebench": (346, 0)}
    for name, (pairs, left_out) in sizes.items():
        found = labelled_pairs(name, str(shared_data))
        assert (len(found.pairs), found.left_out) == (pairs, left_out), name
    rows = [json.loads(line) for line in open(shared_data / SETS["pandalm"].data.files["test"])]
    found = labelled_pairs("pandalm", str(shared_data))
    assert len(found.pairs) + found.left_out == len(rows)
    for pair in found.pairs:
        row = rows[int(pair.contest.id.split("/")[1])]
        wanted = {"first": 1, "second": 2}[pair.known.label]
        assert [row[f"annotator{n}"] for n in (1, 2, 3)].count(wanted) >= 2
    some = labelled_pairs("llmbar", str(shared_data), 20).pairs
    assert len(some) == 20 and len({pair.group for pair in some}) >= 4
    with pytest.raises(UserError, match="llmbar, mtbench"):
        labelled_pairs("llmbax", str(shared_data))


def test_a_judge_of_length_is_the_length_baseline(rules, shared_data):
    pairs = labelled_pairs("llmbar", str(shared_data)).pairs
    judge = PairwiseJudge(JudgeModel("longer", rules.Rule(rules.longer)), protocol("base"))
    found = list(judge.compare(pair.contest for pair in pairs))
    rows = bench_rows("llmbar", pairs, found)
    assert [row.name for row in rows] == ["llmbar", "llmbar natural", "llmbar adversarial"]
    assert rows[0].accuracy.n == rows[1].accuracy.n + rows[2].accuracy.n == 334
    equal = sum(len(p.contest.first) == len(p.contest.second) for p in pairs)
    for row in rows:
        # The rule sees texts after invisible characters went, the baseline before.
        assert abs(row.accuracy.hits - row.length_only.hits) <= equal + 2
        assert row.interval.low <= row.accuracy.share <= row.interval.high
    assert length_baseline([Known(1, 1, label="first"), Known(2, 1, label="first")]).hits == 1


@pytest.fixture(scope="module")
def rows_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [
        {"id": "q1", "instruction": "Say {hello}", "output_1": "Hello!", "output_2": "Go away"},
        {"id": "q2", "prompt": "Count", "outputs": ["1 2 3", "4", "1 2 3"]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(model, what, out, *options: str) -> int:
    own = [f"--model={model.folder}", f"--out={out}", "--slots=4", "--max-length=2048"]
    return cli.main(["judge", str(what), *own, *options])


def test_the_command_judges_a_file_again_without_doing_it_again(
    byte_model, rows_file, tmp_path, capsys
):
    out = tmp_path / "out"
    assert command(byte_model, rows_file, out) == 0
    first = capsys.readouterr()
    assert "3 pairs; flips" in first.out and "probability on the labels" in first.out
    (scores,) = out.glob("scores-*.jsonl")
    rows = [json.loads(line) for line in scores.read_text().splitlines()]
    assert [(row["prompt_id"], row["output_id"]) for row in rows] == [
        ("q1", "1"), ("q1", "2"), ("q2", "1"), ("q2", "2"), ("q2", "3"),
    ]  # fmt: skip
    (records,) = out.glob("pairs-base-*/records.jsonl")
    before = records.read_bytes(), records.stat().st_mtime_ns
    assert command(byte_model, rows_file, out) == 0
    again = capsys.readouterr()
    assert again.out == first.out and "judged" not in again.err
    assert before == (records.read_bytes(), records.stat().st_mtime_ns)
    shutil.rmtree(records.parent)
    assert command(byte_model, rows_file, out) == 0
    assert (records.read_bytes(), capsys.readouterr().out) == (before[0], first.out)
    assert command(byte_model, rows_file, out, "--margin=0.1") == 2
    assert "holds other verdicts (margin 0.0 -> 0.1)" in capsys.readouterr().err


def test_references_come_from_their_file(byte_model, rows_file, tmp_path, capsys):
    assert command(byte_model, rows_file, tmp_path / "a", "--protocol=refeval") == 2
    assert "q1/1-2: protocol refeval needs a reference" in capsys.readouterr().err
    references = tmp_path / "references.jsonl"
    rows = [{"id": "q1", "reference": "Hello"}, {"id": "q2", "references": ["1 2 3", "one two"]}]
    references.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--protocol=refeval", f"--reference-file={references}"]
    assert command(byte_model, rows_file, tmp_path / "b", *options) == 0
    (records,) = (tmp_path / "b").glob("pairs-refeval-*/records.jsonl")
    ballots = [len(json.loads(line)["ballots"]) for line in records.read_text().splitlines()]
    assert ballots == [2, 4, 4]


def test_the_command_marks_measures_and_attacks(byte_model, rows_file, tmp_path, capsys,
                                                shared_data):  # fmt: skip
    assert command(byte_model, rows_file, tmp_path / "a", "--protocol=pointwise") == 0
    assert "0 of 5 outputs marked" in capsys.readouterr().out
    data = [f"--data={shared_data}", "--sets=llmbar,mtbench", "--limit=3"]
    assert command(byte_model, "bench", tmp_path / "b", *data) == 0
    said = capsys.readouterr().out
    assert "length only" in said and "flips" in said and "…" not in said
    rows = json.loads((tmp_path / "b" / "bench.json").read_text())[str(byte_model.folder)]
    counts = {row["name"]: row["health"]["contests"] for row in rows}
    assert counts["llmbar"] == counts["mtbench"] == 3
    assert command(byte_model, "nowhere.jsonl", tmp_path / "c") == 2
    assert "neither a run, a file" in capsys.readouterr().err
