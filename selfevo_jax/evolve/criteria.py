"""Several answers to one question, marked beside each other on METEOR's five criteria.

A judge sees all answers of a question, once in every rotation of their order, so that each answer
stands in every place. A question counts when the marks of all rotations could be read; what could
not be read is counted as such, never as the lowest mark. What the judge gives as its reasons is
kept. A question's record has METEOR's published shape, with the marks of every rotation beside it.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from selfevo_jax.evaluate.metrics import criteria_table
from selfevo_jax.evolve.guiding import last_question
from selfevo_jax.evolve.run import Policy, Prompt, Records, Row, Run, Sample, View
from selfevo_jax.judge.material import neutral_fields
from selfevo_jax.judge.pointwise import read_marks
from selfevo_jax.text.prompt_files import PromptFile

Marks = dict[str, int]
WHY = "justification"  # what a judge may say of an answer beside its marks


def linked(chain: Sequence[Records[Sample]], prompts: Records[Prompt]) -> View:
    """Rows (samples..., prompt) of a chain in which each was asked about the one after it."""
    view: View = chain[0] if chain else prompts
    for older in chain[1:]:
        view = view.join(older)
    return view.join(prompts) if chain else view


def marked(
    run: Run,
    name: str,
    chain: Sequence[Records[Sample]],
    questions: Records[Prompt],
    names: Sequence[str],
    otherwise: Policy,
    file: PromptFile,
) -> None:
    """Marks and table of the answers in `chain`, the newest first, whose `names` are in order.

    The role `judge` marks, or `otherwise` where no model is bound to it; `file` asks.
    """
    c, judge = run.config, run.role("judge", otherwise)
    rows = linked(chain, questions).expand(rotations, len(names))
    wanted = partial(criteria_messages, file=file, letters=c.letters)
    marks = run.ask(f"{name}.marks", rows, judge, wanted, c.criteria.reply)
    read = partial(evaluation, names=names, criteria=file.listed("criteria"))
    turned = linked([marks, *chain], questions).groups("parent_id")
    run.table(name, run.map(f"{name}.evaluation", turned, read, Row), criteria_rows)


def compare(
    run: Run,
    models: Mapping[str, Policy],
    n: int,
    how: Mapping[str, Any],
    otherwise: Policy,
    file: PromptFile,
) -> None:
    """The five criteria of every policy's answers to `n` held-out questions, asked `how`."""
    questions = run.held_out(n)
    chain: list[Records[Sample]] = []  # each asked after the one before, so that they line up
    for name, policy in models.items():
        rows = linked(chain, questions)
        chain.insert(0, run.ask(f"answer.{name}", rows, policy, last_question, how))
    marked(run, "criteria", chain, questions, tuple(models), otherwise, file)


def rotations(row: tuple) -> list[str]:
    """ "0", "1", ...: one for each answer in (answers..., prompt)."""
    return [str(turn) for turn in range(len(row) - 1)]


def criteria_messages(row: tuple, file: PromptFile, letters: int) -> tuple[Mapping[str, str], ...]:
    """The request for marks; `row` is (answers, the newest first..., prompt, rotation).

    Of a longer answer or question the first `letters` are shown.
    """
    *answers, prompt, turn = row
    shown = rotated([answer.text for answer in reversed(answers)], int(turn))
    tags = {f"answer_{number}": text for number, text in enumerate(shown, start=1)}
    question = prompt.messages[-1]["content"]
    safe, _ = neutral_fields({"question": question, **tags})
    blocks = [f"<{tag}>\n{safe[tag][:letters]}\n</{tag}>" for tag in tags]
    return file.fill({"question": safe["question"][:letters], "answers": "\n\n".join(blocks)})


def rotated(values: Sequence[Any], turn: int) -> list[Any]:
    """The values, beginning with number `turn`."""
    return [*values[turn:], *values[:turn]]


def evaluation(rows: Sequence[tuple], names: Sequence[str], criteria: Sequence[str]) -> list[Row]:
    """One question's record, as METEOR published them: question, answers, evaluation.

    rows: (marks, answers with the newest first..., prompt), a row for every rotation. The
    evaluation is a list with an object for each answer: its number, its mean marks, and what the
    judge said of it where it stood first. It is empty, and the faults say why, where a rotation
    could not be read. `rotations` has each one's marks and words, in the order of the answers.
    """
    _, *answers, prompt = rows[0]
    assert isinstance(prompt, Prompt)
    texts = dict(zip(names, (answer.text for answer in reversed(answers)), strict=True))
    values: dict[str, Any] = {"question": prompt.messages[-1]["content"], "answers": texts}
    read = [marks_of(reply, len(names), criteria) for reply, *_ in rows]
    faults = [fault for _, fault in read if fault is not None]
    rotations = [marks and rotated(marks, -turn) for turn, (marks, _) in enumerate(read)]
    values["evaluation"] = [] if faults else published(rotations, criteria)
    values |= {"rotations": rotations, "faults": faults}
    return [Row.make(source_id=prompt.id, values=values)]


def published(rotations: Sequence[Any], criteria: Sequence[str]) -> list[dict[str, Any]]:
    """The published form of each answer's marks; rotation number n begins with answer number n."""
    listed = []
    for number, first in enumerate(rotations):
        given = [rotation[number] for rotation in rotations]
        means = {
            criterion.capitalize(): round(sum(marks[criterion] for marks in given) / len(given), 6)
            for criterion in criteria
        }
        listed.append({"Answer": number + 1, **means, WHY.capitalize(): first[number][WHY]})
    return listed


def marks_of(
    reply: Sample, n: int, criteria: Sequence[str]
) -> tuple[list[dict[str, Any]] | None, str | None]:
    """(marks and words on the n answers in the order shown, None), or (None, what is wrong)."""
    text = reply.text
    try:
        listed = json.loads(text[text.find("[") : text.rfind("]") + 1])
    except (json.JSONDecodeError, RecursionError):
        return None, "it holds no JSON list"
    if not isinstance(listed, list) or len(listed) != n:
        return None, f"it is no list of {n}"
    found: list[dict[str, Any]] = []
    for one in listed:
        why = one.pop(WHY, "") if isinstance(one, dict) else ""
        marks, fault = read_marks(json.dumps(one), criteria)
        if marks is None:
            return None, fault
        if not isinstance(why, str):
            return None, f"a {WHY} is no text"
        found.append({**marks, WHY: why})
    return found, None


def means_of(record: Row) -> dict[str, dict[str, float]]:
    """Name -> criterion -> mean mark of an `evaluation` record; {} where it could not be read."""
    left_out = ("Answer", WHY.capitalize())
    means = [
        {name.lower(): mark for name, mark in marks.items() if name not in left_out}
        for marks in record.values["evaluation"]
    ]
    return dict(zip(record.values["answers"], means, strict=False))


def criteria_rows(evaluations: Sequence[Row]) -> list[Row]:
    """A row for every name: overall mark, share and mean of each criterion, questions, failures."""
    counted = [means for e in evaluations if (means := means_of(e))]
    counts = {"n": len(counted), "failed": len(evaluations) - len(counted)}
    names = list(evaluations[0].values["answers"])
    if not counted:
        return [Row.make(source_id=name, values={"model": name, **counts}) for name in names]
    table, rows = criteria_table(counted), []
    for name in names:
        values: dict[str, Any] = {"model": name, **counts, "overall": table.overall[name]}
        values |= {f"{c} share": share for c, share in table.shares[name].items()}
        values |= {f"{c} mean": mean for c, mean in table.means[name].items()}
        rows.append(Row.make(source_id=name, values=values))
    return rows
