"""Reflection in words: the pool of instructions, the requests, and where reflections come from.

Pure functions of rows, and the two stages that making the data and testing have in common.

The pool has 2 x 8 x 2 instructions with keys `v-e-p`: how to verify, which kind of error to look
for, how concrete the plan is (ReflectEvo; the wording is ours).
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.task import STYLES
from selfevo_jax.evolve.policy import Policy
from selfevo_jax.evolve.run import Run
from selfevo_jax.evolve.settings import prompt_file
from selfevo_jax.evolve.views import Records, View
from selfevo_jax.records import Prompt, Row, Sample

VERIFY = {
    "1": "Go through it step by step and check each step before the next.",
    "2": "Read it once quickly and point at what strikes you first.",
}
FOCUS = {
    "1": "Look for mistakes in calculation.",
    "2": "Look for steps that are taken in a wrong order or left out.",
    "3": "Look for conclusions that do not follow.",
    "4": "Look for statements that contradict each other.",
    "5": "Look for conditions of the question that are not met.",
    "6": "Look for what is beside the point, and for what is missing.",
    "7": "Look for a form or structure that was not asked for.",
    "8": "Look for statements about the world that are not true.",
}
PLAN = {
    "1": "Then name in one sentence what should be done differently.",
    "2": "Then list, for each mistake, the concrete correction to make.",
}
REFLECT, WHOLE = prompt_file("reflect"), prompt_file("reflect_and_answer")
GUIDED, REVISE = prompt_file("reflect_guided"), prompt_file("reflect_revise")
VERIFY_ANSWER = prompt_file("reflect_verify")
KEYS = tuple("-".join(key) for key in itertools.product(VERIFY, FOCUS, PLAN))
Messages = Sequence[Mapping[str, str]]
ENDINGS = tuple(style.format(question="") for style in STYLES.values())  # what follows a question
NONE_STORED = "no wrong answer is to a question of the file of reflections"


def drawn_keys(row: tuple[Any, ...], keys: Sequence[str], n: int, seed: int) -> list[str]:
    """`n` different instructions for the first record of a row, decided by its id."""
    order = sorted(
        keys, key=lambda key: hashlib.sha256(f"{seed}{row[0].id}{key}".encode()).digest()
    )
    return order[:n]


def asked_of(prompt: Prompt) -> str:
    """The question as a text."""
    return prompt.messages[-1]["content"]


def reflect_messages(row: tuple[Sample, Prompt]) -> Messages:
    """The request to look back on an answer: the one that is trained and tested."""
    return REFLECT.fill(_looked_at(row))


def whole_messages(row: tuple[Sample, Prompt]) -> Messages:
    """The request to look back and to answer again, in one go: trained and tested."""
    return WHOLE.fill(_looked_at(row))


def verify_messages(row: tuple[Sample, Prompt]) -> Messages:
    """The request to say whether an answer is right."""
    return VERIFY_ANSWER.fill(_looked_at(row))


def _looked_at(row: tuple[Sample, Prompt]) -> dict[str, str]:
    attempt, prompt = row
    return {"question": asked_of(prompt), "attempt": attempt.text.strip()}


def guided_messages(row: tuple[Any, ...]) -> Messages:
    """The same with an instruction of the pool, to make data: row (answer, ..., prompt, key)."""
    attempt, prompt, key = row[0], row[-2], row[-1]
    verify, focus, plan = key.split("-")
    how = {"verify": VERIFY[verify], "focus": FOCUS[focus], "plan": PLAN[plan]}
    return GUIDED.fill(_looked_at((attempt, prompt)) | how)


def revise_messages(row: tuple[Any, ...], show_attempt: bool, reflected: bool) -> Messages:
    """The request for another attempt: row (reflection, answer, prompt) or (answer, prompt).

    It never says whether the attempt was right. With nothing to show it is the question itself.
    """
    reflection, attempt, prompt = row if reflected else (None, *row)
    before = f"Here is an earlier attempt.\n\nAttempt: {attempt.text.strip()}\n\n"
    before = before if show_attempt else ""
    if reflection is not None:
        before += f"Here is what was said about it.\n\nReflection: {reflection.text.strip()}\n\n"
    if not before:
        return prompt.messages
    return REVISE.fill({"before": before, "question": asked_of(prompt)})


def check_settings(run: Run, variants: Sequence[str]) -> None:
    """Refuses unknown words, and variants that learn from reflections where none are made."""
    for section in ("generate", "test"):
        source = run.config[section].reflection
        run.check_choices(f"{section}.reflection", [source], ("fresh", "stored", "none"))
        if source == "stored":
            run.check_given(f"{section}.stored", "a file of questions and reflections on them")
    run.check_between("generate.turns", 2)
    reflects = run.config.generate.reflection != "none"
    run.check_choices("variants", run.config.variants, variants if reflects else ("qa",))


def learner(run: Run, reflector: Policy, base: Policy) -> Policy:
    """Whom training starts from: a reflector bound as an adapter on the run's own base, else that.

    Another model, or one on a server, cannot be trained here.
    """
    role = reflector.role
    if role is None or not role.adapter or role.model not in ("", run.config.model):
        return base
    return replace(reflector, adapter=Path(role.adapter))


def reflections(
    run: Run,
    name: str,
    rows: View,
    how: Mapping[str, Any],
    fresh: tuple[View, Policy, Callable[..., Messages], Mapping[str, Any]],
    most: int = 1,
    every: bool = False,
) -> Records[Sample] | None:
    """What is said about each answer in rows (answer, prompt); None where nothing is.

    `how.reflection`: by the reflector now, as `fresh` says (rows, who, request, sampling), or in
    the file `how.stored`, see `stored_reflections`, or not at all.
    """
    if how["reflection"] != "stored":
        return run.ask(name, *fresh) if how["reflection"] == "fresh" else None
    known = run.read(f"{name}_stored", how["stored"], stored_row, Row)
    found = partial(stored_reflections, most=most, every=every)
    number = rows.count * most
    return run.gather(name, rows, found, Sample, given=known, most=number, why=NONE_STORED)


def retried(
    run: Run,
    name: str,
    said: Records[Sample] | None,
    answers: Records[Sample],
    prompts: Records[Prompt],
    policy: Policy,
    how: Mapping[str, Any],
) -> Records[Sample]:
    """Another attempt after each thing said of an answer; at each answer where nothing was."""
    show = run.config.show_attempt
    wanted = partial(revise_messages, show_attempt=show, reflected=said is not None)
    rows = answers if said is None else said.join(answers)
    return run.ask(name, rows.join(prompts), policy, wanted, how)


def chained(samples: Records[Sample], links: Iterable[Records]) -> View:
    """Rows of a sample with what is linked to it: its verdict, what it followed, and so on."""
    chain: View = samples
    for link in links:
        chain = chain.join(link)
    return chain


def stored_reflections(
    rows: Sequence[tuple[Sample, Prompt]], stored: Sequence[Row], most: int, every: bool
) -> list[Sample]:
    """The first `most` reflections that a file has for the question of each row (answer, prompt).

    With `every`, rows without one are a UserError; else they give nothing.
    """
    known: dict[str, dict[str, None]] = {}
    for row in stored:
        known.setdefault(row.values["question"].strip(), {})[row.values["reflection"]] = None
    found = [list(_stored(known, asked_of(prompt)))[:most] for _, prompt in rows]
    lacking = [prompt for (_, prompt), texts in zip(rows, found, strict=True) if not texts]
    if every and lacking:
        raise UserError(
            f"{len(lacking)} of {len(rows)} questions have no stored reflection, the first is "
            f"{asked_of(lacking[0])[:60]!r}: give one for each, or have fresh ones"
        )
    return [
        Sample.make(
            prompt_id=prompt.id, parent_id=answer.id, text=text, tokens=(), logps=(),
            finish="stop", seed=0, policy="stored",
        )
        for (answer, prompt), texts in zip(rows, found, strict=True)
        for text in texts
    ]  # fmt: skip


def _stored(known: Mapping[str, Iterable[str]], question: str) -> Iterable[str]:
    """What is known of the very question, as it is asked or without the ending of its style."""
    for ending in ENDINGS:
        bare = question.removesuffix(ending).strip() if question.endswith(ending) else None
        if bare in known:
            return known[bare]
    return ()


def stored_row(row: Mapping[str, Any]) -> Row:
    """A row of a file of reflections: {question, reflection}, or a published one of D+."""
    text, question = row.get("reflection", row.get("reflections")), row.get("question")
    text = text[-1] if isinstance(text, list) and text else text
    if not isinstance(text, str) or not isinstance(question, str) or not question.strip():
        raise UserError(f"a stored reflection needs question and reflection: {str(row)[:80]}")
    return Row.make(source_id=question, values={"question": question, "reflection": text})
