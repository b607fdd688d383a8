"""What is told of runs with several lines of policies: all of it, and whose it is."""

import json
import shutil

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.stats import paired_difference
from selfevo_jax.report import page, texts
from selfevo_jax.report.card import model_card
from selfevo_jax.report.compare_read import read_lines
from selfevo_jax.report.folder import RunFolder
from selfevo_jax.report.summary import summarise, write_summary
from selfevo_jax.report.track import Follower


class Notes:
    """A tracker that remembers."""

    def __init__(self):
        self.steps, self.measured = [], {}

    def scalars(self, step, values):
        self.steps.append((step, values))

    def results(self, number, values):
        self.measured[number] = values

    def close(self):
        pass


def data_of(workdir):
    return page.page_data(RunFolder(workdir), summarise(workdir))


def test_every_branch_is_summarised(branches):
    """Tests by kind of record and not by name; validation questions are none."""
    summary = summarise(branches)
    tested = [(t["stage"], t["policy"], t["tasks"]["sums"]["correct"]) for t in summary["tested"]]
    assert tested == [
        ("evaluate", "base", 1), ("evaluate_sft", "round_01.sft", 2),
        ("x.evaluate", "x.round_01", 3), ("y.evaluate", "y.round_01", 4),
    ]  # fmt: skip
    gains = summary["gains"]["sums"]
    expected = [paired_difference([1, 0, 0, 0], [1] * n + [0] * (4 - n)) for n in (2, 3, 4)]
    assert [(g["gain"], g["low"], g["high"]) for g in gains] == [
        (e.gain, e.low, e.high) for e in expected
    ]
    assert gains[summary["concluded"]["sums"]]["policy"] == "x.round_01"  # the run's best
    assert summary["rounds"][1]["counts"] == {
        "prompts": 4, "samples": 16, "verdicts": 16, "pairs": 8,
    }  # fmt: skip
    assert summary["rounds"][1]["tokens"] == {
        "generated": 16 * 3, "evaluated": 4 * (20 + 30 + 40), "trained": 900,
    }  # fmt: skip


def test_every_training_has_its_goodput_and_its_cost(branches):
    trainings = summarise(branches)["trainings"]
    assert [t["stage"] for t in trainings] == ["sft", "x.train", "y.train"]
    assert [t["goodput"]["share"] for t in trainings] == [0.75] * 3
    assert [(t["flops"], t["seconds"], t["tokens"]) for t in trainings] == [(6e9, 3.0, 300)] * 3
    assert [(t["sampled"]["n"], t["sampled"]["correct"]) for t in trainings] == [
        (0, 0), (8, 4), (8, 4),
    ]  # fmt: skip
    cost = summarise(branches)["cost"]
    assert (cost["flops"], cost["measuring"]["flops"]) == (18e9, None)


def test_the_card_shows_the_figures_of_the_policy_that_is_exported(branches, turns):
    rows = {
        policy: [line for line in model_card(branches, policy, "peft").splitlines() if "%" in line]
        for policy in ("x.round_01", "y.round_01", "another")
    }
    bold = {policy: [r for r in found if r.startswith("| **")] for policy, found in rows.items()}
    assert [len(bold[policy]) for policy in rows] == [1, 1, 0]
    assert "**75.0%**" in bold["x.round_01"][0] and "+50.0 (" in bold["x.round_01"][0]
    assert "**100.0%**" in bold["y.round_01"][0]
    assert "was not tested" in model_card(branches, "another", "peft")
    (bold,) = [x for x in model_card(turns, "qa.round_01", "peft").splitlines() if "| **" in x]
    assert "`qa, turn 2`" in bold and "**75.0%**" in bold


def test_the_card_names_the_objective_of_the_branch(own_branches):
    sealed = own_branches / "round_01/x.train/stage.json"
    about = json.loads(sealed.read_text())
    about["stage"]["settings"] = {"objective": {"beta": 0.05}, "learn": {"lora": {"rank": 3}}}
    sealed.write_text(json.dumps(about))
    assert '"beta": 0.05' in model_card(own_branches, "x.round_01", "peft")
    about["stage"]["settings"] = {}
    sealed.write_text(json.dumps(about))
    assert '"beta": 9.0' in model_card(own_branches, "x.round_01", "peft")


