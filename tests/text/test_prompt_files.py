"""Prompt files: declared fields, harmless braces, one cap for what may be cut."""

from pathlib import Path

import pytest

import selfevo_jax
from selfevo_jax.errors import UserError
from selfevo_jax.text.prompt_files import parse_prompt, read_prompt

TEXT = """name: t
version: 2
fields: question, answer
cut: answer
labels: yes, no
=== system
Be brief. {"json": N} {} { x }
=== user
Q: {question}
A: {answer}
End of prompt.
=== verdict
Verdict:
"""


class Letters:
    """A tokenizer with a token a letter and no template."""

    chat, add_bos, bos_id = None, False, None

    def encode_sealed(self, text: str) -> list[int]:
        return [ord(char) for char in text]


def test_fields_are_put_in_and_braces_are_text():
    prompt = parse_prompt(TEXT, "t.txt")
    system, user = prompt.fill({"question": "{answer} {0}", "answer": "{question}\\1"})
    assert system == {"role": "system", "content": 'Be brief. {"json": N} {} { x }'}
    assert user["content"] == "Q: {answer} {0}\nA: {question}\\1\nEnd of prompt."
    assert prompt.part("verdict") == "Verdict:" and prompt.listed("labels") == ("yes", "no")
    with pytest.raises(UserError, match="no part 'advice'"):
        prompt.part("advice")


@pytest.mark.parametrize(
    "fields",
    [
        {"question": "q"},
        {"question": "q", "answer": "a", "more": "m"},
        {"question": "q", "answer": 1},
    ],
)
def test_missing_unknown_or_wrong_fields_are_refused(fields):
    with pytest.raises(UserError, match="missing or unknown: (answer|more)|'answer' is not a text"):
        parse_prompt(TEXT, "t.txt").fill(fields)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{question}", "nothing"),
        ("End", "{other}"),
        ("fields: question, answer", "fields: question, answer, third"),
        ("fields: question, answer", "fields: question, answer, answer"),
        ("cut: answer", "cut: thought"),
        ("version: 2\n", ""),
        ("version: 2", "version 2"),
        ("name: t", "name: t\nname: u"),
        ("=== system", "=== verdict"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(old, new):
    with pytest.raises(UserError, match=r"t\.txt"):
        parse_prompt(TEXT.replace(old, new), "t.txt")


def test_the_hash_follows_the_text():
    one, same = parse_prompt(TEXT, "a"), parse_prompt(TEXT, "b")
    assert one.hash == same.hash != parse_prompt(TEXT.replace("brief", "short"), "a").hash


def test_cutting_takes_from_the_longest_and_never_from_the_end():
    text = TEXT.replace("cut: answer", "cut: question, answer")
    prompt = parse_prompt(text, "t.txt")
    fields = {"question": "short", "answer": "x" * 500}
    bare = len("".join(m["content"] for m in prompt.fill({"question": "", "answer": ""}))) + 1
    assert prompt.cap(Letters(), "r", [fields], bare + 505) is None
    room = bare + 105 + 8
    cap = prompt.cap(Letters(), "r", [fields], room, prefix="Verdict:")
    assert cap == 100 and prompt.lost(fields, cap) == {"answer": 400}
    assert prompt.fill(fields, cap)[1]["content"].endswith("A: " + "x" * 100 + "\nEnd of prompt.")
    longer = fields | {"question": "y" * 20}  # both variants must fit with one cap
    assert prompt.cap(Letters(), "r", [fields, longer], room, prefix="Verdict:") == 85
    with pytest.raises(UserError, match="r: without its fields question, answer"):
        prompt.cap(Letters(), "r", [fields], bare - 1)


def test_all_our_prompts_are_sound_and_differ():
    files = sorted((Path(selfevo_jax.__file__).parent / "judge" / "prompts").glob("*.txt"))
    prompts = [read_prompt(path) for path in files]
    assert len(prompts) == 8
    assert len({prompt.name for prompt in prompts}) == len({p.hash for p in prompts}) == 8
    for prompt in prompts:
        text = prompt.messages[-1]["content"]
        assert set(prompt.cut) == set(prompt.fields)
        for name in prompt.fields:  # each stands between its own tags, which judges rely on
            assert f"<{name}>\n{{{name}}}\n</{name}>" in text
