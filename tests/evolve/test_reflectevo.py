"""ReflectEvo in miniature: what is curated, what is trained, and a test without an oracle."""

import json

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.backend import JaxModel
from selfevo_jax.evolve.importing.writing import write_shape
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.reflection import (
    KEYS,
    REFLECT,
    WHOLE,
    belief,
    drawn_keys,
    has_rivals,
    helped_against_not,
    preferred,
    turns_table,
    whole_messages,
)
from selfevo_jax.judge.pairwise import Comparison
from selfevo_jax.records import Prompt, Row, Sample, Verdict
from selfevo_jax.text.render import render_example, render_prompt

COMPUTE = {"dtype": "float32", "remat": "none", "mesh": "1,-1,1", "slots": 8, "max_length": 512}


@pytest.fixture(scope="module")
def run(method):
    run = method()
    run()
    return run


def by_id(run, stage: str) -> dict:
    return {row["id"]: row for row in run.rows(stage)}


def test_the_pool_has_32_instructions_and_draws_are_different():
    assert len(set(KEYS)) == 32 and KEYS[0] == "1-1-1" and KEYS[-1] == "2-8-2"
    prompt = Prompt.make(task="t", messages=({"role": "user", "content": "?"},), answer=None)
    drawn = drawn_keys((prompt,), KEYS, 5, 0)
    assert len(set(drawn)) == 5 and drawn == drawn_keys((prompt,), KEYS, 5, 0)
    assert drawn != drawn_keys((prompt,), KEYS, 5, 1)


def test_only_wrong_answers_are_reflected_on_and_only_help_is_imitated(run):
    wrong = {row["sample_id"] for row in run.rows("round_01/check") if not row["correct"]}
    reflections, revisions = by_id(run, "round_01/reflect"), by_id(run, "round_01/revise")
    assert {row["parent_id"] for row in reflections.values()} == wrong
    right = {row["sample_id"] for row in run.rows("round_01/check_revise") if row["correct"]}
    lessons = run.rows("round_01/two_stage.learn")
    helped = [revisions[name]["parent_id"] for name in revisions if name in right]
    assert [row["source_id"] for row in lessons] == helped and helped
    for row in run.rows("round_01/dpo.pairs"):
        assert row["chosen_id"] in helped and row["rejected_id"] not in helped
        chosen, rejected = (reflections[row[side]] for side in ("chosen_id", "rejected_id"))
        assert chosen["parent_id"] == rejected["parent_id"]
        assert row["chosen"] == chosen["text"].strip()


def test_the_corpus_is_counted_by_hand(run):
    (found,) = [row["values"] for row in run.rows("round_01/corpus")]
    wrong = {row["sample_id"] for row in run.rows("round_01/check") if not row["correct"]}
    reflections, revisions = by_id(run, "round_01/reflect"), run.rows("round_01/revise")
    right = {row["sample_id"] for row in run.rows("round_01/check_revise") if row["correct"]}
    assert (found["task"], found["questions"]) == ("rg:chain_sum", len(wrong))
    assert found["reflections"] == len(reflections) == 8 * len(wrong)
    assert found["corrected"] == round(len(right) / len(reflections), 4) > 0
    assert found["pairs"] == len(run.rows("round_01/dpo.pairs"))
    words = sum(len(row["text"].split()) for row in revisions) / len(revisions)
    assert found["answer_2"] == round(words, 1)


def test_a_corpus_of_several_tasks_is_gathered_and_written_as_published(method, tmp_path):
    run = method("corpus")
    run.config = run.config.replace(":tiny", ":dataset-tiny")
    said = run()
    rows = [row["values"] for row in run.rows("round_01/corpus")]
    assert [row["task"] for row in rows] == ["rg:chain_sum", "rg:gcd", "all tasks"]
    sums, divisors, both = (row["reflections"] for row in rows)
    assert both == sums + divisors > 0
    assert "round_01/corpus" in said and "train" not in {p.name for p in run.workdir.rglob("*")}
    written, _ = write_shape(run.workdir, "raw", tmp_path / "raw.jsonl")
    published = [json.loads(line) for line in (tmp_path / "raw.jsonl").read_text().splitlines()]
    assert written == len(published) == 24
    assert sum(len(row["output"]) - 1 for row in published) == both


