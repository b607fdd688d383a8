"""Training and sampling on one GPU, ours in JAX beside transformers, peft and TRL in torch.

    python benchmarks/gpu.py                      # LLaMA-3-8B shapes, within nine minutes
    python benchmarks/gpu.py --preset tiny        # the same on any machine, in a few minutes
    python benchmarks/gpu.py --cases fp8          # a base in 8-bit floats beside bfloat16, in JAX

Random weights, no network. Each side is a process of its own that holds its weights; for every
case both warm up, then take turns, so that both see the same card at the same clock. Each side
has its best settings (`gpu_jax.py`, `gpu_torch.py`). Prints a table and, last, one JSON object.

The same useful work is divided by each side's seconds: floating-point operations of real tokens,
shared prompts counted once (`models/flops.py`), and for decoding the bytes of all weights and of
the rows' caches. MFU is of the data sheet's bf16 peak, also where products are of 8-bit floats; the
other shares are of what the card was measured to do here: a large matrix product, and a copy in its
memory.
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
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
FP8 = "_fp8"  # ends the names of cases and of their side with `compute.quant=fp8`
RANK = 16


@dataclass(frozen=True)
class Sizes:
    """What is computed. Rows are examples of an optimiser step, `micro` of them at a time."""

    model: str
    dtype: str
    rows: int
    micro: int
    prompt: int  # tokens before a completion, in training
    completion: tuple[int, int]  # tokens, from and to
    read: tuple[int, int]  # prefill: prompts, tokens of each
    context: int  # decode: tokens of a prompt
    steps: tuple[int, int]  # decode: the seconds of the longer answer less those of the shorter
    batches: tuple[int, ...]
    matmul: int  # side of the matrices
    copied: int  # bytes

    @property
    def cases(self) -> tuple[str, ...]:
        """In the order of interest."""
        decode = tuple(f"decode_{batch}" for batch in self.batches)
        return ("rates", "sft", "dpo", "prefill", *decode, *self.fp8_cases)

    @property
    def fp8_cases(self) -> tuple[str, ...]:
        """Those that say where 8-bit floats pay."""
        decode = (f"decode_{batch}" for batch in self.batches)
        return tuple(f"{case}{FP8}" for case in ("sft", "prefill", *decode))


PRESETS = {
    "llama3_8b": Sizes(
        "llama3_8b", "bfloat16", 8, 4, 1024, (512, 1024), (8, 2048), 512, (16, 80), (1, 32, 256),
        8192, 2**31,
    ),
    "tiny": Sizes(
        "tiny", "float32", 2, 1, 8, (4, 12), (2, 16), 8, (2, 6), (1, 2), 256, 2**22,
    ),
}  # fmt: skip


def main() -> None:
    """Runs the cases that there is time for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", choices=PRESETS, default="llama3_8b")
    parser.add_argument("--seconds", type=float, default=540, help="begin no case after this")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--cases", help="some of them, such as sft,decode_1; fp8: all with 8 bits")
    options = parser.parse_args()
    sizes, begun = PRESETS[options.preset], time.monotonic()
    wanted = options.cases.split(",") if options.cases else sizes.cases
    if wanted == ["fp8"]:
        wanted = ["rates", *sizes.fp8_cases]
    if unknown := set(wanted) - set(sizes.cases):
        parser.error(f"unknown cases {sorted(unknown)}; there are {', '.join(sizes.cases)}")
    answers, skipped = {}, []
    with tempfile.TemporaryDirectory() as folder:
        workers: dict[str, subprocess.Popen] = {}
        for place, case in enumerate(wanted):
            if time.monotonic() - begun > options.seconds:
                skipped.append(case)
                continue
            end(workers, {side for later in wanted[place:] for side in sides_of(later)})
            for side in sides_of(case):
                workers[side] = workers.get(side) or start(side, options.preset, Path(folder))
            taking = {side: workers[side] for side in sides_of(case)}
            answers[case] = take_turns(taking, case.removesuffix(FP8), options.rounds)
            print(f"{case}: {json.dumps(answers[case])}", flush=True)
        end(workers, set())
    result = figures(answers, sizes)
    print_table(result["cases"])
    about = {"skipped": skipped, "versions": versions(), "commit": commit()}
    seconds = round(time.monotonic() - begun)
    print(json.dumps({"benchmark": "gpu", "preset": options.preset, **result, **about,
                      "seconds": seconds}))  # fmt: skip


