"""Adapters picked per request; beam search, penalties and details beside `transformers`."""

import random
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from selfevo_jax.errors import UserError
from selfevo_jax.models.lora import LoraConfig, adapter, init_lora, merge_lora
from selfevo_jax.sample.beams import Beam, Search
from selfevo_jax.sample.prompts import Passage
from selfevo_jax.sample.protocol import LabelRequest, Request, SamplingParams, ScoreRequest
from selfevo_jax.sample.queue import Job, Kind
from selfevo_jax.text.render import render_prompt

WORDS = "the quick brown fox jumps over a lazy dog how many ducks are there in red barn".split()
NAMES = (None, "narrow", "wide")


def question(rng: random.Random, words: int) -> list[dict]:
    return [{"role": "user", "content": " ".join(rng.choices(WORDS, k=words))}]


@pytest.fixture(scope="module")
def adapters(tiny) -> dict:
    """Two adapters of different rank, scaling and targets, far enough from zero to be seen."""
    settings = {
        "narrow": LoraConfig(rank=2, alpha=8.0, targets=r"layers/attn/(q|v)_proj"),
        "wide": LoraConfig(rank=5, alpha=5.0, targets=r"layers/(attn|mlp)/.*_proj"),
    }
    found = {}
    for seed, (name, lora) in enumerate(settings.items()):
        tree = init_lora(tiny.config, lora, jax.random.key(seed))
        noise = np.random.default_rng(seed)
        tree = jax.tree.map(lambda x, n=noise: x + 0.3 * n.normal(size=x.shape), tree)
        found[name] = adapter(jax.tree.map(lambda x: x.astype(np.float32), tree), lora)
    return found


def by_id(completions) -> dict:
    return {completion.id: completion for completion in completions}


def test_mixed_adapters_equal_one_at_a_time(tiny, adapters):
    """200 greedy requests over the base and two adapters, in random order of arrival."""
    rng = random.Random(0)
    prompts = [question(rng, rng.choice([2, 5, 20, 50])) for _ in range(60)]
    requests = [
        Request(
            f"r{i}",
            rng.choice(prompts),
            SamplingParams(rng.choice([2, 9, 25]), temperature=0.0),
            adapter=rng.choice(NAMES),
        )  # fmt: skip
        for i in range(200)
    ]
    engine = tiny.generator(adapters=adapters)
    mixed = by_id(engine.generate(requests))
    assert by_id(engine.generate(random.Random(1).sample(requests, 200))) == mixed
    alone = tiny.generator(adapters=adapters)
    for request in requests:
        assert next(alone.generate([request])) == mixed[request.id]
    same = {(r.messages[0]["content"], r.sampling): {} for r in requests}
    for r in requests:
        same[r.messages[0]["content"], r.sampling][r.adapter] = mixed[r.id].tokens
    assert any(len(set(answers.values())) == 3 for answers in same.values())


def test_an_adapter_equals_the_merged_model(tiny, adapters):
    """Answers, scores and labels of each adapter beside the base with it merged in."""
    rng = random.Random(2)
    requests = [Request(f"{i}", question(rng, 6), SamplingParams(16, 0.0)) for i in range(6)]
    engine = tiny.generator(adapters=adapters)
    for name in ("narrow", "wide"):
        merged = replace(tiny, params=merge_lora(tiny.params, adapters[name])).generator()
        ours = by_id(engine.generate(replace(r, adapter=name) for r in requests))
        for id, theirs in by_id(merged.generate(requests)).items():
            assert ours[id].tokens == theirs.tokens
            np.testing.assert_allclose(ours[id].logps, theirs.logps, atol=1e-3)
        given = [ScoreRequest(r.id, r.messages, "the red barn") for r in requests]
        asked = [LabelRequest(r.id, r.messages, ("a", "b")) for r in requests]
        pairs = [
            (engine.score(replace(g, adapter=name) for g in given), merged.score(given)),
            (engine.labels(replace(a, adapter=name) for a in asked), merged.labels(asked)),
        ]
        for found, expected in pairs:
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one.logps, other.logps, atol=1e-3)
    with pytest.raises(UserError, match="no adapter 'other'.*narrow, wide"):
        list(engine.generate([replace(requests[0], adapter="other")]))


