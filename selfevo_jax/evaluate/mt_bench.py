"""MT-Bench's files and figures: questions of two turns, each answer rated 1 to 10 by a judge.

Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena"; the files are those of
FastChat (fastchat/llm_judge). A folder `mt_bench` holds question.jsonl, reference_answer_*.jsonl
and judge_prompts.jsonl; `vicuna_` before the first two names the older questions of one turn.
Answers say `question_id` and are joined with the questions by it. A question with a reference is
rated with it. A judge's failure is written as the score -1, which FastChat leaves out as we do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.data import MEND, raw_rows
from selfevo_jax.evaluate.stats import Interval, clustered_interval
from selfevo_jax.judge.pointwise import HIGHEST, LOWEST
from selfevo_jax.judge.rating import Conversation
from selfevo_jax.records import content_id
from selfevo_jax.text.prompt_files import PLACE, PromptFile, parse_prompt

SOURCE = "github.com/lm-sys/FastChat, fastchat/llm_judge/data, licence Apache-2.0"
# The temperatures that FastChat answers with, by category; elsewhere USUAL.
TEMPERATURES = {
    "writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0,
    "reasoning": 0.0, "stem": 0.1, "humanities": 0.1,
}  # fmt: skip
USUAL = 0.7
FAILED = -1
SPAN = HIGHEST - LOWEST
Turns = tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """What a model is asked, turn by turn."""

    id: int
    category: str
    turns: Turns

    @property
    def temperature(self) -> float:
        """What its answer is drawn with."""
        return TEMPERATURES.get(self.category, USUAL)


@dataclass(frozen=True)
class Material:
    """All that a judge needs beside the answers: questions, references and prompts, by id or name.

    `prompts` are those for one answer: single-v1, single-math-v1, and both for a second turn.
    """

    questions: Mapping[int, Question]
    references: Mapping[int, Turns]
    prompts: Mapping[str, PromptFile]

    name: ClassVar[str] = "single"

    @property
    def hash(self) -> str:
        """What ratings made with these prompts are known by."""
        return content_id({name: prompt.hash for name, prompt in self.prompts.items()})


@dataclass(frozen=True)
class Rated:
    """One judgment read from a file: a score from 1 to 10, or None for a failure."""

    model: str
    question: int
    turn: int
    score: float | None


@dataclass(frozen=True)
class Score:
    """A mean of `n` ratings with its 95 % interval over questions, and how many have failed."""

    mean: float
    interval: Interval
    n: int
    failed: int


def read_material(folder: str | Path) -> Material:
    """What `folder`/mt_bench holds. Raises UserError for a missing file or a bad row."""
    place = Path(folder) / "mt_bench"
    names = sorted(place.glob("*question.jsonl"))
    prompts = place / "judge_prompts.jsonl"
    if not names or not prompts.is_file():
        raise UserError(
            f"{place}: no question.jsonl or no judge_prompts.jsonl; get them from {SOURCE}"
        )
    questions = [question for path in names for question in read_questions(path)]
    references: dict[int, Turns] = {}
    for path in sorted(place.glob("*reference_answer_*.jsonl")):
        references |= read_answers(path)[1]
    return Material(
        {question.id: question for question in questions}, references, _prompts(prompts)
    )


def read_questions(path: Path) -> list[Question]:
    """The questions of a file. Raises UserError naming a bad or repeated row."""
    found: dict[int, Question] = {}
    for place, row in _rows(path):
        question = Question(row["question_id"], str(row.get("category", "")), _turns(row, place))
        if question.id in found:
            raise UserError(f"{place}: question {question.id} came before; {MEND}")
        found[question.id] = question
    return list(found.values())


def read_answers(path: Path) -> tuple[str, dict[int, Turns]]:
    """(model, turns of its first choice by question) of an answer file. Raises UserError."""
    model, found = "", {}
    for place, row in _rows(path):
        choices = row.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
            raise UserError(f"{place}: the field 'choices' holds no answer; {MEND}")
        if row["question_id"] in found:
            raise UserError(f"{place}: question {row['question_id']} came before; {MEND}")
        found[row["question_id"]] = _turns(choices[0], place)
        model = str(row.get("model_id", path.stem))
    if not found:
        raise UserError(f"{path} holds no answers")
    return model, found


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for place, row in raw_rows(path):
        number = row.get("question_id")
        if not isinstance(number, int) or isinstance(number, bool):
            raise UserError(f"{place}: the field 'question_id' is missing or no number; {MEND}")
        yield place, row


def _turns(row: Mapping[str, Any], place: str) -> Turns:
    turns = row.get("turns")
    if not isinstance(turns, list) or not turns or not all(isinstance(x, str) for x in turns):
        raise UserError(f"{place}: the field 'turns' is missing or no list of texts; {MEND}")
    if len(turns) > 2:
        raise UserError(f"{place}: {len(turns)} turns; MT-Bench has at most two")
    return tuple(turns)


def _prompts(path: Path) -> dict[str, PromptFile]:
    """FastChat's prompts for single answers, with its places as declared fields."""
    found = {}
    for place, row in raw_rows(path):
        if row.get("type") != "single":
            continue
        parts = [row.get(key) for key in ("name", "system_prompt", "prompt_template")]
        if not all(isinstance(part, str) for part in parts):
            raise UserError(f"{place}: no name, system_prompt or prompt_template; {MEND}")
        name, system, template = parts
        fields = list(dict.fromkeys(PLACE.findall(template)))
        cut = [field for field in fields if "answer" in field]
        head = f"name: {name}\nversion: 1\nfields: {', '.join(fields)}\ncut: {', '.join(cut)}\n"
        text = f"{head}=== system\n{system}\n=== user\n{template}\n"
        found[str(name)] = parse_prompt(text, place)
    return found