def sides_of(case: str) -> tuple[str, str]:
    """Whose turns a case is: of the one compared with, and of the one that is asked about."""
    return ("jax", f"jax{FP8}") if case.endswith(FP8) else ("torch", "jax")


def start(side: str, preset: str, folder: Path) -> subprocess.Popen:
    """A side's process, which waits for the name of a case."""
    from selfevo_jax.parallel.xla_flags import set_gpu_flags

    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    set_gpu_flags(environment)
    if side == "torch":
        environment |= {"JAX_PLATFORMS": "cpu", "TQDM_DISABLE": "1"}
    log = (folder / f"{side}.log").open("w")
    library, *quant = side.split("_")
    return subprocess.Popen(
        [sys.executable, HERE / f"gpu_{library}.py", preset, *quant],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
    )  # fmt: skip


def end(workers: dict[str, subprocess.Popen], needed: set[str]) -> None:
    """Ends all others, whose weights would lie on the card for nothing."""
    for side in workers.keys() - needed:
        worker = workers.pop(side)
        worker.stdin.close()
        worker.wait()


def take_turns(workers: dict[str, subprocess.Popen], case: str, rounds: int) -> dict[str, dict]:
    """Each side's answers to a case: the median of every number, or why there is none."""
    for worker in workers.values():
        tell(worker, case)
    ready = {side: hear(worker) for side, worker in workers.items()}
    turns: dict[str, list[dict]] = {side: [] for side in workers}
    failed = {side: said for side, said in ready.items() if "failed" in said}
    for _ in range(rounds):
        for side in workers.keys() - failed.keys():
            tell(workers[side], "turn")
            said = hear(workers[side])
            turns[side].append(said)
            if "failed" in said:
                failed[side] = said
    for side in workers.keys() - failed.keys():
        tell(workers[side], "end")
    return failed | {
        side: ready[side] | {n: statistics.median(one[n] for one in heard) for n in heard[0]}
        for side, heard in turns.items()
        if side not in failed
    }


def tell(worker: subprocess.Popen, word: str) -> None:
    """One line to a side."""
    worker.stdin.write(word + "\n")
    worker.stdin.flush()


def hear(worker: subprocess.Popen) -> dict:
    """A side's next answer."""
    for line in worker.stdout:
        if line.startswith("ANSWER "):
            return json.loads(line.removeprefix("ANSWER "))
    raise SystemExit(f"a side ended before it answered: {worker.args}")


def answer(**body: object) -> None:
    """A side says something to the parent."""
    print("ANSWER " + json.dumps(body), flush=True)


def my_turn() -> bool:
    """A side waits until it is its turn; False: the case is over."""
    return sys.stdin.readline().strip() == "turn"


def serve(cases: dict) -> None:
    """A side's loop: `cases[name](argument)` answers once when warm, then at each turn."""
    for line in sys.stdin:
        name, _, argument = line.strip().partition("_")
        try:
            cases[name](argument)
        except RuntimeError as error:  # out of memory, in either library
            answer(failed=f"{type(error).__name__}: {str(error)[:300]}")


def examples(sizes: Sizes, vocab: int, completions: int) -> list[list[list[int]]]:
    """[prompt, completion, ...] of random ids, the same for both sides."""
    import numpy as np

    rng = np.random.default_rng(0)

    def some(low: int, high: int) -> list[int]:
        return rng.integers(5, vocab, rng.integers(low, high + 1)).tolist()

    return [
        [some(sizes.prompt, sizes.prompt), *(some(*sizes.completion) for _ in range(completions))]
        for _ in range(sizes.rows)
    ]


def figures(answers: dict[str, dict], sizes: Sizes) -> dict:
    """Rates and shares of every case and side."""
    rates = answers.get("rates", {})
    peak = sheet_peak(rates)
    cases = {}
    for case in (name for name in answers if name != "rates"):
        cases[case] = {
            side: said if "failed" in said else
            shares(case, side, said["seconds"], sizes, rates, peak)
            for side, said in answers[case].items()
        }  # fmt: skip
        if all("seconds" in cases[case][side] for side in sides_of(case)):
            other, ours = (cases[case][side]["seconds"] for side in sides_of(case))
            cases[case]["ratio"] = round(other / ours, 3)
    return {"rates": rates, "sheet_tflops": None if peak is None else peak / 1e12, "cases": cases}


