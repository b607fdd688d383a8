"""The engine on SmolLM2-135M against `transformers`, and its own scores."""

import json

import numpy as np
import pytest
import torch

from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.sample.protocol import Request, SamplingParams, ScoreRequest
from selfevo_jax.text.render import render_prompt
from selfevo_jax.text.tokenizer import load_tokenizer

PROMPTS, NEW = 20, 64


@pytest.fixture(scope="module")
def tokenizer(smollm2):
    return load_tokenizer(smollm2.path)


@pytest.fixture(scope="module")
def engine(smollm2, tokenizer):
    return JaxGenerator(smollm2.config, smollm2.load(), tokenizer, slots=20, max_length=384)


@pytest.fixture(scope="module")
def messages(shared_data):
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    return [[{"role": "user", "content": json.loads(line)["question"]}] for line in lines[:PROMPTS]]


def reference_tokens(model, prompts: list[list[int]], eos: int) -> list[list[int]]:
    """Greedy continuations by `transformers`, left-padded in one batch."""
    width = max(map(len, prompts))
    ids_bt = torch.tensor([[eos] * (width - len(prompt)) + prompt for prompt in prompts])
    mask_bt = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        out_bt = model.generate(
            ids_bt, attention_mask=mask_bt, max_new_tokens=NEW, do_sample=False,
            eos_token_id=eos, pad_token_id=eos,
        )  # fmt: skip
    rows = out_bt[:, width:].tolist()
    return [row[: row.index(eos) + 1] if eos in row else row for row in rows]


def test_greedy_equals_transformers_token_by_token(smollm2_reference, tokenizer, engine, messages):
    requests = [
        Request(str(i), m, SamplingParams(NEW, temperature=0.0)) for i, m in enumerate(messages)
    ]
    ours = {completion.id: completion for completion in engine.generate(requests)}
    prompts = [render_prompt(tokenizer, m) for m in messages]
    (eos,) = tokenizer.eos_ids
    for index, theirs in enumerate(reference_tokens(smollm2_reference, prompts, eos)):
        assert list(ours[str(index)].tokens) == theirs, f"prompt {index}"


def test_sampled_and_scored_logps_agree(engine, messages):
    requests = [
        Request(str(i), m, SamplingParams(40, temperature=0.8, top_p=0.9), seed=i)
        for i, m in enumerate(messages)
    ]
    sampled = {completion.id: completion for completion in engine.generate(requests)}
    wanted = [ScoreRequest(r.id, r.messages, sampled[r.id].text) for r in requests]
    compared, worst = 0, 0.0
    for score in engine.score(wanted):
        tokens, logps = sampled[score.id].tokens, sampled[score.id].logps
        if score.tokens[: len(tokens)] == tokens:
            difference = np.abs(np.subtract(score.logps[: len(tokens)], logps))
            compared, worst = compared + len(tokens), max(worst, difference.max())
    assert compared > 400
    assert worst < 1e-3
