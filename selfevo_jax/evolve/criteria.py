"""Several answers to one question, marked beside each other on METEOR's five criteria.

A judge sees all answers of a question, once in every rotation of their order, so that each answer
stands in every place. A question counts when the marks of all rotations could be read; what could
not be read is counted as such, never as the lowest mark.
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
    stages: Mapping[str, Policy],
    n: int,
    how: Mapping[str, Any],
    otherwise: Policy,
    file: PromptFile,
) -> None:
    """The five criteria of every policy's answers to `n` held-out questions, asked `how`."""
    questions = run.held_out(n)
    chain: list[Records[Sample]] = []  # each asked after the one before, so that they line up
    for name, policy in stages.items():
        rows = linked(chain, questions)
        chain.insert(0, run.ask(f"answer.{name}", rows, policy, last_question, how))
    marked(run, "criteria", chain, questions, tuple(stages), otherwise, file)


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
    evaluation has the mean marks by name and criterion; None, with the faults, where a rotation
    could not be read.
    """
    _, *answers, prompt = rows[0]
    assert isinstance(prompt, Prompt)
    texts = dict(zip(names, (answer.text for answer in reversed(answers)), strict=True))
    sums = {name: dict.fromkeys(criteria, 0.0) for name in names}
    faults = []
    for turn, (reply, *_) in enumerate(rows):
        marks, fault = marks_of(reply, len(names), criteria)
        if marks is None:
            faults.append(fault)
            continue
        for name, given in zip(rotated(names, turn), marks, strict=True):
            for criterion in criteria:
                sums[name][criterion] += given[criterion] / len(rows)
    values = {"question": prompt.messages[-1]["content"], "answers": texts}
    found = None if faults else {n: {c: round(v, 6) for c, v in m.items()} for n, m in sums.items()}
    return [Row.make(source_id=prompt.id, values={**values, "evaluation": found, "faults": faults})]


def marks_of(
    reply: Sample, n: int, criteria: Sequence[str]
) -> tuple[list[Marks] | None, str | None]:
    """(marks of the n answers in the order shown, None), or (None, what is wrong)."""
    text = reply.text
    try:
        listed = json.loads(text[text.find("[") : text.rfind("]") + 1])
    except (json.JSONDecodeError, RecursionError):
        return None, "it holds no JSON list"
    if not isinstance(listed, list) or len(listed) != n:
        return None, f"it is no list of {n}"
    found = []
    for one in listed:
        marks, fault = read_marks(json.dumps(one), criteria)
        if marks is None:
            return None, fault
        found.append(marks)
    return found, None


def criteria_rows(evaluations: Sequence[Row]) -> list[Row]:
    """A row for every name: overall mark, share and mean of each criterion, questions, failures."""
    counted = [e.values["evaluation"] for e in evaluations if e.values["evaluation"] is not None]
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
