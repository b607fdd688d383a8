"""The server as its clients see it: the official `openai` package and lm-eval, unchanged."""

import functools
import json
import math
import string
import sys
import threading

import httpx
import jax
import numpy as np
import pytest

from selfevo_jax.models.attention import Layout
from selfevo_jax.models.llama import forward, logits
from selfevo_jax.sample.http.client import HttpGenerator
from selfevo_jax.sample.http.endpoint import Endpoint
from selfevo_jax.sample.protocol import LabelRequest, Request, SamplingParams, ScoreRequest
from selfevo_jax.serve.answers import Stream

openai = pytest.importorskip("openai", reason="the openai client is not installed")
MODEL = "random:tiny?seed=0"
QUESTION = [{"role": "user", "content": "What is a duck?"}]


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def local(engine, seed: int, *, messages=QUESTION, prefix="", adapter=None, **sampling):
    request = Request(
        "a", messages, SamplingParams(**sampling), seed, prefix=prefix, adapter=adapter
    )
    (found,) = engine.generate([request])
    return found


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL, "tuned"]


def test_a_chat_gives_what_the_engine_gives(client, engine):
    sampling = {"temperature": 0.7, "top_p": 0.9}
    found = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=20, seed=5, **sampling
    )
    expected = local(engine, 5, max_new_tokens=20, **sampling)
    (choice,) = found.choices
    assert (choice.message.content, choice.finish_reason) == (expected.text, expected.finish)
    assert found.usage.prompt_tokens == expected.prompt_tokens
    assert found.usage.completion_tokens == len(expected.tokens) == 20
    again = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_completion_tokens=20, seed=5, **sampling
    )
    assert again.choices[0].message.content == expected.text


def test_extensions_reach_the_engine(client, engine):
    found = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=20, seed=5, extra_body={"top_k": 3, "min_p": 0.1}
    )
    expected = local(engine, 5, max_new_tokens=20, top_k=3, min_p=0.1)
    assert found.choices[0].message.content == expected.text
    begun = [*QUESTION, {"role": "assistant", "content": "A duck is"}]
    found = client.chat.completions.create(
        model=MODEL, messages=begun, max_tokens=20, seed=5,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )  # fmt: skip
    expected = local(engine, 5, prefix="A duck is", max_new_tokens=20)
    assert found.choices[0].message.content == expected.text


def test_samples_are_different_and_come_again(client):
    def ask(n, seed=3):
        reply = client.chat.completions.create(
            model=MODEL, messages=QUESTION, n=n, seed=seed, max_tokens=12
        )
        assert [choice.index for choice in reply.choices] == list(range(n))
        return [choice.message.content for choice in reply.choices]

    five = ask(5)
    assert len(set(five)) == 5 and ask(5) == five and ask(2) == five[:2] and ask(5, 4) != five


def test_the_adapter_is_another_model(client, engine):
    """It samples, scores and weighs alternatives as itself."""
    asked = {"prompt": "What is a duck?", "max_tokens": 20, "temperature": 0, "logprobs": 2}
    found = {
        model: client.completions.create(model=model, echo=True, **asked).choices[0]
        for model in (MODEL, "tuned")
    }
    assert found["tuned"].text != found[MODEL].text
    for name, adapter in ((MODEL, None), ("tuned", "tuned")):
        made = local(
            engine, 0, messages=asked["prompt"], adapter=adapter, max_new_tokens=20, temperature=0.0
        )
        given = ScoreRequest("s", "W", "hat is a duck?", end=False, adapter=adapter)
        (prompt,) = engine.score([given])
        told = found[name].logprobs
        assert found[name].text == asked["prompt"] + made.text
        expected = [*prompt.logps, *made.logps]
        assert np.allclose(told.token_logprobs[1:], expected, atol=1e-4)


@pytest.mark.parametrize("seed", range(1, 7))
def test_a_stream_is_the_whole_answer_in_pieces(client, engine, seed):
    whole = local(engine, seed, max_new_tokens=60)
    stop = [whole.text[24:27], "never to be seen"]
    for stops in (None, stop):
        settings = {"model": MODEL, "messages": QUESTION, "seed": seed, "max_tokens": 60}
        plain = client.chat.completions.create(**settings, stop=stops)
        parts = list(
            client.chat.completions.create(
                **settings, stop=stops, stream=True, stream_options={"include_usage": True}
            )
        )
        text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
        assert text == plain.choices[0].message.content
        finishes = [p.choices[0].finish_reason for p in parts if p.choices]
        assert finishes[-1] == plain.choices[0].finish_reason and set(finishes[:-1]) == {None}
        assert parts[0].choices[0].delta.role == "assistant"
        assert len(parts) >= 3 + plain.usage.completion_tokens // 16
        assert parts[-1].usage.completion_tokens == plain.usage.completion_tokens
    assert stop[0] not in text and text == whole.text[: whole.text.index(stop[0])]