def test_trackers_are_told_of_every_branch(branches):
    notes = Notes()
    Follower(branches, notes).finish()
    assert [step for step, _ in notes.steps] == list(range(9))
    assert [next(iter(values)) for _, values in notes.steps[::3]] == [
        "train/sft/loss", "train/x/loss", "train/y/loss",
    ]  # fmt: skip
    assert notes.measured[0]["eval/sums/score"] == 0.25
    told = {k: v for k, v in notes.measured[1].items() if k.endswith("/score")}
    assert told == {
        "eval/evaluate_sft/sums/score": 0.5, "eval/x/sums/score": 0.75, "eval/y/sums/score": 1.0,
    }  # fmt: skip


def test_later_turns_are_tests(turns):
    """An outcome becomes an answer by the last reply to its question and that reply's verdict."""
    summary = summarise(turns)
    found = [(t["title"], t["policy"], t["tasks"]["sums"]) for t in summary["tested"]]
    assert [(title, policy, row["correct"], row["tokens"]) for title, policy, row in found] == [
        ("untrained, turn 2", "base", 1, 3.0), ("qa, turn 2", "qa.round_01", 3, 3.0),
    ]  # fmt: skip
    assert [g["gain"] for g in summary["gains"]["sums"]] == [0.5]
    assert summary["concluded"]["sums"] is None  # variants side by side
    data = data_of(turns)
    assert [side["title"] for side in data["answers"]["sides"]] == [
        "untrained, turn 2",
        "qa, turn 2",
    ]
    row = data["answers"]["rows"][0]
    assert [reply[0] for reply in row["replies"]] == ["untrained again", "qa again"]
    assert row["question"] == "What is 0 + 1?" and row["gold"] == "1"


def test_compare_reads_the_same_tests(turns, tmp_path):
    run = shutil.copytree(turns, tmp_path / "run")
    write_summary(run)
    (line,) = read_lines(run)
    assert [(p.policy, p.accuracy) for p in line.points] == [
        ("untrained, turn 2", 0.25), ("qa, turn 2", 0.75),
    ]  # fmt: skip


def test_answer_lengths_of_every_branch(branches, turns):
    shown = data_of(branches)["lengths"]["tests"]
    assert [(row["title"], row["n"], row["mean"]) for row in shown] == [
        ("base", 4, 10), ("round_01.sft", 4, 20), ("x.round_01", 4, 30), ("y.round_01", 4, 40),
    ]  # fmt: skip
    assert [row["n"] for row in data_of(turns)["lengths"]["tests"]] == [4, 4]


def test_contests_have_their_texts_and_say_how_they_went(branches):
    found = data_of(branches)["contests"]
    assert found["total"] == len(found["rows"]) == 8
    flip, tie, failure, plain = found["rows"][:4]
    assert [row["verdict"] for row in (flip, tie, failure, plain)] == [
        "first", "tie", "failure", "second",
    ]  # fmt: skip
    assert [row["flip"] for row in (flip, tie, failure, plain)] == [True, False, False, False]
    assert flip["texts"] == ["What is 0 + 1?", "1", "x says 1", "x says 2!"]
    assert flip["ballots"][1] == [0, "ba", 0.2, 0.9, "because", None]
    assert failure["failure"] == "no label" and failure["p"] is None
    assert found["rows"][4]["stage"] == "y.judge"


def test_a_contest_without_its_texts_is_shown_all_the_same(own_branches):
    sealed = own_branches / "round_01/x.judge/stage.json"
    sealed.write_text(sealed.read_text().replace("round_01/x.contests", "elsewhere"))
    assert [row["texts"] for row in data_of(own_branches)["contests"]["rows"][:4]] == [None] * 4


