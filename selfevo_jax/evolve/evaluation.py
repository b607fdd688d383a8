"""An evaluation outside a run: one stage per task, resumable like a run's."""

from dataclasses import dataclass
from pathlib import Path

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.stats import wilson_interval
from selfevo_jax.evaluate.tasks import FILE_TASKS, get_task
from selfevo_jax.evolve import work
from selfevo_jax.evolve.backend import JaxModel
from selfevo_jax.evolve.files import disk_full_is_a_message, file_sha256, locked
from selfevo_jax.evolve.stages import Stage, StageFolder, read_records, run_stage
from selfevo_jax.records import Answer, content_id
from selfevo_jax.sample.protocol import SamplingParams
from selfevo_jax.weights.peft import WEIGHTS


@dataclass(frozen=True)
class Evaluation:
    """`limit` held-out questions of each task, answered greedily."""

    model: JaxModel
    adapter: Path | None
    limit: int
    seed: int
    max_new_tokens: int
    data_dir: str | None


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers of `n`, its 95 % interval (Wilson), mean tokens of an answer."""

    n: int
    share: float
    low: float
    high: float
    tokens: float


def evaluate_task(evaluation: Evaluation, name: str, out: Path) -> Accuracy:
    """Answers one task into `out`/NAME, going on with what is there.

    Raises UserError for an unknown task, a folder with another evaluation, or one in use.
    """
    args = {"data_dir": evaluation.data_dir} if name in FILE_TASKS and evaluation.data_dir else {}
    task = get_task(name, **args)
    folder = StageFolder(out / name.replace(":", "_"))
    sampling = SamplingParams(max_new_tokens=evaluation.max_new_tokens, temperature=0.0)
    stage = Stage(
        name,
        f"{work.task_version(task)}/{work.SAMPLER_VERSION}",
        {
            "limit": evaluation.limit,
            "seed": evaluation.seed,
            "max_new_tokens": evaluation.max_new_tokens,
            "dtype": evaluation.model.settings["dtype"],
            "max_length": evaluation.model.settings["max_length"],
        },
        work.task_inputs(task) | {"model": _model_hash(evaluation)},
    )
    safe = "Every answer so far is safe."
    with disk_full_is_a_message(safe), locked(out):
        status, why = folder.status(stage)
        if status == "changed":
            raise UserError(f"{folder.path} holds another evaluation ({why}); give another --out")
        if status != "done":
            _answer(evaluation, task, folder, stage, sampling)
        return _accuracy(folder)


def _model_hash(evaluation: Evaluation) -> str:
    model, adapter = evaluation.model, evaluation.adapter
    trained = "none" if adapter is None else file_sha256(adapter / WEIGHTS)
    return content_id(model.files.hash, model.tokenizer.hash, trained)


def _answer(evaluation, task, folder, stage, sampling) -> None:
    prompts = task.prompts("test", evaluation.limit, evaluation.seed)
    policy = "base" if evaluation.adapter is None else str(evaluation.adapter)
    generator = evaluation.model.generator(evaluation.adapter)
    with evaluation.model.progress.stage(stage.name, evaluation.limit, "answers") as bar:
        items = ((prompt.id, prompt) for prompt in prompts)
        run_stage(
            folder, stage, items, work.answered(generator, policy, task, sampling), bar.advance
        )


def _accuracy(folder: StageFolder) -> Accuracy:
    answers = [(a.correct, a.tokens) for a in read_records(folder, Answer)]
    right, n = sum(correct for correct, _ in answers), len(answers)
    interval = wilson_interval(right, n)
    tokens = sum(tokens for _, tokens in answers) / n
    return Accuracy(n, right / n, interval.low, interval.high, tokens)
