"""What decides how a run goes on: acceptance, rollback, difficulty, never the test split; cost."""

import io
import json

import pytest
from rich.console import Console

from selfevo_jax.errors import UserError
from selfevo_jax.evolve import decisions
from selfevo_jax.evolve.engine import Recipe, Stages
from selfevo_jax.evolve.exporting import export, find_trained
from selfevo_jax.evolve.pairs import right_against_older_wrong
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.tables import accuracy
from selfevo_jax.evolve.tiny import random_model
from selfevo_jax.records import Answer, Prompt, Row, Sample, Verdict
from selfevo_jax.report.summary import summarise
from selfevo_jax.text.render import render_prompt
from selfevo_jax.text.tokenizer import load_tokenizer

ACCEPT = ("rounds=2", "evaluate.n=2", "accept.questions=3")


def answers(policy: str, marks: str) -> list[Answer]:
    """Answers to questions 0, 1, ...: right where the mark is x."""
    return [
        Answer.make(
            prompt_id=str(number), task="t", policy=policy, text=f"{policy} {number}", parsed="1",
            gold="1", score=float(mark == "x"), correct=mark == "x", tokens=1,
        )
        for number, mark in enumerate(marks)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "tolerance", "lost", "accepted", "why"),
    [
        ("xx..", "xx..", 0.0, 0.0, True, ""),
        ("xx..", "xxx.", 0.0, 0.0, True, ""),
        ("xx..", "x...", 0.0, 1.0, False, "fell from 0.500 to 0.250 of 4"),
        ("xx..", "x...", 0.25, 1.0, True, ""),
        ("xx..", ".xxx", 0.0, 0.4, False, "1 of 2 questions that were solved are no longer"),
        ("xx..", ".xxx", 0.0, 0.5, True, ""),
        ("....", "....", 0.0, 0.0, True, ""),
    ],
)
def test_a_round_must_not_fall_nor_lose_what_was_solved(
    before, after, tolerance, lost, accepted, why
):
    rows = [*answers("old", before), *reversed(answers("new", after))]  # paired by id, not by row
    (row,) = decisions.verdict_on_round(rows, tolerance, lost)
    assert (row.source_id, row.values["best"]) == ("new", "old")
    assert row.values["accepted"] is accepted and why in row.values["why"]
    both = list(zip(before, after, strict=True))
    assert row.values["lost"] == both.count(("x", "."))
    assert row.values["gained"] == both.count((".", "x"))


def test_a_task_that_gives_marks_is_decided_by_its_mean_score():
    """Of free text hardly any answer is right to the letter: ROUGE-L says what it is worth."""

    def marked(policy: str, *scores: float) -> list[Answer]:
        return [
            Answer.make(
                prompt_id=f"{n}", task="t", policy=policy, text=f"{n}", parsed="1", gold="1",
                score=score, correct=score == 1.0, tokens=1,
            )
            for n, score in enumerate(scores)
        ]  # fmt: skip

    worse = [*marked("old", 0.5, 0.7), *marked("new", 0.6, 0.4)]
    (row,) = decisions.verdict_on_round(worse, 0.0, 1.0)
    assert "mean score fell from 0.600 to 0.500" in row.values["why"]
    first, second = (row.values for row in accuracy(worse))
    assert (first["score"], second["score"]) == (0.6, 0.5) and first["accuracy"] == 0.0
    assert second["score_gain"] == pytest.approx(-0.1) and second["gain"] == 0.0
    assert second["score_gain_low"] < -0.1 < second["score_gain_high"]
    plain = [row.values for row in accuracy([*answers("old", "x."), *answers("new", "xx")])]
    assert not any("score" in values for values in plain)


def test_what_is_chosen_by_validation_is_accepted_by_other_questions(method):
    """A policy that was the best of several on some questions is judged too kindly by these."""
    run = method("slices")
    run.config = run.config.replace("decisions", "refeval")
    run("judges=('refeval',)", "betas=(0.05,)", "accept.questions=3", "validation.questions=4")
    chosen = {row["id"] for row in run.rows("round_01/refeval.validation")}
    accepted = {row["prompt_id"] for row in run.rows("round_01/refeval.validate")}
    assert len(chosen) == 4 and len(accepted) == 3 and not chosen & accepted


def stage_of(run, stage: str) -> dict:
    return json.loads((run.workdir / stage / "stage.json").read_text())


