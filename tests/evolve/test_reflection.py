"""Reflection without a model: the pool, what is stored, what is curated, what became of it."""

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.curation import corpus_table, helped_against_not, preferred, rivals
from selfevo_jax.evolve.reflection import (
    KEYS,
    drawn_keys,
    stored_reflections,
    stored_row,
)
from selfevo_jax.evolve.turns import belief, outcome, turns_table
from selfevo_jax.judge.pairwise import Comparison
from selfevo_jax.records import Prompt, Row, Sample, Verdict


def text(parent: Prompt | Sample, what: str, prompt: Prompt) -> Sample:
    return Sample.make(
        prompt_id=prompt.id, parent_id=parent.id, text=what, tokens=(1,), logps=(0.0,),
        finish="stop", seed=0, policy="base",
    )  # fmt: skip


def marked(sample: Sample, correct: bool, parsed: str | None = "x") -> Verdict:
    return Verdict.make(sample_id=sample.id, score=float(correct), correct=correct, parsed=parsed)


def asked(question: str = "?", answer: str | None = "1") -> Prompt:
    turn = {"role": "user", "content": question}
    return Prompt.make(task="t", messages=(turn,), answer=answer)


def story(said: str, correct: bool, answer: str = "7") -> tuple:
    """One reflection on one answer, and what came of it."""
    prompt = asked()
    first = text(prompt, answer, prompt)
    reflection = text(first, said, prompt)
    revision = text(reflection, "1", prompt)
    return revision, marked(revision, correct), reflection, first, prompt


def judged(verdict: str) -> Comparison:
    return Comparison.make(
        item_id="i", judge="j", protocol="base", prompt="p", ballots=(), p_first=0.5,
        verdict=verdict, failure=None, margin=0.0, cut={}, neutralised=(),
    )  # fmt: skip


def test_the_pool_has_32_instructions_and_draws_are_different():
    assert len(set(KEYS)) == 32 and KEYS[0] == "1-1-1" and KEYS[-1] == "2-8-2"
    prompt = Prompt.make(task="t", messages=({"role": "user", "content": "?"},), answer=None)
    drawn = drawn_keys((prompt,), KEYS, 5, 0)
    assert len(set(drawn)) == 5 and drawn == drawn_keys((prompt,), KEYS, 5, 0)
    assert drawn != drawn_keys((prompt,), KEYS, 5, 1)


def test_a_stored_reflection_is_of_the_very_question():
    def found(question: str, *known: str, every: bool = False) -> list[str]:
        prompt = asked(question)
        rows = [stored_row({"question": name, "reflection": name.upper()}) for name in known]
        about = [(text(prompt, "7", prompt), prompt)]
        return [said.text for said in stored_reflections(about, rows, 1, every)]

    assert found("What is 1 + 11?", "What is 1 + 1") == []
    assert found("What is 1 + 11?", "What is 1 + 1", "What is 1 + 11?") == ["WHAT IS 1 + 11?"]
    assert found("Sum?\nReply with the answer only.", " Sum?\n") == [" SUM?\n"]
    assert found("Is it so? Sum?", "Sum?") == []
    with pytest.raises(UserError, match="1 of 1 questions have no stored reflection"):
        found("a", "b", every=True)
    with pytest.raises(UserError, match="needs question and reflection"):
        found("a", " ")


def test_pairs_prefer_what_helped_and_what_the_judge_prefers():
    one, two, bad = story("one", True), story("two", True), story("bad", False)
    (pair,) = helped_against_not([one, two, bad, bad])
    assert (pair.chosen, pair.rejected) == ("one", "bad")
    assert rivals([one, one, bad]) == []
    (met,) = rivals([one, bad, two])
    first, second = [("one", "two")], [("two", "one")]
    for verdict, wanted in (("first", first), ("second", second), ("tie", []), ("failure", [])):
        pairs = preferred((met, judged(verdict)))
        assert [(pair.chosen, pair.rejected) for pair in pairs] == wanted
        assert {pair.chosen_id for pair in pairs} <= {met.chosen_id, met.rejected_id}
    assert preferred((met, judged("second")))[0].chosen_id == met.rejected_id
    several = [story(f"{n}", True) for n in range(5)]
    assert [(p.chosen, p.rejected) for p in rivals(several)] == [("0", "1"), ("2", "3")]