def test_every_held_out_answer_is_tried_again_with_no_word_of_its_verdict(run):
    """7.1 f: right or wrong at turn 1, all are tried again; the result is that of turn 2 alone."""
    for name in ("untrained", "one_stage", "two_stage", "dpo", "qa"):
        place = "round_00" if name == "untrained" else "round_01"
        later = run.rows(f"{place}/{name}.turn_2")
        assert len(later) == len(run.rows("round_00/held_out")) == 4
    rows = [row["values"] for row in run.rows("round_01/table")]
    assert not any("acc_oracle" in row for row in rows)


def outcomes(*flags: tuple[bool, bool, bool]) -> list[Row]:
    return [
        Row.make(
            source_id=str(n),
            values={
                "variant": "v",
                "turn": 2,
                "first": a,
                "later": b,
                "believed": c,
                "unread": False,
            },
        )
        for n, (a, b, c) in enumerate(flags)
    ]


def test_accuracy_at_turn_2_can_fall():
    rows = outcomes(
        (True, False, False), (True, True, True), (True, False, True), (False, True, False)
    )
    (found,) = [row.values for row in turns_table(rows, oracle=False)]
    assert (found["acc_t1"], found["acc"], found["gain"]) == (0.75, 0.5, -0.25)
    assert (found["right_to_wrong"], found["wrong_to_right"]) == (2, 1)
    assert found["acc_self_verified"] == 0.75 and "acc_oracle" not in found
    (bound,) = [row.values for row in turns_table(rows, oracle=True)]
    assert bound["acc_oracle"] == 1.0


def test_training_and_test_use_one_template_and_one_role(run):
    """7.1 j: the same answer gives the same tokens in training as at test."""
    answers = {k: Sample.from_json(row) for k, row in by_id(run, "round_01/answer").items()}
    prompts = {k: Prompt.from_json(row) for k, row in by_id(run, "round_01/prompts").items()}
    revisions, reflections = by_id(run, "round_01/revise"), by_id(run, "round_01/reflect")
    tokenizer = JaxModel("random:tiny?seed=0", COMPUTE, Progress()).tokenizer
    lessons = run.rows("round_01/one_stage.learn")
    assert lessons
    for lesson in lessons:
        answer = answers[reflections[revisions[lesson["source_id"]]["parent_id"]]["parent_id"]]
        asked = whole_messages((answer, prompts[answer.prompt_id]))
        trained = render_example(tokenizer, "x", lesson["prompt"], [lesson["completion"]], 512)
        assert trained.prompt.tokens.tolist() == render_prompt(tokenizer, asked)
        revision = revisions[lesson["source_id"]]
        said = reflections[revision["parent_id"]]["text"].strip()
        assert lesson["completion"] == f"{said}\n\n{revision['text'].strip()}".strip()
    assert REFLECT.messages[0]["role"] == WHOLE.messages[0]["role"] == "user"


def test_the_table_has_every_variant(run):
    rows = [row["values"] for row in run.rows("round_01/table")]
    found = [row["variant"] for row in rows]
    assert found == ["untrained", "one_stage", "two_stage", "dpo", "qa"]
    assert all(row["n"] == 4 and "gain_low" in row for row in rows)


def test_more_turns_and_no_reflection(method):
    few = ("variants=()", "prompts.n=4", "pool.per_answer=2", "test.turns=3")
    run = method("turns")
    run(*few)
    second, third = (by_id(run, f"round_00/untrained.turn_{turn}") for turn in (2, 3))
    said = by_id(run, "round_00/untrained.reflect_3")
    assert {said[row["parent_id"]]["parent_id"] for row in third.values()} == set(second)
    run(*few, "test.reflection=none")
    first = by_id(run, "round_00/untrained.turn_1")
    second = run.rows("round_00/untrained.turn_2")
    assert {row["parent_id"] for row in second} == set(first)


