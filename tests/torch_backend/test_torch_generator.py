"""Generation on transformers against the JAX engine, and against transformers' and peft's own."""

from dataclasses import replace

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
from selfevo_jax.text.render import render_prompt
from selfevo_jax.torch_backend.generator import TorchGenerator
from selfevo_jax.torch_backend.lora import attached
from selfevo_jax.torch_backend.model import Decoder
from selfevo_jax.torch_backend.select import next_tokens

SIZES = {"slots": 3, "max_length": 96, "prompt_rows": 2, "steps": 4}
PROMPTS = ("why is the sky blue?", "count", "say something about ducks", "no", "a longer question")
NAMES = ("narrow", None, "wide")  # whose adapter reads prompt 0, 1, 2, 0, 1, ...


def ask(text):
    return ({"role": "user", "content": text},)


def greedy(**settings):
    sampling = SamplingParams(12, temperature=0.0, **settings)
    return [Request(text, ask(text), sampling, adapter=name_of(text)) for text in PROMPTS]


def name_of(text):
    return NAMES[PROMPTS.index(text) % len(NAMES)]


def by_id(results):
    return {result.id: result for result in results}


@pytest.fixture(scope="module")
def adapters(folder):
    """Two of different rank, scaling and targets, far enough from zero to be seen."""
    settings = {
        "narrow": LoraConfig(rank=2, alpha=8.0, targets=r"layers/attn/(q|v)_proj"),
        "wide": LoraConfig(rank=4, targets=r"layers/(attn|mlp)/.*_proj"),
    }
    found = {}
    for seed, (name, lora) in enumerate(settings.items()):
        tree, key = init_lora(folder.config, lora, jax.random.key(seed)), jax.random.key(7 + seed)
        tree = jax.tree.map(lambda x, k=key: x + 0.1 * jax.random.normal(k, x.shape), tree)
        found[name] = adapter(tree, lora)
    return found


@pytest.fixture(scope="module")
def torch_decoder(folder):
    return Decoder.from_files(folder, Compute())


@pytest.fixture(scope="module")
def engines(folder, tokenizer, torch_decoder, adapters):
    """The JAX engine and ours, both with the same adapters."""
    jaxs = JaxGenerator(folder.config, folder.load(), tokenizer, adapters=adapters, **SIZES)
    return jaxs, TorchGenerator(torch_decoder, tokenizer, adapters=adapters, **SIZES)


def test_greedy_answers_of_base_and_adapters_are_those_of_the_jax_engine(engines):
    """Three rows at a time: the base and two adapters in one batch."""
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
    plain = max(engines[1].generate(greedy()), key=lambda completion: len(completion.text))
    stop, request = plain.text[2:4], Request("", ask(plain.id), adapter=name_of(plain.id))
    ends = {"stopped": {"stop": (stop,)}, "token": {"stop_token_ids": (plain.tokens[3],)}}
    requests = greedy(repetition_penalty=1.7) + [
        replace(request, id=id, sampling=SamplingParams(12, temperature=0.0, **end))
        for id, end in ends.items()
    ]
    wanted, found = (by_id(engine.generate(requests)) for engine in engines)
    assert {k: v.tokens for k, v in wanted.items()} == {k: v.tokens for k, v in found.items()}
    assert found["stopped"].finish == found["token"].finish == "stop"
    assert stop not in found["stopped"].text


def test_draws_depend_on_the_request_alone(engines):
    rules = SamplingParams(10, temperature=1.5, top_k=50, top_p=0.95)
    requests = [
        Request(f"{t}{s}", ask(t), rules, seed=s, adapter=NAMES[s % 3])
        for t in PROMPTS for s in (1, 2, 3)
    ]  # fmt: skip
    together = by_id(engines[1].generate(requests))
    for request in requests:  # to the bit: logps, too
        assert list(engines[1].generate([request])) == [together[request.id]]
    assert len({c.tokens for c in together.values()}) == len(requests)
    assert by_id(engines[1].generate(reversed(requests))) == together


def test_scores_and_labels_are_those_of_the_jax_engine(engines):
    asked = [ScoreRequest(t, ask(t), "an answer", adapter=name_of(t)) for t in PROMPTS]
    labels = [LabelRequest(t, ask(t), ("A", "B", "C"), adapter=name_of(t)) for t in PROMPTS]
    for wanted, found in (
        [by_id(engine.score(asked)) for engine in engines],
        [by_id(engine.labels(labels)) for engine in engines],
    ):
        for id, result in wanted.items():
            np.testing.assert_allclose(found[id].logps, result.logps, atol=1e-4)


def test_an_adapter_in_a_mixed_batch_is_peft_s(engines, torch_decoder, tokenizer, adapters):
    """peft lets one adapter act on the whole batch; ours picks it for each row."""
    for name, one in [(None, None), *adapters.items()]:
        asked = [replace(request, adapter=name) for request in greedy()]
        found = by_id(engines[1].generate(asked))
        with attached(torch_decoder, one):
            for request in asked:
                theirs = generated(torch_decoder, tokenizer, request)
                assert list(found[request.id].tokens) == theirs
    alone = TorchGenerator(torch_decoder, tokenizer, adapter=adapters["wide"], **SIZES)
    unnamed = [replace(request, adapter=None) for request in greedy()]
    assert by_id(alone.generate(unnamed)) == by_id(
        engines[1].generate(replace(request, adapter="wide") for request in unnamed)
    )
    alone.close()
    with pytest.raises(UserError, match="no adapter 'other'.*narrow, wide"):
        list(engines[1].generate([replace(unnamed[0], adapter="other")]))


def generated(decoder, tokenizer, request, **settings):
    """transformers' answer to a request, with whatever adapter acts."""
    prompt = render_prompt(tokenizer, request.messages)
    ends = [*tokenizer.eos_ids, *request.sampling.stop_token_ids]
    with torch.inference_mode():
        row = decoder.module.generate(
            torch.tensor([prompt]), max_new_tokens=request.sampling.max_new_tokens,
            do_sample=False, eos_token_id=ends, pad_token_id=ends[0], use_cache=True, **settings,
        )[0, len(prompt) :].tolist()  # fmt: skip
    length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
    return row[:length]


@pytest.mark.parametrize("beams,length_penalty", [(2, 1.0), (3, -1.5)])
def test_beam_search_equals_transformers(
    engines, torch_decoder, tokenizer, adapters, beams, length_penalty
):
    """With tokens of some answers as ends, so that beams finish early, compete, and go on."""
    free = SamplingParams(12, num_beams=beams, length_penalty=length_penalty)
    requests = [replace(request, sampling=free) for request in greedy()]
    unstopped = by_id(engines[1].generate(requests))
    stops = tuple({unstopped[text].tokens[4] for text in PROMPTS[:3]})
    requests = [replace(r, sampling=replace(free, stop_token_ids=stops)) for r in requests]
    plain = Request("plain", ask("count"), SamplingParams(9), seed=1)
    found = by_id(engines[1].generate([*requests[:2], plain, *requests[2:]]))
    settings = {"num_beams": beams, "length_penalty": length_penalty}
    for request in requests:
        with attached(torch_decoder, adapters.get(request.adapter)):
            theirs = generated(torch_decoder, tokenizer, request, **settings)
        assert list(found[request.id].tokens) == theirs
    assert {found[text].finish for text in PROMPTS} == {"stop", "length"}
    assert list(engines[1].generate([plain])) == [found["plain"]]
    with pytest.raises(UserError, match="4 beams do not fit"):
        list(engines[1].generate([Request("x", ask("x"), SamplingParams(num_beams=4))]))


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