def test_pairs_are_of_one_answer_and_of_different_words():
    """Two answers to one question: what is said of one is not set against what is said of the
    other; the same words are never on both sides."""
    first, second = story("helps", True, answer="7"), story("does not", False, answer="8")
    assert helped_against_not([first, second]) == []
    assert rivals([first, story("too", True, answer="8")]) == []
    both = [story("same", True), story(" same ", False), story("bad", False)]
    assert helped_against_not(both) == []
    (pair,) = helped_against_not([*both, story("good", True)])
    assert (pair.chosen, pair.rejected) == ("good", "bad")


def test_the_corpus_of_tries_without_reflections_is_counted():
    revision, verdict, _, answer, prompt = story("x", True)
    (row,) = corpus_table([(revision, verdict, answer, prompt)])
    assert (row.values["corrected"], row.values["reflections"]) == (1.0, 0)


def outcome_of(name: str, right: list[bool], believed: list[bool | None], turn: int) -> Row:
    """What a test keeps of a question: right at each turn, and which answers were believed."""
    prompt = asked(name)
    answers = [text(prompt, f"{n}", prompt) for n in range(turn)]
    told = text(answers[0], "said", prompt)
    row = [answers[-1], marked(answers[-1], right[turn - 1])]
    for n in reversed(range(turn - 1)):
        word = None if believed[n] is None else "yes" if believed[n] else "no"
        row += [told, answers[n], marked(answers[n], right[n])]
        row.append(marked(answers[n], bool(believed[n]), word))
    (found,) = outcome((*row, prompt), "v", turn)
    return found


def outcomes(*flags: tuple[bool, bool, bool]) -> list[Row]:
    return [outcome_of(str(n), [a, b], [c], 2) for n, (a, b, c) in enumerate(flags)]


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


def test_oracle_and_self_verification_stop_at_a_turn_and_stay_there():
    """Wrong, right, wrong: the bound of three turns is that of two; a believed answer is kept."""
    cases = [
        ([False, True, False], [False, False]), ([False, True, False], [False, True]),
        ([False, False, True], [True, False]), ([True, False, False], [False, None]),
    ]  # fmt: skip
    rows = [outcome_of(str(n), *case, turn=turn) for turn in (2, 3) for n, case in enumerate(cases)]
    two, three = [row.values for row in turns_table(rows, oracle=True)]
    assert (two["turn"], two["acc"], two["acc_self_verified"], two["acc_oracle"]) == (
        2,
        0.5,
        0.5,
        0.75,
    )
    # By hand: the second keeps its right answer of turn 2, the third its wrong one of turn 1.
    assert (three["turn"], three["acc"], three["acc_self_verified"]) == (3, 0.25, 0.25)
    assert three["acc_oracle"] == 1.0 and (two["unread"], three["unread"]) == (0, 1)


def test_every_delta_has_its_paired_interval():
    rows = outcomes(*[(False, True, False)] * 3, *[(True, False, True)] * 2, (True, True, False))
    (found,) = [row.values for row in turns_table(rows, oracle=True)]
    plain = [found[name] for name in ("gain", "gain_self_verified", "gain_oracle")]
    assert plain == pytest.approx([1 / 6, 3 / 6, 3 / 6])
    for name in ("gain", "gain_self_verified", "gain_oracle"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert found["gain_self_verified_low"] > found["gain_low"]
    assert not any("oracle" in name for name in turns_table(rows, oracle=False)[0].values)


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