def shares(
    case: str, side: str, seconds: float, sizes: Sizes, rates: dict, peak: float | None
) -> dict:
    """Tokens and operations per second of a case, and what share of the card that is."""
    kind, _, batch = case.removesuffix(FP8).partition("_")
    found = {"seconds": seconds}
    best = {name: max((r.get(name, 0) for r in rates.values()), default=0) for name in
            ("matmul_flops", "copy_bytes")}  # fmt: skip
    if kind == "decode":
        count = sizes.steps[1] - sizes.steps[0]
        moved = decode_bytes(sizes, int(batch), side) * count / seconds
        found["tokens_per_s"] = int(batch) * count / seconds
        return found | ({"bandwidth": moved / best["copy_bytes"]} if best["copy_bytes"] else {})
    tokens, flops = work(kind, sizes)
    found |= {"tokens_per_s": tokens / seconds, "tflops": flops / seconds / 1e12}
    if peak:
        found["mfu"] = flops / seconds / peak
    return found | ({"of_matmul": flops / seconds / best["matmul_flops"]} if best["matmul_flops"]
                    else {})  # fmt: skip


def work(kind: str, sizes: Sizes) -> tuple[float, float]:
    """(useful tokens, floating-point operations) of a step of training, or of a prefill."""
    from selfevo_jax.models.flops import forward_flops, train_flops
    from selfevo_jax.models.lora import LoraConfig
    from selfevo_jax.models.presets import preset

    config = preset(sizes.model)
    if kind == "prefill":
        count, length = sizes.read
        return count * length, count * forward_flops(config, length, 1)
    tokens = flops = 0.0
    for prompt, *completions in examples(sizes, config.vocab_size, 2 if kind == "dpo" else 1):
        targets = sum(map(len, completions))
        tokens += len(prompt) + targets
        # A completion's tokens see the prompt and half of their own.
        flops += train_flops(
            config, len(prompt) + targets, targets, lora=LoraConfig(rank=RANK),
            keys=(len(prompt) + targets / len(completions)) / 2,
        )  # fmt: skip
    return tokens, flops


def decode_bytes(sizes: Sizes, batch: int, side: str = "jax") -> float:
    """Bytes that one token of every row must read: all kernels, and the rows' keys and values."""
    from selfevo_jax.models.presets import preset

    config, width = preset(sizes.model), 2 if sizes.dtype == "bfloat16" else 4
    inner = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    layer = config.hidden_size * (inner + 3 * config.intermediate_size)
    layers, head = config.num_layers * layer, config.hidden_size * config.vocab_size
    kernels = layers * (1 if side.endswith(FP8) else width) + head * width
    context = sizes.context + sum(sizes.steps) / 2
    cache = batch * context * config.num_layers * 2 * config.num_kv_heads * config.head_dim
    return kernels + cache * width


def sheet_peak(rates: dict[str, dict]) -> float | None:
    """The bf16 peak of the card by its data sheet, None where it is not listed."""
    from selfevo_jax.models.flops import PEAKS

    names = [said.get("device", "") for said in rates.values()]
    found = [peak for kind, peak in PEAKS.items() if any(n.startswith(kind) for n in names)]
    return found[0] if found else None


def print_table(cases: dict[str, dict]) -> None:
    """One line for each case and side."""
    columns = ("seconds", "tokens_per_s", "tflops", "mfu", "of_matmul", "bandwidth")
    print(f"{'case':16}{'side':8}" + "".join(f"{name:>14}" for name in columns))
    for case, sides in cases.items():
        for side in sides_of(case):
            said = sides.get(side, {})
            cells = "".join(f"{said[n]:14.4g}" if n in said else f"{'-':>14}" for n in columns)
            print(f"{case:16}{side:8}{cells}  {said.get('failed', '')}")
        ours = sides_of(case)[1]
        print(f"{case:16}{ours} is {sides['ratio']} x as fast" if "ratio" in sides else "")


def versions() -> dict[str, str]:
    """Of what was measured."""
    from importlib.metadata import version

    return {name: version(name) for name in ("jax", "torch", "transformers", "peft", "trl")}


def commit() -> str:
    """The commit that was measured, with a mark where the tree had changes."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