def conversations(
    material: Material, model: str, answers: Mapping[int, Turns]
) -> Iterator[Conversation]:
    """What is to be rated of a model's answers: every turn, with what came before it.

    Raises UserError for an answer to an unknown question, or to other turns than were asked.
    """
    for number, said in answers.items():
        question = material.questions.get(number)
        if question is None or len(said) != len(question.turns):
            raise UserError(
                f"{model}: its answer to question {number} is to no question here, or has another "
                "number of turns"
            )
        reference = material.references.get(number, ())
        for turn in range(1, len(said) + 1):
            yield _conversation(material, model, question, said[:turn], reference)


def _conversation(
    material: Material, model: str, question: Question, said: Turns, reference: Turns
) -> Conversation:
    turn = len(said)
    name = "single-math-v1" if reference else "single-v1"
    if turn == 1:
        fields = {"question": question.turns[0], "answer": said[0]}
    else:
        name += "-multi-turn"
        fields = {f"question_{n}": text for n, text in enumerate(question.turns, 1)}
        fields |= {f"answer_{n}": text for n, text in enumerate(said, 1)}
    if reference:
        fields |= {f"ref_answer_{n}": text for n, text in enumerate(reference[:turn], 1)}
    if name not in material.prompts:
        raise UserError(f"judge_prompts.jsonl has no prompt {name!r}; get it from {SOURCE}")
    return Conversation(f"{model}/{question.id}/{turn}", material.prompts[name], fields)


def answer_row(question: Question, model: str, turns: Sequence[str]) -> dict[str, Any]:
    """A row of an answer file; the answer's id follows from its content."""
    return {
        "question_id": question.id, "answer_id": f"{question.id}-{model}", "model_id": model,
        "choices": [{"index": 0, "turns": list(turns)}],
    }  # fmt: skip


def judgment_row(rated: Rated, judge: tuple[str, str], asked: str, judgment: str) -> dict[str, Any]:
    """A row of a file of judgments: (judge, name of its prompt), its input and its reply."""
    return {
        "question_id": rated.question, "model": rated.model, "judge": list(judge),
        "user_prompt": asked, "judgment": judgment,
        "score": FAILED if rated.score is None else rated.score, "turn": rated.turn,
    }  # fmt: skip


def read_judgments(path: Path) -> list[Rated]:
    """The rows of a file of judgments. Raises UserError naming a bad row."""
    found = []
    for place, row in _rows(path):
        model, turn, score = row.get("model"), row.get("turn"), row.get("score")
        kinds = isinstance(model, str) and turn in (1, 2) and isinstance(score, int | float)
        if not kinds or not (score == FAILED or LOWEST <= score <= HIGHEST):
            raise UserError(f"{place}: no model, turn (1 or 2) or score (1 to 10, or -1); {MEND}")
        found.append(Rated(model, row["question_id"], turn, None if score == FAILED else score))
    if not found:
        raise UserError(f"{path} holds no judgments")
    return found


def score(ratings: Sequence[Rated]) -> Score | None:
    """The mean rating; both turns of a question are one cluster. None where all have failed."""
    valid = [(rated.score, rated.question) for rated in ratings if rated.score is not None]
    if not valid:
        return None
    values, questions = zip(*valid, strict=True)
    shares = clustered_interval([(x - LOWEST) / SPAN for x in values], questions)
    interval = Interval(LOWEST + SPAN * shares.low, LOWEST + SPAN * shares.high)
    return Score(sum(values) / len(values), interval, len(values), len(ratings) - len(values))
