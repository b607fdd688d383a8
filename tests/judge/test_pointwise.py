"""Marks and critiques: what counts as a reply, what is asked again, what is a failure."""

import json

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.judge.asking import JudgeModel
from selfevo_jax.judge.critique import Critic, critic_prompt, spoken_verdict
from selfevo_jax.judge.pointwise import Marked, PointwiseJudge, read_marks, rubric
from selfevo_jax.text.render import render_prompt

CRITERIA = ("accuracy", "completeness", "relevance", "coherence", "reliability")
GOOD = dict(zip(CRITERIA, (7, 8, 9, 10, 1), strict=True))
OUTPUTS = [Marked("1", "What is 1+1?", "two"), Marked("2", "Name a bird.", "a fish")]


def changed(**marks) -> str:
    return json.dumps(GOOD | marks)


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps(GOOD),
        f"```json\n{json.dumps(GOOD, indent=2)}\n```",
        f"Here it is: {json.dumps(GOOD)} Thanks {{}}.".replace(" {}", ""),
        f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}",
    ],
)
def test_marks_are_read(reply):
    assert read_marks(reply, CRITERIA) == (GOOD, None)


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        ("", "no JSON object"),
        ("accuracy: 7", "no JSON object"),
        (json.dumps(GOOD)[:-1], "no JSON object"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "reliability"}), "unknown: reliability"),
        (changed(style=3), "unknown: style"),
        (changed(accuracy=0), "accuracy is not a whole number"),
        (changed(accuracy=11), "accuracy is not a whole number"),
        (changed(accuracy=7.5), "accuracy is not a whole number"),
        (changed(accuracy=True), "accuracy is not a whole number"),
        (changed(accuracy="7"), "accuracy is not a whole number"),
        (changed(accuracy=None), "accuracy is not a whole number"),
        (json.dumps(GOOD) + changed(accuracy=2), "more than one JSON object"),
        (json.dumps(GOOD)[:-1] + ', "accuracy": 2}', "comes twice"),
        ("[" * 5000 + "{" * 5000, "no JSON object"),
    ],
)
def test_anything_else_is_a_fault(reply, fault):
    marks, found = read_marks(reply, CRITERIA)
    assert marks is None and fault in found


def marking(generator) -> PointwiseJudge:
    return PointwiseJudge(JudgeModel("rule", generator), rubric())


def test_a_bad_reply_is_asked_again_once_and_then_fails(rules):
    def reply(request):
        second = len(request.messages) == 3
        return json.dumps(GOOD) if request.id == "1" and second else "I like it."

    rule = rules.Rule(rules.always_a, reply)
    mended, failed = marking(rule).grade(OUTPUTS)
    assert mended.marks == GOOD and mended.mean == 7.0 and len(mended.replies) == 2
    assert failed.marks is None and failed.mean is None and "no JSON" in failed.failure
    assert len(rule.asked) == 4
    again = rule.asked[2].messages
    assert [message["role"] for message in again] == ["user", "assistant", "user"]
    assert again[1]["content"] == "I like it." and "no JSON object" in again[2]["content"]


def test_a_silent_judge_is_a_failure(rules):
    rule = rules.Rule(rules.always_a)
    rule.generate = lambda requests: iter(())
    assert [g.failure for g in marking(rule).grade(OUTPUTS)] == ["the judge gave no answer"] * 2


def test_a_long_output_is_cut_and_the_repair_still_fits(byte_model):
    room = 2200
    engine = byte_model.generator(room)
    model = JudgeModel("tiny", engine, byte_model.tokenizer, room)
    judge = PointwiseJudge(model, rubric())
    (found,) = judge.grade([Marked("1", "Say hi", "x" * 4000)])
    assert found.cut["output"] > 1800 and len(found.replies) == 2
    assert found.failure is not None and found.marks is None
    prompt = judge._ask(Marked("1", "Say hi", "x" * 4000)).messages
    text = byte_model.tokenizer.decode(render_prompt(byte_model.tokenizer, prompt))
    assert '"reliability": N}' in text[-40:]


def test_critiques_come_before_the_verdict_and_advice_after_it(rules):
    def right(messages) -> int:
        return 0 if rules.shown(messages, "output") == "two" else 1

    rule = rules.Rule(right, lambda request: " It is not a bird.\n")
    model = JudgeModel("rule", rule)
    good, bad = Critic(model, critic_prompt("advice")).review(OUTPUTS)
    assert (good.right, good.text, bad.right, bad.text) == (True, "", False, "It is not a bird.")
    assert rule.asked[0].labels == (" right", " wrong") and rule.asked[0].prefix == "Verdict:"
    assert rule.asked[-1].prefix == "Verdict: wrong\nAdvice:"
    good, bad = Critic(model, critic_prompt("critique")).review(OUTPUTS)
    assert (good.right, bad.right) == (True, False)
    assert good.text == bad.text == "It is not a bird."
    with pytest.raises(UserError, match="critique, advice"):
        critic_prompt("praise")


def test_wrong_without_advice_is_a_failure(rules):
    rule = rules.Rule(lambda messages: 1, lambda request: "  ")
    found = list(Critic(JudgeModel("rule", rule), critic_prompt("advice")).review(OUTPUTS))
    assert all(o.right is None and "no advice" in o.failure for o in found)


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("It holds.\nVerdict: right", "right"),
        ("**Verdict:** wrong.", "wrong"),
        ("The word right is in here.", None),
        ("Verdict: right\nVerdict: wrong", None),
        ("Verdict: unclear", None),
    ],
)
def test_written_verdicts(reply, label):
    assert spoken_verdict(reply, ("right", "wrong")) == label
