"""The engine on a tiny random model: independence of the batch, stops, sharing, memory."""

import itertools
import os
import random
from dataclasses import replace

import jax
import numpy as np
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.models.attention import Layout
from selfevo_jax.models.llama import forward, logits
from selfevo_jax.models.lora import LoraConfig, adapter, init_lora
from selfevo_jax.models.quantize import quantize_base
from selfevo_jax.sample.device import compile_count
from selfevo_jax.sample.protocol import Request, SamplingParams, ScoreRequest
from selfevo_jax.text.render import render_prompt

WORDS = "the quick brown fox jumps over a lazy dog how many ducks are there in red barn".split()


def question(rng: random.Random, words: int) -> list[dict]:
    return [{"role": "user", "content": " ".join(rng.choices(WORDS, k=words))}]


def mixed_requests(count: int) -> list[Request]:
    """Prompts of 20 to 170 tokens, some repeated; greedy and sampled; short and long answers."""
    rng = random.Random(0)
    prompts = [question(rng, rng.choice([2, 5, 20, 50])) for _ in range(count * 3 // 4)]
    settings = [
        dict(temperature=0.0),
        dict(temperature=0.8),
        dict(top_k=9),
        dict(top_p=0.7, min_p=0.02),
    ]
    return [
        Request(
            f"r{i}",
            prompts[i % len(prompts)],
            SamplingParams(rng.choice([1, 3, 9, 30, 100]), **rng.choice(settings)),
            seed=rng.randrange(-5, 2**64),
        )
        for i in range(count)
    ]


def by_id(completions) -> dict:
    found = {}
    for completion in completions:
        assert completion.id not in found
        found[completion.id] = completion
    return found


def test_a_completion_does_not_depend_on_its_batch(tiny):
    """200 requests in three orders, and one at a time: the same tokens, and logps to the bit."""
    requests = mixed_requests(200)
    first = by_id(tiny.generator().generate(requests))
    assert len(first) == 200 and len({c.tokens for c in first.values()}) > 150
    for seed in (1, 2):
        shuffled = random.Random(seed).sample(requests, 200)
        assert by_id(tiny.generator().generate(shuffled)) == first
    alone = tiny.generator()
    for request in requests[:25]:
        assert next(alone.generate([request])) == first[request.id]


def test_long_prompts_do_not_depend_on_their_batch(tiny):
    """Requests of several cache lengths in one call; nothing changes."""
    rng = random.Random(4)
    requests = [
        Request(f"r{i}", question(rng, words), SamplingParams(40, temperature=0.9), seed=i)
        for i, words in enumerate([3, 3, 3, 3, 60, 3, 230, 3, 3, 150, 3, 3])
    ]
    together = by_id(tiny.generator(max_length=512).generate(requests))
    assert max(c.prompt_tokens for c in together.values()) > 256
    for request in requests:
        alone = list(tiny.generator(max_length=512).generate([request]))
        assert alone == [together[request.id]]


def test_where_the_reading_of_a_prompt_began_is_not_seen(tiny):
    """Its first tokens are known from another prompt, up to any place: the logps to the bit."""
    rng = random.Random(7)
    prompt = tuple(rng.choices(range(3, 300), k=450))
    sampling = SamplingParams(12, temperature=0.0)

    def answer(*prompts):
        requests = [Request(f"r{i}", (), sampling, tokens=p) for i, p in enumerate(prompts)]
        engine = tiny.generator(max_length=512)
        return [list(engine.generate([one]))[0] for one in requests][-1].logps

    fresh = answer(prompt)
    for shared in range(5, 450, 9):
        other = (*prompt[:shared], *rng.choices(range(3, 300), k=450 - shared))
        assert answer(other, prompt) == fresh, shared


@pytest.mark.parametrize("quant", [None, "nf4", "fp8"])
def test_greedy_equals_the_uncached_model(tiny, quant):
    """Against `forward` over the whole text so far, which has no cache and no batch."""
    if quant is not None:
        tiny = replace(tiny, params=quantize_base(tiny.params, quant))
    near = 1e-2 if quant == "fp8" else 1e-4  # a value may fall on the other side of a rounding
    rng = random.Random(1)
    requests = [
        Request(f"r{i}", question(rng, 4 + 9 * i), SamplingParams(12, temperature=0.0))
        for i in range(5)
    ]
    plain = jax.jit(
        lambda tokens_bt, last: logits(
            tiny.config,
            tiny.params,
            forward(tiny.config, tiny.params, tokens_bt, Layout.plain(np.ones((1, 128), bool)))[
                0, last
            ],
        )
    )
    for completion in tiny.generator().generate(requests):
        prompt = render_prompt(tiny.tokenizer, requests[int(completion.id[1:])].messages)
        tokens = [*prompt]
        for token, logp in zip(completion.tokens, completion.logps, strict=True):
            padded = np.array([tokens + [0] * (128 - len(tokens))])
            scores = np.asarray(plain(padded, len(tokens) - 1), np.float64)
            assert token == scores.argmax()
            total = np.log(np.exp(scores - scores.max()).sum()) + scores.max()
            assert abs(scores[token] - total - logp) < near
            tokens.append(token)


def test_the_adapter_is_applied_and_not_kept(tiny):
    lora = LoraConfig(rank=4, alpha=64.0)
    tree = init_lora(tiny.config, lora, jax.random.key(2))
    noisy = jax.tree.map(lambda x: x + 0.3, tree)
    requests = [
        Request(f"r{i}", question(random.Random(i), 5), SamplingParams(10, temperature=0.0))
        for i in range(4)
    ]
    base = by_id(tiny.generator().generate(requests))
    assert by_id(tiny.generator(adapter=adapter(noisy, lora)).generate(requests)) != base
    zero = by_id(tiny.generator(adapter=adapter(tree, lora)).generate(requests))
    assert {c.id: c.tokens for c in zero.values()} == {c.id: c.tokens for c in base.values()}


def test_stop_strings_tokens_and_limits(tiny):
    messages = question(random.Random(7), 6)
    free = next(tiny.generator().generate([Request("a", messages, SamplingParams(60), seed=3)]))
    assert free.finish == "length" and len(free.tokens) == 60 == len(free.logps)
    assert free.text == tiny.tokenizer.decode(free.tokens)
    stop = free.text[10:13]
    stopped = SamplingParams(60, stop=("never there", stop))
    cut = next(tiny.generator().generate([Request("a", messages, stopped, seed=3)]))
    assert cut.finish == "stop" and cut.text == free.text[: free.text.index(stop)]
    assert cut.tokens == free.tokens[: len(cut.tokens)]
    assert cut.text.startswith(tiny.tokenizer.decode(cut.tokens))
    ended = SamplingParams(60, stop_token_ids=(free.tokens[7],))
    end = next(tiny.generator().generate([Request("a", messages, ended, seed=3)]))
    assert (
        end.finish == "stop" and end.tokens == free.tokens[: free.tokens.index(free.tokens[7]) + 1]
    )
    assert end.logps == free.logps[: len(end.tokens)]


def test_the_model_ends_its_turn(tiny):
    requests = [
        Request(
            f"r{i}", question(random.Random(i), 4), SamplingParams(280, temperature=1.5), seed=i
        )
        for i in range(24)
    ]
    completions = list(tiny.generator().generate(requests))
    ended = [c for c in completions if c.finish == "stop"]
    assert ended and len(completions) == 24
    for completion in ended:
        assert completion.tokens[-1] in tiny.tokenizer.eos_ids
        assert not set(completion.tokens[:-1]) & set(tiny.tokenizer.eos_ids)
        assert "<|im_end|>" not in completion.text


def test_what_does_not_fit_is_limited_or_refused(tiny):
    rng = random.Random(3)
    long, longer = question(rng, 40), question(rng, 100)
    engine = tiny.generator(max_length=150)
    completion = next(engine.generate([Request("a", long, SamplingParams(500, stop_token_ids=()))]))
    assert (
        completion.finish == "length" and len(completion.tokens) + completion.prompt_tokens == 150
    )
    with pytest.raises(UserError, match="request too-long"):
        list(engine.generate([Request("too-long", longer)]))
    with pytest.raises(UserError, match="too-long"):
        list(engine.score([ScoreRequest("too-long", longer, "yes")]))
    with pytest.raises(UserError, match="stop tokens"):
        list(engine.generate([Request("a", long, SamplingParams(stop_token_ids=tuple(range(40))))]))
    with pytest.raises(UserError, match="max_length"):
        tiny.generator(max_length=10_000)
    assert len(list(engine.generate([Request("b", long)]))) == 1  # still in order


def test_the_forced_prefix_is_part_of_the_prompt(tiny):
    messages = question(random.Random(2), 5)
    with_prefix = Request("a", messages, SamplingParams(8, temperature=0.0), prefix="the answer is")
    completion = next(tiny.generator().generate([with_prefix]))
    expected = render_prompt(tiny.tokenizer, messages, prefix="the answer is")
    assert completion.prompt_tokens == len(expected)
    assert completion.text == tiny.tokenizer.decode(completion.tokens)
    other = next(tiny.generator().generate([Request("a", messages, with_prefix.sampling)]))
    assert other.logps != completion.logps


def test_samples_of_one_prompt_share_its_reading(tiny):
    messages = question(random.Random(5), 30)
    engine = tiny.generator()
    samples = list(
        engine.generate(Request(f"{i}", messages, SamplingParams(9), seed=i) for i in range(40))
    )
    assert engine.prompt_tokens_read == samples[0].prompt_tokens - 1
    assert len({sample.tokens for sample in samples}) == 40
    list(engine.generate([Request("again", messages, SamplingParams(2))]))
    assert engine.prompt_tokens_read == samples[0].prompt_tokens - 1


def test_a_common_beginning_is_read_once_more_only_by_the_first_prompts(tiny):
    """Judge-like prompts: a long fixed part, then a question of their own."""
    rng = random.Random(6)
    fixed = {"role": "system", "content": " ".join(rng.choices(WORDS, k=80))}
    prompts = [[fixed, *question(rng, 4)] for _ in range(12)]
    requests = [Request(f"{i}", m, SamplingParams(5), seed=i) for i, m in enumerate(prompts)]
    room = {"max_length": 512}  # caches of 128, 256 and 512
    engine = tiny.generator(**room)
    shared = by_id(engine.generate(requests))
    lengths = [shared[f"{i}"].prompt_tokens - 1 for i in range(12)]
    common = len(os.path.commonprefix([render_prompt(tiny.tokenizer, m) for m in prompts]))
    assert common > 100
    assert engine.prompt_tokens_read <= sum(lengths) - 8 * common  # all but the first four
    for request in requests:
        assert next(tiny.generator(**room).generate([request])) == shared[request.id]
    # Read for a cache of another length, the beginning would differ in its last bits.
    before = engine.prompt_tokens_read
    other = Request("other", prompts[0], SamplingParams(150), seed=0)
    assert next(engine.generate([other])) == next(tiny.generator(**room).generate([other]))
    assert engine.prompt_tokens_read == before + lengths[0]


def test_no_compilation_between_calls_of_different_sizes(tiny):
    requests = mixed_requests(40)
    engine = tiny.generator()
    list(engine.generate(requests))
    list(engine.score(ScoreRequest(r.id, r.messages, "fox") for r in requests))
    before = compile_count()
    list(engine.generate(mixed_requests(17)[3:]))
    list(engine.generate(requests[:1]))
    list(
        engine.score(
            ScoreRequest(f"{i}", r.messages, "over the fox") for i, r in enumerate(requests[:13])
        )
    )
    list(tiny.generator().generate(requests[5:9]))
    assert compile_count() == before
    list(tiny.generator(slots=7).generate(requests[:1]))
    assert compile_count() > before  # the counter counts


def test_stopping_early_frees_the_slots(tiny):
    requests = mixed_requests(30)
    engine = tiny.generator()
    expected = by_id(tiny.generator().generate(requests))
    for count in (1, 5):
        stream = engine.generate(requests)
        assert list(itertools.islice(stream, count))
        stream.close()
    assert by_id(engine.generate(requests)) == expected
    one, other = engine.generate(requests), engine.generate(reversed(requests))
    interleaved = [c for pair in zip(one, other, strict=True) for c in pair]
    assert by_id(interleaved[::2]) == by_id(interleaved[1::2]) == expected


def test_requests_are_read_lazily(tiny):
    taken = itertools.count()
    endless = (
        Request(f"{next(taken)}", question(random.Random(i % 50), 4), SamplingParams(3), seed=i)
        for i in itertools.count()
    )
    stream = tiny.generator().generate(endless)
    assert len(list(itertools.islice(stream, 30))) == 30
    stream.close()
    assert next(taken) < 30 + 3 * 24
    assert list(tiny.generator().generate([])) == []


def test_sampled_and_scored_logps_agree(tiny):
    """Answers whose tokens the tokenizer gives again; several prompts, some shared."""
    rng = random.Random(8)
    prompts = [question(rng, words) for words in (3, 12, 20, 40)]
    requests = [
        Request(f"{i}", prompts[i % 4], SamplingParams(25, temperature=0.4), seed=i)
        for i in range(80)
    ]
    engine = tiny.generator()
    sampled = by_id(engine.generate(requests))
    scores = list(
        engine.score(ScoreRequest(r.id, r.messages, sampled[r.id].text) for r in requests)
    )
    assert [score.id for score in scores] == [request.id for request in requests]
    compared = 0
    for score in scores:
        tokens = sampled[score.id].tokens
        if score.tokens[: len(tokens)] == tokens:
            np.testing.assert_allclose(
                score.logps[: len(tokens)], sampled[score.id].logps, atol=1e-4
            )
            compared += len(tokens)
        assert len(score.logps) == len(score.tokens) and score.tokens[-1] in tiny.tokenizer.eos_ids
    assert compared > 150


@pytest.mark.parametrize(
    "bad",
    [
        dict(temperature=-0.1), dict(temperature=float("nan")), dict(temperature="1"),
        dict(top_p=0), dict(top_p=1.01), dict(top_k=-1), dict(top_k=2.5), dict(min_p=2),
        dict(max_new_tokens=0),
        dict(stop="text"), dict(stop=("",)), dict(stop_token_ids=(-1,)), dict(top_k=True),
        dict(temperature=float("inf")),
    ],
)  # fmt: skip
def test_bad_sampling_settings_are_named(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        SamplingParams(**bad)