def test_a_refused_round_is_rolled_back_and_the_best_is_exported(mini, tmp_path):
    """With a tolerance below zero every round has to gain; a random model gains nothing."""
    mini(*ACCEPT, "accept.tolerance=-1.0")
    first, second = (stage_of(mini, f"round_0{n}/train")["stage"]["inputs"] for n in (1, 2))
    assert first["start"] == second["start"] == first["base"]
    kept = json.loads((mini.workdir / "run.json").read_text())
    assert kept["best"] == "base"
    assert [kept["policies"][f"round_0{n}"]["accepted"] for n in (1, 2)] == [False, False]
    decided = summarise(mini.workdir)["accepted"]
    assert [(row["policy"], row["accepted"]) for row in decided] == [
        ("round_01", False),
        ("round_02", False),
    ]
    asked = {row["prompt_id"] for row in mini.rows("round_01/validate")}
    assert asked == {row["prompt_id"] for row in mini.rows("round_02/validate")}
    assert not asked & {row["prompt_id"] for row in mini.rows("round_02/evaluate")}
    assert not asked & {row["id"] for row in mini.rows("round_01/prompts")}
    say = Progress(Console(file=io.StringIO()))
    with pytest.raises(
        UserError, match="the base model is still the best one; trained: round_01, round_02"
    ):
        find_trained(mini.workdir, None)

    mini(*ACCEPT, "accept.tolerance=1.0", "accept.lost=1.0")
    second = stage_of(mini, "round_02/train")["stage"]["inputs"]
    assert second["start"] != second["base"]
    best = find_trained(mini.workdir, None)
    kept = (mini.workdir / "run.json").read_text()
    (mini.workdir / "run.json").write_text(kept.replace('"finished": true', '"finished": false'))
    with pytest.raises(UserError, match="has not finished: name a policy with --policy; trained:"):
        find_trained(mini.workdir, None)
    assert find_trained(mini.workdir, best.name) == best
    (mini.workdir / "run.json").write_text(kept)
    export(best, tmp_path / "out", "peft", say, card="", dtype="float32")
    best = json.loads((mini.workdir / "run.json").read_text())["best"]
    exported = (tmp_path / "out/adapter_model.safetensors").read_bytes()
    trained = mini.workdir / best / "train/adapter/adapter_model.safetensors"
    assert best == "round_02" and exported == trained.read_bytes()


def test_nothing_is_trained_or_chosen_by_the_test_split(tmp_path):
    stages = Stages(tmp_path, Progress(Console(file=io.StringIO())), planning=True)
    recipe = Recipe(items=list, work=lambda: iter, total=1, unit="answers", data="test")
    settings = {"settings": {}, "version": "1"}
    marked = stages.records("evaluate", Answer, recipe, inputs={}, measuring=True, **settings)
    table = stages.records("table", Row, recipe, inputs=marked.inputs, **settings)
    with pytest.raises(AssertionError, match="round_00/table comes from the test split"):
        stages.files(
            "train", lambda path, advance: {}, inputs=table.inputs, model="", data="", amount="",
            **settings,
        )  # fmt: skip
    with pytest.raises(AssertionError, match="comes from the test split"):
        stages.assert_unseen(marked.inputs)
    assert [step.measuring for step in stages.plan] == [True, True]


def judged(question: str, marks: str) -> list[tuple[Sample, Verdict]]:
    """Samples of a question and their verdicts: right where the mark is x."""
    made = []
    for number, mark in enumerate(marks):
        sample = Sample.make(
            prompt_id=question, parent_id=question, text=f"{mark}{number}", tokens=(1,),
            logps=(-1.0,), finish="stop", seed=number, policy="p",
        )  # fmt: skip
        right = mark == "x"
        verdict = Verdict.make(sample_id=sample.id, score=float(right), correct=right, parsed="1")
        made.append((sample, verdict))
    return made


def test_the_band_leaves_out_what_is_too_easy_or_too_hard():
    kept = [
        marks
        for marks in ("....", "x...", "xx..", "xxx.", "xxxx")
        if decisions.of_middling_difficulty(judged("q", marks), 0.0, 0.75)
    ]
    assert kept == ["x...", "xx.."]
    (row,) = decisions.pass_rate(judged("q", "xxx."))
    assert (row.source_id, row.values) == ("q", {"rate": 0.75, "n": 4})
    assert not decisions.solved(row) and decisions.solved(*decisions.pass_rate(judged("q", "xx")))


def test_rejected_answers_of_round_0_are_wrong_ones_to_the_same_question():
    prompt = Prompt.make(task="t", messages=({"role": "user", "content": "?"},), answer="1")
    new, older = judged(prompt.id, "x.x"), [*judged(prompt.id, ".x"), *judged("other", ".")]
    pairs = right_against_older_wrong([(new, prompt)], older, limit=5)
    right, wrong = {new[0][0].id, new[2][0].id}, older[0][0].id
    assert {pair.chosen_id for pair in pairs} == right
    assert {pair.rejected_id for pair in pairs} == {wrong}
    assert right_against_older_wrong([(new, prompt)], older[1:], limit=5) == []