def test_several_streams_in_one(client):
    settings = {"model": MODEL, "prompt": ["one", "two"], "n": 2, "seed": 1, "max_tokens": 20}
    plain = client.completions.create(**settings)
    texts = [""] * 4
    for part in client.completions.create(**settings, stream=True):
        (choice,) = part.choices
        texts[choice.index] += choice.text
    assert texts == [choice.text for choice in plain.choices]


def test_log_probabilities_of_a_chat(client, engine, local_model):
    expected = local(engine, 2, max_new_tokens=8)
    detailed = local(engine, 2, max_new_tokens=8, top_logprobs=5)
    found = client.chat.completions.create(
        model=MODEL, messages=QUESTION, seed=2, max_tokens=8, logprobs=True, top_logprobs=5
    )
    content = found.choices[0].logprobs.content
    assert np.allclose([entry.logprob for entry in content], expected.logps, atol=1e-4)
    for entry, token, best in zip(content, expected.tokens, detailed.top_logprobs, strict=True):
        assert [other.logprob for other in entry.top_logprobs] == [logp for _, logp in best]
        assert entry.logprob <= best[0][1] + 1e-5
        assert entry.token == local_model.tokenizer.decode([token], skip_special=False)
    plain = client.chat.completions.create(
        model=MODEL, messages=QUESTION, seed=2, max_tokens=8, logprobs=True, stream=True
    )
    parts = [part.choices[0].logprobs for part in plain]
    assert [e.logprob for p in parts if p for e in p.content] == list(expected.logps)


def reference_scores(local_model, tokens: list[int]) -> np.ndarray:
    """Log-probabilities [t, v] of what follows each token, from the uncached model."""
    config = local_model.files.config
    padded, mask = np.zeros((2, 1, 64), np.int32)
    padded[0, : len(tokens)], mask[0, : len(tokens)] = tokens, 1
    return np.asarray(_reference(config, local_model.params, padded, mask > 0))[: len(tokens)]


@functools.partial(jax.jit, static_argnums=0)
def _reference(config, params, tokens_bt, mask_bt):
    hidden_btd = forward(config, params, tokens_bt, Layout.plain(mask_bt))
    return jax.nn.log_softmax(logits(config, params, hidden_btd))[0]


@pytest.mark.parametrize("most", [0, 4])
def test_echo_scores_a_prompt(client, local_model, most):
    """What lm-eval asks for, `max_tokens` 0 and more, against the model without any cache."""
    tokens = local_model.tokenizer.encode("the quick brown fox jumps over it all, twice")
    found = client.completions.create(
        model=MODEL, prompt=tokens, echo=True, max_tokens=most, logprobs=3, temperature=0
    )
    (choice,) = found.choices
    count = len(tokens) + most
    assert len(choice.logprobs.tokens) == count and choice.finish_reason == "length"
    assert choice.text == "".join(choice.logprobs.tokens)
    assert choice.logprobs.token_logprobs[0] is None and choice.logprobs.top_logprobs[0] is None
    scores, full = reference_scores(local_model, tokens), 0
    for place in range(1, len(tokens)):
        ours, top = choice.logprobs.token_logprobs[place], choice.logprobs.top_logprobs[place]
        assert abs(ours - scores[place - 1, tokens[place]]) < 1e-4
        best = [*np.sort(scores[place - 1])[::-1][:3], ours]
        assert abs(max(top.values()) - best[0]) < 1e-4 and ours in top.values()
        # Half characters print alike, so there may be fewer than three texts.
        assert all(np.isclose(value, best, atol=1e-4).any() for value in top.values())
        full += len(top) >= 3
    assert full > len(tokens) / 2
    offsets = choice.logprobs.text_offset
    pieces = zip(offsets, offsets[1:] + [len(choice.text)], strict=True)
    assert [choice.text[a:b] for a, b in pieces] == choice.logprobs.tokens
    if most:
        assert choice.logprobs.token_logprobs[-1] == max(choice.logprobs.top_logprobs[-1].values())