@pytest.fixture(scope="module")
def reference(tiny) -> LlamaForCausalLM:
    """The tiny model in transformers."""
    sizes = tiny.config
    config = LlamaConfig(
        vocab_size=sizes.vocab_size, hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size, num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads, num_key_value_heads=sizes.num_kv_heads,
        head_dim=sizes.head_dim, rms_norm_eps=sizes.norm_eps, rope_theta=sizes.rope_theta,
        tie_word_embeddings=True, max_position_embeddings=sizes.max_position,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    tree, layers = tiny.params, tiny.params["layers"]
    state = {
        "model.embed_tokens.weight": tree["embed_tokens"]["embedding"],
        "lm_head.weight": tree["embed_tokens"]["embedding"],
        "model.norm.weight": tree["final_norm"]["scale"],
    }
    for i in range(sizes.num_layers):
        start = f"model.layers.{i}."
        state[start + "input_layernorm.weight"] = layers["attn_norm"]["scale"][i]
        state[start + "post_attention_layernorm.weight"] = layers["mlp_norm"]["scale"][i]
        for part, name in (("self_attn", "attn"), ("mlp", "mlp")):
            for projection, leaves in layers[name].items():
                state[f"{start}{part}.{projection}.weight"] = leaves["kernel"][i].T
    model.load_state_dict({k: torch.tensor(np.asarray(v)) for k, v in state.items()})
    return model


def generated(reference, tiny, request: Request, **settings):
    """transformers' answer to a request: tokens, and what `generate` returned."""
    prompt = render_prompt(tiny.tokenizer, request.messages)
    ends = [*tiny.tokenizer.eos_ids, *request.sampling.stop_token_ids]
    with torch.inference_mode():
        out = reference.generate(
            torch.tensor([prompt]), max_new_tokens=request.sampling.max_new_tokens,
            do_sample=False, eos_token_id=ends, pad_token_id=ends[0], return_dict_in_generate=True,
            output_logits=True, **settings,
        )  # fmt: skip
    row = out.sequences[0, len(prompt) :].tolist()
    length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
    return row[:length], out


@pytest.mark.parametrize("beams,length_penalty", [(2, 1.0), (4, 1.0), (10, 1.0), (5, -1.5)])
def test_beam_search_equals_transformers(tiny, reference, beams, length_penalty):
    rng = random.Random(beams)
    free = SamplingParams(16, num_beams=beams, length_penalty=length_penalty)
    prompts = [question(rng, rng.choice([2, 6, 20])) for _ in range(6)]
    engine = tiny.generator(slots=21)
    unstopped = by_id(engine.generate(Request(f"{i}", m, free) for i, m in enumerate(prompts)))
    # Tokens of some answers become ends, so that beams finish early, compete, and go on. A wide
    # search finds its way round early ones.
    if beams == 10:
        stops = tuple({token for i in range(6) for token in unstopped[str(i)].tokens[2:]})
    else:
        stops = tuple({unstopped[str(i)].tokens[3 + 2 * i] for i in range(4)})
    sampling = replace(free, stop_token_ids=stops)
    requests = [Request(f"{i}", m, sampling) for i, m in enumerate(prompts)]
    plain = Request("plain", requests[0].messages, SamplingParams(9), seed=1)
    found = by_id(engine.generate([*requests[:3], plain, *requests[3:]]))
    ended = 0
    for request in requests:
        settings = dict(num_beams=beams, length_penalty=length_penalty)
        theirs, _ = generated(reference, tiny, request, **settings)
        ours = found[request.id]
        assert list(ours.tokens) == theirs
        ended += ours.finish == "stop"
    assert ended
    assert next(tiny.generator(slots=21).generate([plain])) == found["plain"]
    with pytest.raises(UserError, match="10 beams do not fit"):
        wide = replace(requests[0], sampling=SamplingParams(9, num_beams=10))
        list(tiny.generator(slots=9).generate([wide]))


def test_the_best_beam_of_a_row_stays_there_and_the_others_move_to_free_rows():
    """By hand: two beams go on from row 5, one from row 3, none from row 4."""
    sampling = SamplingParams(9, num_beams=3)
    job = Job(Request("a", "x", sampling), Passage((1, 2)), 9, (0,), Kind(128, 3, False, 6))
    search = Search(job, range(3, 6), [Beam(row, (row,), (-1.0,)) for row in (3, 4, 5)])
    tokens_bk = np.tile(np.arange(20, 26), (8, 1))
    logps_bk = np.tile(np.linspace(-7.0, -8.0, 6), (8, 1))
    logps_bk[5, :2], logps_bk[3, 0] = (-1.0, -2.0), -3.0
    assert search.step(tokens_bk, logps_bk)
    running = [(beam.row, beam.tokens, beam.total) for beam in search.running]
    assert running == [(5, (5, 20), -2.0), (4, (5, 21), -3.0), (3, (3, 20), -4.0)]
    assert search.copies == [(4, 5)]


def test_repetition_penalty_and_details_equal_transformers(tiny, reference):
    rng = random.Random(3)
    asked = dict(temperature=0.0, top_logprobs=5, details=True)
    for penalty in (1.0, 1.3, 0.8):
        sampling = SamplingParams(24, repetition_penalty=penalty, **asked)
        request = Request("a", question(rng, 8), sampling)
        (ours,) = tiny.generator().generate([request])
        theirs, out = generated(reference, tiny, request, repetition_penalty=penalty)
        assert list(ours.tokens) == theirs
        for place, logits_v in enumerate(torch.cat(out.logits).double()):
            logps_v = torch.log_softmax(logits_v, -1)
            best = torch.topk(logps_v, 5)
            assert [token for token, _ in ours.top_logprobs[place]] == best.indices.tolist()
            values = [logp for _, logp in ours.top_logprobs[place]]
            np.testing.assert_allclose(values, best.values, atol=1e-3)
            assert abs(ours.logps[place] - logps_v[ours.tokens[place]]) < 1e-3
            assert abs(ours.entropies[place] + (logps_v.exp() * logps_v).sum()) < 1e-3
            margin = best.values.exp()[0] - best.values.exp()[1]
            assert abs(ours.margins[place] - margin) < 1e-3


def test_details_and_penalties_do_not_touch_the_neighbours(tiny):
    rng = random.Random(4)
    kinds = [{}, {"repetition_penalty": 1.5}, {"details": True}, {"top_logprobs": 3}]
    requests = [
        Request(f"{i}", question(rng, 6), SamplingParams(20, **kinds[i % 4]), seed=i)
        for i in range(40)
    ]
    together = by_id(tiny.generator().generate(requests))
    alone = tiny.generator()
    for request in requests:
        assert next(alone.generate([request])) == together[request.id]
    plain = together["0"]
    assert plain.entropies is plain.margins is plain.top_logprobs is None
    assert (
        len(together["2"].margins) == len(together["2"].tokens) and not together["2"].top_logprobs
    )


@pytest.mark.parametrize(
    "bad",
    [
        dict(repetition_penalty=0), dict(top_logprobs=21), dict(num_beams=0),
        dict(num_beams=2, temperature=0.5), dict(num_beams=2, stop=("x",)),
    ],
)  # fmt: skip
def test_bad_settings_are_named(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        SamplingParams(**bad)
