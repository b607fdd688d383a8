"""Judging as a stage: what was judged is kept, what is owed is asked, runs and files are read."""

import json

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.judging import (
    file_candidates,
    judge_stage,
    read_references,
    run_candidates,
    unique,
)
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.stages import Stage, StageFolder, run_stage
from selfevo_jax.evolve.work import each
from selfevo_jax.judge.asking import JudgeModel
from selfevo_jax.judge.pairwise import Comparison, Contest, PairwiseJudge, protocol
from selfevo_jax.records import Prompt, Row, Sample

CONTESTS = [Contest(str(n), "Say it", "x" * n, "y" * 5) for n in range(1, 10)]


def stage(version: str = "1") -> Stage:
    return Stage("pairs", version, {"margin": 0.0}, {"judged": "h"})


def test_a_stopped_judging_asks_only_for_what_is_owed(rules, tmp_path):
    class Stopped(Exception):
        pass

    rule = rules.Rule(rules.longer)
    judge = PairwiseJudge(JudgeModel("longer", rule), protocol("base"), window=2)

    def stopping(contests):
        for number, comparison in enumerate(judge.compare(contests)):
            if number == 5:
                raise Stopped
            yield comparison

    with pytest.raises(Stopped):
        judge_stage(tmp_path, stage(), CONTESTS, stopping, Comparison, Progress())
    rule.asked.clear()
    found = judge_stage(tmp_path, stage(), CONTESTS, judge.compare, Comparison, Progress())
    assert {r.id.split("/")[0] for r in rule.asked} == {"6", "7", "8", "9"}
    assert [c.item_id for c in found] == [c.id for c in CONTESTS]
    assert [c.verdict for c in found] == ["second"] * 4 + ["tie"] + ["first"] * 4
    rule.asked.clear()
    again = judge_stage(tmp_path, stage(), CONTESTS, judge.compare, Comparison, Progress())
    assert again == found and rule.asked == []
    with pytest.raises(UserError, match="holds other verdicts"):
        judge_stage(tmp_path, stage("2"), CONTESTS, judge.compare, Comparison, Progress())


@pytest.fixture
def workdir(tmp_path):
    """A run with finished samples: two prompts, two answers each."""
    prompts = [
        Prompt.make(task="t", messages=({"role": "user", "content": f"Count to {n}"},), answer="x",
                    meta={}) for n in (1, 2)
    ]  # fmt: skip
    samples = [
        Sample.make(prompt_id=prompt.id, parent_id=prompt.id, text=f"{n} or so", tokens=(n,),
                    logps=(0.0,), finish="stop", seed=n, policy="base")
        for prompt in prompts for n in (1, 2)
    ]  # fmt: skip
    finish(tmp_path / "round_01/prompts", prompts)
    finish(tmp_path / "round_01/sample", samples)
    return tmp_path


def finish(folder, records) -> None:
    items = [(record.id, record) for record in records]
    made = Stage("/".join(folder.parts[-2:]), "1", {}, {})
    run_stage(StageFolder(folder), made, items, each(lambda record: [record]), lambda count: None)


def test_the_samples_of_a_run_are_grouped_by_prompt(workdir):
    found = list(run_candidates(workdir))
    assert [given.instruction for given in found] == ["Count to 1", "Count to 2"]
    assert [[o.text for o in given.outputs] for given in found] == [["1 or so", "2 or so"]] * 2
    contests = [contest for given in found for contest, _, _ in given.contests()]
    assert [(c.first, c.second) for c in contests] == [("1 or so", "2 or so")] * 2
    assert list(run_candidates(workdir, 1)) == found
    with pytest.raises(UserError, match="not round 2 has finished samples"):
        list(run_candidates(workdir, 2))
    with pytest.raises(UserError, match="no round has finished samples"):
        list(run_candidates(workdir / "round_01"))


def test_any_stage_of_a_run_is_judged_beside_its_own_references(workdir):
    """A branch of the second round answers a question of the first, and had a reference to it."""
    (gold, asked) = run_candidates(workdir)
    assert gold.references == asked.references == ("x",)
    drawn = [
        Sample.make(prompt_id=asked.id, parent_id="advice", text=text, tokens=(1,), logps=(0.0,),
                    finish="stop", seed=0, policy="round_01") for text in ("one", "two")
    ]  # fmt: skip
    finish(workdir / "round_02/refeval.sample", drawn)
    finish(workdir / "round_02/references", [Row.make(source_id=asked.id, values={"text": "1 2"})])
    (found,) = run_candidates(workdir, stage="refeval.sample")
    assert (found.id, found.instruction, found.references) == (asked.id, "Count to 2", ("1 2",))
    assert [output.text for output in found.outputs] == ["one", "two"]
    assert [given.id for given in run_candidates(workdir)] == [gold.id, asked.id]
    with pytest.raises(UserError, match="its stages with samples: sample, refeval.sample"):
        list(run_candidates(workdir, stage="answer"))


def test_equal_texts_are_no_contest_and_ids_are_unique(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"input": "a", "outputs": ["x", "x", "y"]}, {"instruction": "b", "output": "z"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = list(file_candidates(file))
    assert [c.id for given in found for c, _, _ in given.contests()] == ["1/1-3", "1/2-3"]
    assert [m.id for given in found for m in given.marked()] == ["1/1", "1/2", "1/3", "2/1"]
    with pytest.raises(UserError, match="have the id '1/1-3'"):
        unique(c for given in found * 2 for c, _, _ in given.contests())
    with pytest.raises(UserError, match="nothing to judge"):
        unique(c for c, _, _ in found[1].contests())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"instruction": "a"}, "rows.jsonl:1: a row to judge has"),
        ({"output_1": "a", "output_2": "b"}, "rows.jsonl:1: a row to judge has"),
        ({"prompt": "a", "outputs": ["x", 1]}, "rows.jsonl:1: a row to judge has"),
        ({"prompt": "a", "output": "x", "reference": 3}, "reference must be a text"),
        ({"input": "a", "output_1": "x", "output_2": "y", "label": 0}, "label 0 must be 1 or 2"),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        list(file_candidates(file))


def test_references_are_read_by_id(tmp_path):
    file = tmp_path / "references.jsonl"
    file.write_text('{"id": "1", "references": ["a", "b"]}\n{"id": "2", "reference": "c"}\n')
    assert read_references(file) == {"1": ("a", "b"), "2": ("c",)}
    file.write_text('{"id": "1", "reference": "a"}\n{"id": "1", "reference": "b"}\n')
    with pytest.raises(UserError, match="references.jsonl:2: id '1'"):
        read_references(file)