def test_solved_prompts_are_not_asked_again_and_every_token_is_counted(mini):
    """One run with the band, prompts repeated, and rejected answers of round 0."""
    mini(
        "rounds=2", "evaluate.n=2", "difficulty.repeat=true", "difficulty.between=(0.0,1.0)",
        "pair.rejected_by=base",
    )  # fmt: skip
    rates = {row["source_id"]: row["values"]["rate"] for row in mini.rows("round_01/rate")}
    again = [row["id"] for row in mini.rows("round_02/prompts")]
    assert again == [row["id"] for row in mini.rows("round_01/prompts") if rates[row["id"]] < 1]
    banded = {row["prompt_id"] for row in mini.rows("round_01/band")}
    assert banded == {name for name, rate in rates.items() if 0 < rate < 1} != set(rates)
    older = {row["id"]: row["policy"] for row in mini.rows("round_02/sample_base")}
    assert {older[row["rejected_id"]] for row in mini.rows("round_02/pair")} == {"base"}

    summary = summarise(mini.workdir)
    stages = {row["stage"]: row for row in summary["stages"]}
    samples = mini.rows("round_01/sample")
    tokenizer = load_tokenizer(random_model("random:tiny?seed=0"))
    read = sum(
        len(render_prompt(tokenizer, row["messages"])) for row in mini.rows("round_01/prompts")
    )
    one = stages["round_01/sample"]
    assert one["generated_tokens"] == sum(len(row["tokens"]) for row in samples)
    assert one["read_tokens"] == 16 * read and one["measuring"] is False
    cost = summary["cost"]
    drawn = [
        row for n in (1, 2) for name in ("sample", "sample_base")
        for row in mini.rows(f"round_0{n}/{name}")
    ]  # fmt: skip
    assert cost["generated_tokens"] == sum(len(row["tokens"]) for row in drawn)
    trained = [stage_of(mini, f"round_0{n}/train")["counts"]["tokens"] for n in (1, 2)]
    assert cost["trained_tokens"] == sum(trained) > 0
    marked = [row for n in (0, 1, 2) for row in mini.rows(f"round_0{n}/evaluate")]
    assert cost["measuring"]["generated_tokens"] == sum(row["tokens"] for row in marked)
    assert cost["measuring"]["trained_tokens"] == 0 < cost["measuring"]["read_tokens"]


def test_a_fall_of_just_the_tolerance_is_allowed():
    """0.8 - 0.1 is a little more than 0.7 for a computer."""
    (found,) = decisions.verdict_on_round(
        [*answers("best", "x" * 8 + ".."), *answers("new", "x" * 7 + "...")], 0.1, 1.0
    )
    assert found.values["accepted"]
    (found,) = decisions.verdict_on_round(
        [*answers("best", "x" * 100), *answers("new", "x" * 71 + "." * 29)], 1.0, 0.29
    )
    assert found.values["accepted"]


def test_a_run_whose_prompts_are_all_solved_ends_cleanly(method, easy):
    """Prompts of a method that draws one answer to each are probed for it; here all are solved."""
    run = method("solved")
    run.config = run.config.replace("decisions", "elite")
    easy(run)
    few = ("rounds=3", "prompts.n=2", "baselines=()", "evaluate.n=2", "critique.n=1")
    said = run(*few, "difficulty.repeat=true", "difficulty.probe.n=2")
    assert all(row["values"]["rate"] == 1.0 for row in run.rows("round_01/rate"))
    assert "solved in an earlier round (difficulty.repeat): the rounds end here" in said
    assert not (run.workdir / "round_02").exists()
    assert json.loads((run.workdir / "run.json").read_text())["best"] == "round_01"
    table = [row["values"]["policy"] for row in run.rows("round_01/table")]
    assert table == ["base", "round_01"]


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("meteor", ()), ("reflectevo", ()), ("active", ()), ("verified", ("rounds=1",)),
        ("combined", ("prompts_by=entropy",)),
    ],
)  # fmt: skip
def test_repeating_is_refused_where_prompts_are_drawn_once(method, name, others):
    run = method(name)
    file = "quickstart" if name == "verified" else name
    run.config = run.config.replace("decisions", file)
    with pytest.raises(UserError, match=f"difficulty.repeat=True: {name} draws its prompts once"):
        run(*others, "difficulty.repeat=true", dry_run=True)
    run(*others, dry_run=True)