JUDGE = """name: short
version: 1
fields: instruction, output_a, output_b
cut: instruction, output_a, output_b
labels: a, b

=== user
{instruction} a: {output_a} b: {output_b}

=== verdict
(
"""


def test_a_judge_that_abstains_gives_no_pairs(method, tmp_path):
    """No coin is thrown: a random model puts too little on both labels, and that is a failure."""
    (tmp_path / "short.txt").write_text(JUDGE)
    run = method("judged")
    more = ("prompts.n=100", "revise.max_new_tokens=16")  # some answers come right by chance
    with pytest.raises(UserError, match="0 records and needs 1: .* or the judge"):
        run("variants=('dpo_pref',)", f"judge.protocol={tmp_path / 'short.txt'}", *more)
    verdicts = run.rows("round_01/dpo_pref.judge")
    assert {verdict["verdict"] for verdict in verdicts} == {"failure"}
    assert all(len(verdict["ballots"]) == 2 for verdict in verdicts)


def story(text: str, correct: bool, answer: str = "7") -> tuple:
    """One reflection on one answer, and what came of it."""
    prompt = Prompt.make(task="t", messages=({"role": "user", "content": "?"},), answer="1")

    def said(parent, what):
        return Sample.make(
            prompt_id=prompt.id, parent_id=parent.id, text=what, tokens=(1,), logps=(0.0,),
            finish="stop", seed=0, policy="base",
        )  # fmt: skip

    first = said(prompt, answer)
    reflection = said(first, text)
    revision = said(reflection, "1")
    verdict = Verdict.make(sample_id=revision.id, score=1.0, correct=correct, parsed="1")
    return revision, verdict, reflection, first, prompt


def judged(verdict: str) -> Comparison:
    return Comparison.make(
        item_id="i", judge="j", protocol="base", prompt="p", ballots=(), p_first=0.5,
        verdict=verdict, failure=None, margin=0.0, cut={}, neutralised=(),
    )  # fmt: skip


def test_pairs_prefer_what_helped_and_what_the_judge_prefers():
    one, two, bad = story("one", True), story("two", True), story("bad", False)
    (pair,) = helped_against_not([one, two, bad, bad])
    assert (pair.chosen, pair.rejected) == ("one", "bad")
    assert has_rivals([one, bad, two]) and not has_rivals([one, one, bad])
    for verdict, chosen in (("first", ["one"]), ("second", ["two"]), ("tie", []), ("failure", [])):
        pairs = preferred(([one, bad, two], judged(verdict)))
        assert [pair.chosen for pair in pairs] == chosen


def test_killed_and_gone_on_with_it_is_the_same(method, content_of):
    few = ("variants=('dpo',)",)
    whole = method("whole")
    whole(*few)
    killed = method.killed("killed", 300, *few)
    assert content_of(killed) == content_of(whole)


def test_pairs_are_of_one_answer_and_of_different_words():
    """Two answers to one question: what is said of one is not set against what is said of the
    other; the same words are never on both sides."""
    first, second = story("helps", True, answer="7"), story("does not", False, answer="8")
    assert helped_against_not([first, second]) == []
    assert not has_rivals([first, story("too", True, answer="8")])
    both = [story("same", True), story(" same ", False), story("bad", False)]
    assert helped_against_not(both) == []
    (pair,) = helped_against_not([*both, story("good", True)])
    assert (pair.chosen, pair.rejected) == ("good", "bad")


@pytest.mark.parametrize(
    ("said", "believed", "parsed"),
    [
        ("Yes, it is right.", True, "yes"), (" no", False, "no"), ('"Yes"', True, "yes"),
        ("Now let me check: yes", False, None), ("Note that", False, None), ("", False, None),
    ],
)  # fmt: skip
def test_a_belief_is_a_word_and_what_is_none_is_counted(said, believed, parsed):
    (_, _, reflection, answer, _) = story(said, True)
    (found,) = belief((reflection, answer))
    assert (found.correct, found.parsed) == (believed, parsed)
