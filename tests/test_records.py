"""Records: ids are of content, JSON comes back the same, joins go by id."""

import json
import random
import subprocess
import sys
from dataclasses import replace

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.records import Answer, DataRow, Pair, Prompt, Sample, Verdict, content_id, join

PROMPT = Prompt.make(
    task="t", messages=({"role": "user", "content": "2+2 = ü?"},), answer="4", meta={"index": 3}
)


def sample(number: int, prompt_id: str = PROMPT.id) -> Sample:
    return Sample.make(
        prompt_id=prompt_id, parent_id=prompt_id, text=str(number), tokens=(number,), logps=(-0.5,),
        finish="stop", seed=number, policy="base",
    )  # fmt: skip


def test_an_id_is_the_same_in_another_process_and_follows_content_only():
    code = (
        "from selfevo_jax.records import Prompt; print(Prompt.make(task='t', answer='4', meta={},"
        " messages=({'content': '2+2 = \\u00fc?', 'role': 'user'},)).id)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == PROMPT.id
    assert len(PROMPT.id) == 16 and int(PROMPT.id, 16)
    assert Prompt.make(task="t", messages=PROMPT.messages, answer="5").id != PROMPT.id
    assert sample(1).id != sample(2).id
    assert content_id("ab", "c") != content_id("a", "bc")


@pytest.mark.parametrize(
    "record",
    [
        PROMPT,
        sample(1),
        Verdict.make(sample_id="s", score=0.25, correct=False, parsed=None),
        Pair.make(
            prompt_id="p", chosen_id="a", rejected_id="b", prompt=PROMPT.messages, chosen="x",
            rejected="y\u2028",
        ),
        DataRow.make(source_id="7", messages=PROMPT.messages, completions=("4", "5"), label=None),
        Answer.make(
            prompt_id="p", task="t", policy="base", text="4", parsed="4", gold="4", score=1.0,
            correct=True, tokens=2,
        ),
    ],
    ids=lambda record: type(record).__name__,
)  # fmt: skip
def test_json_comes_back_the_same(record):
    assert type(record).from_json(json.loads(json.dumps(record.to_json()))) == record


def test_a_missing_or_unknown_field_is_named():
    row = PROMPT.to_json()
    with pytest.raises(UserError, match=r"file:3: .*unknown: answr"):
        Prompt.from_json(row | {"answr": 1}, "file:3")
    del row["task"]
    with pytest.raises(UserError, match="task"):
        Prompt.from_json(row)


def test_join_goes_by_id_whatever_the_order():
    samples = [sample(number) for number in range(50)]
    verdicts = [
        Verdict.make(sample_id=s.id, score=s.seed, correct=True, parsed=None) for s in samples
    ]
    random.Random(0).shuffle(verdicts)
    found = list(join(samples, verdicts, "id", "sample_id"))
    assert [(left.seed, right.score) for left, right in found] == [(n, n) for n in range(50)]


def test_join_lets_neighbours_share_a_partner_and_refuses_a_missing_one():
    other = replace(PROMPT, id="other")
    samples = [sample(1), sample(2), sample(3, "other")]
    found = [right.id for _, right in join(samples, [other, PROMPT], "prompt_id", "id")]
    assert found == [PROMPT.id, PROMPT.id, "other"]
    with pytest.raises(UserError, match="no id is other"):
        list(join(samples, [PROMPT], "prompt_id", "id"))
