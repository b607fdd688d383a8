"""MT-Bench by command: `selfevo sample` answers its questions, `selfevo judge mt_bench` rates.

Ratings are written as FastChat's model_judgment/*_single.jsonl; those that are there already
(--judgments) are summed up without asking a judge.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence

from selfevo_jax.cli import judge_tables
from selfevo_jax.cli.judge_work import Asking, Judging, output, slug, started
from selfevo_jax.errors import UserError
from selfevo_jax.evaluate import mt_bench
from selfevo_jax.evaluate.data import jsonl
from selfevo_jax.evaluate.mt_bench import Material, Question, Rated
from selfevo_jax.evolve.files import write_atomic
from selfevo_jax.evolve.work import draw_seed
from selfevo_jax.judge.rating import Conversation, Rating, RatingJudge
from selfevo_jax.sample.protocol import Generator, Request, SamplingParams


def judged(arguments: argparse.Namespace) -> int:
    """Has every turn of every answer rated by the judge, and shows what it comes to."""
    if not arguments.answers or arguments.data is None or len(arguments.model) != 1:
        raise UserError(
            "judge mt_bench needs --data=DIR with mt_bench/, --answers=FILE of each model and one "
            "--model, the judge; or --judgments=FILE of finished ones"
        )
    judging, material = started(arguments), mt_bench.read_material(arguments.data)
    askings = {}
    for path in arguments.answers:
        model, answers = mt_bench.read_answers(path)
        if model in askings:
            raise UserError(f"{path}: the model {model} came before; give each its own file")
        some = dict(list(answers.items())[: arguments.limit])
        askings[model] = _asking(material, model, some)
    if not judging.begin(list(askings.values())):
        return 0
    rated = [one for model in askings for one in _rate(judging, model, askings[model])]
    judge_tables.print_mt_bench(judging.console, _scores(rated, material))
    return 0


def _asking(material: Material, model: str, answers: Mapping[int, mt_bench.Turns]) -> Asking:
    values = list(mt_bench.conversations(material, model, answers))
    return Asking(
        f"mt_bench-{slug(model)}", material, values, lambda judge: RatingJudge(judge).rate, Rating
    )


def _rate(judging: Judging, model: str, asking: Asking) -> list[Rated]:
    """A model's ratings, which are written into a file of their own."""
    (found,) = judging.run(asking)
    judge_tables.print_ratings(judging.console, model, found)
    rated = [_rated(model, one, rating) for one, rating in zip(asking.values, found, strict=True)]
    rows = []
    for to, one, rating in zip(rated, asking.values, found, strict=True):
        shown = one.prompt.fill(one.fields)[-1]["content"]
        named = (rating.judge, one.prompt.name)
        rows.append(mt_bench.judgment_row(to, named, shown, rating.reply))
    target = judging.arguments.out / f"{slug(model)}_single.jsonl"
    write_atomic(target, jsonl(rows).encode())
    return rated


def _rated(model: str, one: Conversation, rating: Rating) -> Rated:
    *_, question, turn = one.id.split("/")
    return Rated(model, int(question), int(turn), rating.score)


def summed_up(arguments: argparse.Namespace) -> int:
    """The figures of ratings that are there; by category where --data has the questions."""
    rated = [one for path in arguments.judgments for one in mt_bench.read_judgments(path)]
    material = mt_bench.read_material(arguments.data) if arguments.data else None
    judge_tables.print_mt_bench(output(), _scores(rated, material))
    return 0


Scores = dict[str, dict[str, mt_bench.Score | None]]


def _scores(rated: Sequence[Rated], material: Material | None) -> Scores:
    """Model -> part ("all", "turn 1", "turn 2", a category) -> its score, the best model first."""
    found: Scores = {}
    for model in dict.fromkeys(one.model for one in rated):
        own = [one for one in rated if one.model == model]
        parts = {"all": own} | {f"turn {n}": [x for x in own if x.turn == n] for n in (1, 2)}
        for one in own if material else ():
            question = material.questions.get(one.question)
            parts.setdefault(question.category if question else "unknown", []).append(one)
        found[model] = {name: mt_bench.score(some) for name, some in parts.items() if some}
    return dict(sorted(found.items(), key=lambda pair: -_mean(pair[1]["all"])))


def _mean(score: mt_bench.Score | None) -> float:
    return 0.0 if score is None else score.mean


def answer(arguments: argparse.Namespace, generator: Generator, model: str) -> None:
    """Writes an answer file: the second turn is asked when all first ones are answered.

    Without --temperature each category has that of FastChat.
    """
    questions = mt_bench.read_questions(arguments.prompts)
    said: dict[int, list[str]] = {question.id: [] for question in questions}
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [question for question in questions if len(question.turns) > turn]
        requests = _requests(arguments, asked, said)
        for completion in generator.generate(requests):
            said[int(completion.id)].append(completion.text)
    rows = [mt_bench.answer_row(question, model, said[question.id]) for question in questions]
    write_atomic(arguments.out, jsonl(rows).encode())


def _requests(
    arguments: argparse.Namespace, questions: Sequence[Question], said: Mapping[int, Sequence[str]]
) -> Iterator[Request]:
    for question in questions:
        before = said[question.id]
        messages = []
        for asked, text in zip(question.turns, before, strict=False):
            messages += [{"role": "user", "content": asked}]
            messages += [{"role": "assistant", "content": text}]
        messages.append({"role": "user", "content": question.turns[len(before)]})
        given = arguments.temperature
        sampling = SamplingParams(
            max_new_tokens=arguments.max_new_tokens,
            temperature=question.temperature if given is None else given,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
        )
        seed = draw_seed(arguments.seed, str(question.id), len(before))
        yield Request(str(question.id), tuple(messages), sampling, seed)
