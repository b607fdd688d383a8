"""Generation on transformers against the JAX engine, and sampling against transformers' rules."""

import jax
import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from selfevo_jax.errors import UserError
from selfevo_jax.models.config import Compute
from selfevo_jax.models.lora import LoraConfig, adapter, init_lora
from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.sample.protocol import LabelRequest, Request, SamplingParams, ScoreRequest
from selfevo_jax.sample.select import Rules
from selfevo_jax.torch_backend.generator import TorchGenerator
from selfevo_jax.torch_backend.model import Decoder
from selfevo_jax.torch_backend.select import next_tokens

SIZES = {"slots": 3, "max_length": 96, "prompt_rows": 2, "steps": 4}
PROMPTS = ("why is the sky blue?", "count", "say something about ducks", "no", "a longer question")


def ask(text):
    return ({"role": "user", "content": text},)


def greedy(**settings):
    return [
        Request(text, ask(text), SamplingParams(12, temperature=0.0, **settings))
        for text in PROMPTS
    ]


def by_id(results):
    return {result.id: result for result in results}


@pytest.fixture(scope="module")
def engines(folder, tokenizer):
    """The JAX engine and ours, both with the same adapter."""
    lora = LoraConfig(rank=4)
    tree = init_lora(folder.config, lora, jax.random.key(0))
    tree = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape), tree)
    acting = adapter(tree, lora)
    jaxs = JaxGenerator(folder.config, folder.load(), tokenizer, adapter=acting, **SIZES)
    decoder = Decoder.from_files(folder, Compute())
    return jaxs, TorchGenerator(decoder, tokenizer, adapter=acting, **SIZES)


def test_greedy_answers_are_those_of_the_jax_engine(engines):
    wanted, found = (by_id(engine.generate(greedy(top_logprobs=3))) for engine in engines)
    assert wanted.keys() == found.keys() == set(PROMPTS)
    for id, completion in wanted.items():
        mine = found[id]
        assert (mine.text, mine.tokens, mine.finish, mine.prompt_tokens) == (
            completion.text, completion.tokens, completion.finish, completion.prompt_tokens,
        )  # fmt: skip
        np.testing.assert_allclose(mine.logps, completion.logps, atol=1e-4)
        assert [[t for t, _ in p] for p in mine.top_logprobs] == [
            [t for t, _ in p] for p in completion.top_logprobs
        ]


def test_repetition_penalty_and_stops_act_as_in_the_jax_engine(engines):
    plain = by_id(engines[1].generate(greedy()))["count"]
    stop = plain.text[2:4]
    requests = greedy(repetition_penalty=1.7) + [
        Request("stopped", ask("count"), SamplingParams(12, temperature=0.0, stop=(stop,))),
        Request("token", ask("count"), SamplingParams(
            12, temperature=0.0, stop_token_ids=(plain.tokens[3],))),
    ]  # fmt: skip
    wanted, found = (by_id(engine.generate(requests)) for engine in engines)
    assert {k: v.tokens for k, v in wanted.items()} == {k: v.tokens for k, v in found.items()}
    assert found["stopped"].finish == found["token"].finish == "stop"
    assert stop not in found["stopped"].text


def test_draws_depend_on_the_request_alone(engines):
    rules = SamplingParams(10, temperature=1.5, top_k=50, top_p=0.95)
    requests = [Request(f"{t}{s}", ask(t), rules, seed=s) for t in PROMPTS for s in (1, 2)]
    together = by_id(engines[1].generate(requests))
    alone = by_id(engines[1].generate([requests[3]]))
    assert together[requests[3].id].tokens == alone[requests[3].id].tokens
    assert len({c.tokens for c in together.values()}) == len(requests)
    assert by_id(engines[1].generate(reversed(requests))) == together


def test_scores_and_labels_are_those_of_the_jax_engine(engines):
    asked = [ScoreRequest(t, ask(t), "an answer") for t in PROMPTS]
    labels = [LabelRequest(t, ask(t), ("A", "B", "C")) for t in PROMPTS]
    for wanted, found in (
        [by_id(engine.score(asked)) for engine in engines],
        [by_id(engine.labels(labels)) for engine in engines],
    ):
        for id, result in wanted.items():
            np.testing.assert_allclose(found[id].logps, result.logps, atol=1e-4)


def test_what_torch_does_not_have_is_said(engines):
    with pytest.raises(UserError, match="no beam search"):
        list(engines[1].generate([Request("x", ask("x"), SamplingParams(num_beams=2))]))
    with pytest.raises(UserError, match="no adapter 'other'"):
        list(engines[1].generate([Request("x", ask("x"), adapter="other")]))


@pytest.mark.parametrize(
    "heat,top_k,top_p,min_p", [(1, 0, 1, 0), (0.7, 7, 1, 0), (1.3, 0, 0.8, 0), (2, 20, 0.9, 0.1)]
)
def test_draws_have_the_distribution_of_transformers(heat, top_k, top_p, min_p):
    """A grid of uniform numbers lays each token's probability out to within a grid step."""
    count = 2000
    scores = torch.tensor(np.random.default_rng(0).normal(0, 2, 50), dtype=torch.float32)
    warpers = [TemperatureLogitsWarper(float(heat))]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(float(top_p))] if top_p < 1 else []
    warpers += [MinPLogitsWarper(float(min_p))] if min_p else []
    wanted = LogitsProcessorList(warpers)(None, scores[None])[0].softmax(-1)
    full = [np.full(count, x, np.float32) for x in (heat, top_p, min_p)]
    rules = Rules(full[0], np.full(count, top_k, np.int32), full[1], full[2])
    uniforms = (np.arange(count) + 0.5) / count
    drawn = next_tokens(scores.expand(count, -1), rules, uniforms)
    shares = torch.bincount(drawn, minlength=50) / count
    np.testing.assert_allclose(shares, wanted, atol=1.01 / count)
    assert not ((shares > 0) & (wanted == 0)).any()