def test_selections_say_what_was_chosen_and_why(chosen):
    found = data_of(chosen)["selections"]
    acquired = [row for row in found["rows"] if row["stage"] == "entropy-1.acquire"]
    assert [row["question"] for row in acquired] == ["What is 3 + 1?", "What is 2 + 1?"]
    assert acquired[0]["figures"] == {
        "rank": 0, "strategy": "entropy", "score": 1.5, "mean_entropy": 1.5,
    }  # fmt: skip
    assert acquired[0]["replies"] == [["guess 3", 0]]
    votes = [row for row in found["rows"] if row["stage"] == "majority.vote"]
    assert [row["replies"] for row in votes] == [[["draw 1", 0], ["draw 2", 1]]] * 4
    assert found["total"] == len(found["rows"]) == 2 + 4  # and none of `revise`


def test_a_selection_that_does_not_fit_is_counted(chosen, branches, monkeypatch):
    monkeypatch.setattr(texts, "MAX_ROWS", 3)
    for name, workdir, total in (("selections", chosen, 6), ("contests", branches, 8)):
        found = data_of(workdir)[name]
        assert (len(found["rows"]), found["total"]) == (3, total)


def test_the_lineage_has_the_data_of_every_policy(branches):
    found = data_of(branches)["lineage"]
    columns = {node["name"]: node["column"] for node in found["policies"] + found["data"]}
    assert columns == {
        "base": 0, "round_01/learn": 0, "round_01.sft": 1, "round_01/x.pair": 2,
        "round_01/y.pair": 2, "x.round_01": 3, "y.round_01": 3,
    }  # fmt: skip
    learn, pair, _ = found["data"]
    assert (learn["records"], learn["kind"], learn["by"]) == (4, "examples", [])
    assert (pair["records"], pair["kind"], pair["by"]) == (4, "pairs", ["round_01.sft"])
    assert found["policies"][2]["inputs"] == ["round_01/x.pair"]


def test_data_comes_from_the_policies_of_its_own_round(own_branches):
    """What an earlier round left behind made that round's policy, which stands in the drawing."""
    earlier = own_branches / "round_00/examples"
    earlier.mkdir()
    (earlier / "stage.json").write_text('{"stage": {"inputs": {"policy": "h3"}}}')
    sealed = own_branches / "round_01/x.sample/stage.json"
    about = json.loads(sealed.read_text())
    about["stage"]["inputs"]["round_00/examples"] = "c"
    sealed.write_text(json.dumps(about))
    assert data_of(own_branches)["lineage"]["data"][1]["by"] == ["round_01.sft"]


def test_policies_that_come_from_each_other_are_damage(own_branches):
    run = json.loads((own_branches / "run.json").read_text())
    run["policies"]["round_01.sft"]["parent"] = "x.round_01"
    (own_branches / "run.json").write_text(json.dumps(run))
    with pytest.raises(UserError, match=r"run\.json is damaged: its policies come from each other"):
        data_of(own_branches)


def test_what_trainings_ran_on_stands_beside_the_versions(own_branches):
    assert ("machine.mesh.data", "8") in data_of(own_branches)["environment"]
    path = own_branches / "round_01/y.train/timings.jsonl"
    path.write_text(path.read_text().replace('"devices": 8', '"devices": 4'))
    rows = dict(data_of(own_branches)["environment"])
    assert rows["machine 1.stages"] == '["round_01/sft", "round_01/x.train"]'
    assert (rows["machine 1.devices"], rows["machine 2.devices"]) == ("8", "4")


def test_stages_stand_in_the_order_of_the_plan(own_branches):
    """Active selection's rounds are mixed: a line goes through all of its rounds at a time."""
    assert RunFolder(own_branches).places()[0] == (0, "evaluate")
    run = json.loads((own_branches / "run.json").read_text())
    run["plan"].reverse()
    (own_branches / "run.json").write_text(json.dumps(run))
    assert RunFolder(own_branches).places()[-1] == (0, "evaluate")
    (own_branches / "run.json").unlink()
    assert RunFolder(own_branches).places()[0] == (0, "evaluate")
