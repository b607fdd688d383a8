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
    questions = sorted((json.loads(line)["question"] for line in lines), key=len)[:PROMPTS]
    return [[{"role": "user", "content": question}] for question in questions]


def logps_after(model, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """What `transformers` says [t, v] of each of these tokens after the prompt and those before."""
    with torch.inference_mode():
        logits_tv = model(torch.tensor([prompt + tokens])).logits[0]
    return logits_tv[len(prompt) - 1 : -1].log_softmax(-1)


def test_greedy_equals_transformers_token_by_token(smollm2_reference, tokenizer, engine, messages):
    """Where its likeliest token after each of ours is ours, its greedy continuation is the same
    one, by induction, in one pass. The five likeliest have its log-probabilities, too."""
    sampling = SamplingParams(NEW, temperature=0.0, top_logprobs=5)
    requests = [Request(str(i), m, sampling) for i, m in enumerate(messages)]
    found = {completion.id: completion for completion in engine.generate(requests)}
    for index, each in enumerate(messages):
        ours, prompt = found[str(index)], render_prompt(tokenizer, each)
        assert len(ours.tokens) == NEW or ours.tokens[-1] in tokenizer.eos_ids
        logps_tv = logps_after(smollm2_reference, prompt, list(ours.tokens))
        assert logps_tv.argmax(-1).tolist() == list(ours.tokens), f"prompt {index}"
        ids_tk, told_tk = np.moveaxis(np.array(ours.top_logprobs), 2, 0)
        best_tk = logps_tv.topk(5, -1).values
        np.testing.assert_allclose(told_tk, best_tk, atol=1e-3)
        same_tk = logps_tv.gather(1, torch.tensor(ids_tk.astype(int)))
        np.testing.assert_allclose(told_tk, same_tk, atol=1e-3)


def test_sampled_and_scored_logps_agree(engine, messages):
    requests = [
        Request(str(i), m, SamplingParams(40, temperature=0.8, top_p=0.9), seed=i)
        for i, m in enumerate(messages[:5])
    ]
    sampled = {completion.id: completion for completion in engine.generate(requests)}
    wanted = [ScoreRequest(r.id, r.messages, sampled[r.id].text) for r in requests]
    compared, worst = 0, 0.0
    for score in engine.score(wanted):
        tokens, logps = sampled[score.id].tokens, sampled[score.id].logps
        if score.tokens[: len(tokens)] == tokens:
            difference = np.abs(np.subtract(score.logps[: len(tokens)], logps))
            compared, worst = compared + len(tokens), max(worst, difference.max())
    assert compared > 100
    assert worst < 1e-3
