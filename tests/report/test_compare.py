"""Runs side by side: the charge of each line, the budget, and paired tests, all by hand."""

import json
from html.parser import HTMLParser

import pytest

from selfevo_jax import cli
from selfevo_jax.errors import UserError
from selfevo_jax.report.compare import compare
from selfevo_jax.report.compare_read import read_lines

N = 40
MEASURED = 10_000  # tokens of a test, which no method is charged with


def stage(name, generated=0, trained=0, inputs=(), policy=None, right=None, start=0):
    """(summary's row, stage.json, records) of one stage; `right` of N questions make it a test."""
    row = {
        "stage": name, "measuring": right is not None, "read_tokens": 7, "seconds": 1.0,
        "generated_tokens": generated if right is None else MEASURED, "trained_tokens": trained,
    }  # fmt: skip
    known = {one: "content" for one in inputs} | ({"policy": f"hash of {policy}"} if policy else {})
    answers = [
        {
            "id": f"{name}{n}", "prompt_id": f"q{n + start}", "task": "t", "policy": policy,
            "text": "", "parsed": None, "gold": "", "score": float(n < right),
            "correct": n < right, "tokens": 1,
        }
        for n in range(N if right is not None else 0)
    ]  # fmt: skip
    return row, {"stage": {"name": name, "inputs": known}}, answers