def test_our_client_gets_from_the_server_what_the_engine_gives(server, engine):
    """Generator against Generator: texts, ids, log-probabilities, scores; base and adapter."""
    requests = [
        Request(
            f"r{i}", [{"role": "user", "content": f"Count {i} ducks."}],
            SamplingParams(16, temperature=0.8, stop=("q",)), seed=2**63 - 1 - i,
            prefix="So" * (i % 2), adapter="tuned" if i % 3 else None,
        )
        for i in range(12)
    ]  # fmt: skip
    endpoint = Endpoint(f"{server.url}/v1", MODEL, logprobs=True, token_ids=True)
    with HttpGenerator(endpoint) as generator:
        found = {completion.id: completion for completion in generator.generate(requests)}
    assert found == {completion.id: completion for completion in engine.generate(requests)}
    plain = Endpoint(f"{server.url}/v1", MODEL, api="completions", token_ids=True)
    with HttpGenerator(plain) as generator:
        given = [
            ScoreRequest(f"{name}", "What is a duck?", " A bird.", end=False, adapter=name)
            for name in (None, "tuned")
        ]
        scores = {score.id: score for score in generator.score(given)}
    assert scores["None"].logps != scores["tuned"].logps
    for expected in engine.score(given):
        assert scores[expected.id].tokens == expected.tokens
        assert np.allclose(scores[expected.id].logps, expected.logps, atol=1e-5)
    letters = tuple(string.ascii_letters)
    with HttpGenerator(Endpoint(f"{server.url}/v1", MODEL)) as generator:
        asked = LabelRequest("l", QUESTION, letters, adapter="tuned")
        (found,), (expected,) = generator.labels([asked]), engine.labels([asked])
    pairs = list(zip(found.logps, expected.logps, strict=True))
    assert 0 < sum(ours > -math.inf for ours, _ in pairs) <= 20
    assert all(ours == -math.inf or abs(ours - theirs) < 1e-4 for ours, theirs in pairs)


def test_many_connections_share_the_batch_and_do_not_change_answers(client, engine):
    """Base and adapter in one batch."""
    texts, expected = {}, {}

    def ask(i):
        reply = client.chat.completions.create(
            model="tuned" if i % 3 else MODEL, seed=i, max_tokens=5 + i,
            messages=[{"role": "user", "content": "x" * i}],
        )  # fmt: skip
        texts[i] = reply.choices[0].message.content

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(24):
        messages = [{"role": "user", "content": "x" * i}]
        adapter = "tuned" if i % 3 else None
        found = local(engine, i, messages=messages, adapter=adapter, max_new_tokens=5 + i)
        expected[i] = found.text
    assert texts == expected


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="lm-eval is installed on 3.11 only")
def test_lm_eval_scores_with_local_completions(server, local_model, tmp_path, monkeypatch):
    """`local-completions`, log-likelihoods and greedy generation, with and without batches."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(
        model=MODEL, base_url=f"{server.url}/v1/completions",
        tokenizer=str(local_model.files.path), tokenizer_backend="huggingface",
        num_concurrent=1, max_retries=1, batch_size=2, max_length=200,
    )  # fmt: skip
    pairs = [("The duck says", " quack"), ("Two and two", " is four"), ("a", " b")]
    asked = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    found = model.loglikelihood(asked, disable_tqdm=True)
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        head = local_model.tokenizer.encode(context)
        tokens = head + local_model.tokenizer.encode(continuation)
        scores = reference_scores(local_model, tokens)
        places = range(len(head), len(tokens))
        assert abs(value - sum(scores[i - 1, tokens[i]] for i in places)) < 1e-3
        assert greedy == all(scores[i - 1].argmax() == tokens[i] for i in places)
    best = best_continuation(local_model, "The duck says", 3)
    (one,) = model.loglikelihood([Instance("loglikelihood", {}, ("The duck says", best), 0)])
    assert one[1] is True
    (text,) = model.generate_until(
        [
            Instance(
                "generate_until", {}, ("The duck says", {"until": ["zzz"], "max_gen_toks": 3}), 0
            )
        ],
        disable_tqdm=True,
    )
    assert text == best


def best_continuation(local_model, context: str, count: int) -> str:
    tokens = local_model.tokenizer.encode(context)
    start = len(tokens)
    for _ in range(count):
        tokens.append(int(reference_scores(local_model, tokens)[-1].argmax()))
    return local_model.tokenizer.decode(tokens[start:])


def test_a_raw_stream_ends_as_the_protocol_says(server):
    body = {"model": MODEL, "messages": QUESTION, "max_tokens": 3, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    assert {json.loads(line[6:])["object"] for line in lines[:-1]} == {"chat.completion.chunk"}


@pytest.mark.parametrize(
    ("text", "stops", "shown", "whole"),
    [
        ("say STOP now", ["STOP"], "say ", "say "),
        ("say STO-P now", ["STOP"], "say STO-P now", "say STO-P now"),
        ("aab", ["ab"], "a", "a"),
        ("xSTSTO", ["STOP", "STSTOP"], "x", "xSTSTO"),
        ("wörld ö", [], "wörld ö", "wörld ö"),
    ],
)
def test_what_may_begin_a_stop_string_is_held_back(local_model, text, stops, shown, whole):
    """Token by token, until the token that completes the stop; then the rest of the answer."""
    stream, sent = Stream(local_model.tokenizer, stops), ""
    for token in local_model.tokenizer.encode(text):
        piece = stream.push([token])
        sent += piece if not any(stop in sent + piece for stop in stops) else ""
        assert whole.startswith(sent) and "\ufffd" not in sent
        if len(sent) == len(shown):
            break
    assert sent == shown and sent + stream.finish(whole) == whole