def build(workdir, stages, trained):
    """A run's folder; `trained` maps a policy to the stage that made it."""
    for row, about, records in stages:
        folder = workdir / row["stage"]
        folder.mkdir(parents=True)
        (folder / "stage.json").write_text(json.dumps(about))
        (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (workdir / "summary.json").write_text(json.dumps({"stages": [row for row, _, _ in stages]}))
    policies = {
        name: {"hash": f"hash of {name}", "adapter": f"{made}/adapter"}
        for name, made in trained.items()
    }
    policies["base"] = {"hash": "hash of base", "adapter": None}
    about = {"method": "m", "task": "t", "policies": policies}
    (workdir / "run.json").write_text(json.dumps(about))
    return workdir


@pytest.fixture
def rounds(tmp_path):
    """Two rounds of 1000 generated and 500 trained tokens each: 10, 20, then 28 of 40 right."""
    stages = [
        stage("round_00/evaluate", policy="base", right=10),
        stage("round_01/sample", 1000, policy="base"),
        stage("round_01/train", trained=500, inputs=["round_01/sample"], policy="base"),
        stage("round_01/evaluate", policy="round_01", right=20),
        stage("round_02/sample", 1000, policy="round_01"),
        stage("round_02/train", trained=500, inputs=["round_02/sample"], policy="round_01"),
        stage("round_02/evaluate", policy="round_02", right=28),
    ]
    trained = {"round_01": "round_01/train", "round_02": "round_02/train"}
    return build(tmp_path / "rounds", stages, trained)


@pytest.fixture
def variants(tmp_path):
    """Two judges on the samples they share; the second also chose among two trainings."""
    stages = [
        stage("round_00/evaluate", policy="base", right=10),
        stage("round_01/sample", 200, policy="base"),
        stage("round_01/x.judge", 800, inputs=["round_01/sample"], policy="base"),
        stage("round_01/x.train", trained=900, inputs=["round_01/x.judge"], policy="base"),
        stage("round_01/x.evaluate", policy="x", right=14),
        stage("round_01/y.small.train", trained=700, inputs=["round_01/sample"], policy="base"),
        stage("round_01/y.large.train", trained=800, inputs=["round_01/sample"], policy="base"),
        stage("round_01/y.evaluate", policy="y", right=30),
    ]
    return build(
        tmp_path / "variants", stages,
        {"x": "round_01/x.train", "y": "round_01/y.large.train"},
    )  # fmt: skip


def test_a_line_is_charged_with_its_own_stages_alone(rounds, variants):
    (line,) = read_lines(rounds)
    assert [(p.policy, p.tokens, p.accuracy) for p in line.points] == [
        ("base", 0, 0.25), ("round_01", 1500, 0.5), ("round_02", 3000, 0.7),
    ]  # fmt: skip
    x, y = read_lines(variants)
    assert (x.name, x.points[-1].tokens) == ("x", 200 + 800 + 900)
    assert (y.name, y.points[-1].tokens) == ("y", 200 + 700 + 800)
    assert x.points[0].policy == y.points[0].policy == "base"


def test_lines_stand_at_the_budget_of_the_cheapest_and_in_their_ends(rounds, variants):
    found = compare([rounds, variants])
    assert found.budget == 1700
    at, end = (
        {s.line.label: r and (r.point.policy, r.point.tokens, r.gain.gain) for s, r in results}
        for results in (
            [(s, s.at) for s in found.standings], [(s, s.end) for s in found.standings],
        )
    )  # fmt: skip
    assert at == {
        "rounds": ("round_01", 1500, pytest.approx(0.25)), "variants: x": None,
        "variants: y": ("y", 1700, pytest.approx(0.5)),
    }  # fmt: skip
    assert end == {
        "rounds": ("round_02", 3000, pytest.approx(0.45)),
        "variants: x": ("x", 1900, pytest.approx(0.1)),
        "variants: y": ("y", 1700, pytest.approx(0.5)),
    }
    assert [s.lacks for s in found.standings] == [
        "", "its first trained policy costs 1,900 tokens", "",
    ]  # fmt: skip


def test_the_budget_can_be_chosen(rounds, variants, capsys):
    found = compare([rounds, variants], 1900)
    assert [s.at.point.policy for s in found.standings] == ["round_01", "x", "y"]
    everything = compare([rounds, variants], 10**9)
    assert all(s.at == s.end for s in everything.standings) and everything.ends == ()
    first = compare([rounds, variants], 1500).standings
    assert [s.at and s.at.point.tokens for s in first] == [1500, None, None]
    assert cli.main(["compare", str(rounds), str(variants), "--budget=1499"]) == 2
    said = capsys.readouterr().err
    assert "--budget=1499: nothing was trained within it; the cheapest policy costs 1,500" in said


def test_lines_meet_on_the_same_questions_with_corrected_p(rounds, variants):
    """At the budget x has nothing, and meets nobody: 10 fixed and none broken, p = 2 / 2^10.

    In the end 28, 14 and 30 of 40 are right: 14, 2 and 16 differ.
    """
    found = compare([rounds, variants])
    one, x, y = "rounds", "variants: x", "variants: y"
    (met,) = found.contests
    assert (met.first, met.second) == (one, y)
    assert met.difference.p_value == met.p_holm == pytest.approx(2 * 0.5**10)
    p = {(c.first, c.second): (c.difference.p_value, c.p_holm) for c in found.ends}
    assert p == {
        (one, x): pytest.approx((2 * 0.5**14, 2 * 2 * 0.5**14)),
        (one, y): pytest.approx((0.5, 0.5)),
        (x, y): pytest.approx((2 * 0.5**16, 3 * 2 * 0.5**16)),
    }
    assert [c.differing for c in found.ends] == [0, 0, 0]


def test_gauges_are_no_cost_of_a_branch_as_they_are_none_of_the_main_line(tmp_path):
    """What only looks at a policy is not what it took to make it."""
    both = [
        stage(f"round_01/{branch}{name}", generated, trained, policy="base")
        for branch in ("", "x.")
        for name, generated, trained in (("train", 0, 500), ("train.gauge_sample", 64, 0))
    ]
    tests = [
        stage("round_00/evaluate", policy="base", right=10),
        stage("round_01/evaluate", policy="one", right=20),
        stage("round_01/x.evaluate", policy="x", right=20),
    ]
    made = {"one": "round_01/train", "x": "round_01/x.train"}
    run = build(tmp_path / "gauged", [tests[0], *both, *tests[1:]], made)
    assert [line.points[-1].tokens for line in read_lines(run)] == [500, 500]


def shifted(tmp_path, start):
    stages = [
        stage("round_00/evaluate", policy="base", right=10, start=start),
        stage("round_01/train", trained=2000, policy="base"),
        stage("round_01/evaluate", policy="round_01", right=20, start=start),
    ]
    return build(tmp_path / f"shifted{start}", stages, {"round_01": "round_01/train"})


def test_runs_are_compared_on_the_questions_in_common(rounds, tmp_path):
    found = compare([rounds, shifted(tmp_path, 30)])
    (contest,) = found.contests
    assert len(found.ends) == 1
    assert (contest.difference.n, contest.differing) == (10, 60)
    assert (contest.difference.before, contest.difference.after) == (0.0, 1.0)


def test_runs_with_other_questions_are_not_comparable(rounds, tmp_path, capsys):
    other = shifted(tmp_path, N)
    out = tmp_path / "out.json"
    assert cli.main(["compare", str(rounds), str(other), f"--out={out}"]) == 0
    said = capsys.readouterr().out
    assert "not comparable: rounds and shifted40 answered different questions" in said
    content = json.loads(out.read_text())
    assert content["contests"] == content["contests_in_the_end"] == []
    assert [run["end"]["tokens"] for run in content["standings"]] == [3000, 2000]
    assert content["not_comparable"] == [{"first": "rounds", "second": "shifted40"}]


def test_reflections_are_compared_by_what_came_after_them(tmp_path):
    def outcomes(name, variant, later, made=None):
        row, about, _ = stage(name, policy=made, right=0)
        values = {"variant": variant, "turn": 2, "first": False, "believed": True}
        records = [
            {"id": f"{n}", "source_id": f"q{n}", "values": values | {"later": n < later}}
            for n in range(N)
        ]
        return row, about, records

    stages = [
        outcomes("round_00/untrained.outcome_2", "untrained", 8),
        stage("round_01/reflect", 100, policy="base"),
        stage("round_01/dpo.train", trained=50, inputs=["round_01/reflect"], policy="base"),
        outcomes("round_01/dpo.outcome_2", "dpo", 16, "dpo"),
        stage("round_01/qa.train", trained=60, policy="base"),
        outcomes("round_01/qa.outcome_2", "qa", 12, "qa"),
    ]
    run = build(tmp_path / "r", stages, {"dpo": "round_01/dpo.train", "qa": "round_01/qa.train"})
    dpo, qa = read_lines(run)
    assert [(p.policy, p.tokens) for p in dpo.points] == [
        ("untrained, turn 2", 0), ("dpo, turn 2", 150),
    ]  # fmt: skip
    assert (qa.points[-1].tokens, qa.points[-1].accuracy) == (60, 0.3)


class Text(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.said = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.said.append(text)


def test_the_page_has_every_point_and_loads_nothing(rounds, variants, tmp_path, capsys):
    hostile = rounds.rename(tmp_path / "<script>alert(1)<")
    plot = tmp_path / "plot.html"
    command = ["compare", str(hostile), str(variants), f"--plot={plot}"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "1,700 tokens generated and trained on" in said
    lacks = "variants: x has nothing within 1,700 tokens: its first trained policy costs 1,900"
    assert lacks in said and said.count("in the end, ") == 3
    page = Text(plot.read_text())
    names = [tag for tag, _ in page.tags]
    assert "script" not in names and "link" not in names and "img" not in names
    assert names.count("circle") == 3 + 2 + 2
    assert "http:" not in plot.read_text() and "https:" not in plot.read_text()
    text = " ".join(page.said)
    assert lacks in text and "Against each other, in the end" in text
    assert "<script>alert(1)<" in text and "equal budget" in text
    first = plot.read_bytes()
    assert cli.main(command) == 0 and plot.read_bytes() == first


def test_what_cannot_be_compared_is_said(rounds, tmp_path, capsys):
    assert cli.main(["compare", str(rounds)]) == 2
    assert "has one line of policies; give two runs" in capsys.readouterr().err
    (rounds / "summary.json").unlink()
    assert cli.main(["compare", str(rounds), str(rounds)]) == 2
    assert f"run selfevo report {rounds}" in capsys.readouterr().err
    assert cli.main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err
    only = [stage("round_00/evaluate", policy="base", right=3)]
    two = [build(tmp_path / name, only, {}) for name in ("a", "b")]
    with pytest.raises(UserError, match="no run has a trained policy"):
        compare(two)
