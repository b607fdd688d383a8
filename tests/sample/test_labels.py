"""Label probabilities against the uncached model; what labels may be."""

import random

import numpy as np
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.models.attention import Layout
from selfevo_jax.models.llama import forward, logits
from selfevo_jax.sample.protocol import LabelRequest, Request, SamplingParams, ScoreRequest
from selfevo_jax.text.render import render_prompt

WORDS = "the quick brown fox jumps over a lazy dog how many ducks are there in red barn".split()


def asked(seed: int) -> LabelRequest:
    rng = random.Random(seed)
    text = " ".join(rng.choices(WORDS, k=rng.choice([3, 3, 12, 40])))
    common = {"role": "system", "content": "a prompt is read once and then shared " * 4}
    messages = [common, {"role": "user", "content": text}]
    return LabelRequest(f"l{seed}", messages, ("a", "b", "xyz")[: rng.choice([2, 3])], "verdict: ")


def uncached(tiny, request: LabelRequest) -> np.ndarray:
    """Log-softmax at the last place of prompt and prefix, in float64."""
    prompt = render_prompt(tiny.tokenizer, request.messages, request.prefix)
    layout = Layout.plain(np.ones((1, len(prompt)), bool))
    hidden = forward(tiny.config, tiny.params, np.array([prompt]), layout)[0, -1]
    scores_v = np.asarray(logits(tiny.config, tiny.params, hidden), np.float64)
    return scores_v - np.log(np.exp(scores_v - scores_v.max()).sum()) - scores_v.max()


def test_labels_get_the_full_softmax_in_the_order_of_requests(tiny):
    requests = [asked(seed) for seed in range(30)]
    found = list(tiny.generator().labels(iter(requests)))
    assert [labels.id for labels in found] == [request.id for request in requests]
    for request, labels in list(zip(requests, found, strict=True))[:8]:
        logps_v = uncached(tiny, request)
        ids = [tiny.tokenizer.encode(label)[0] for label in request.labels]
        np.testing.assert_allclose(labels.logps, logps_v[ids], atol=1e-4)
    alone = tiny.generator()
    for request, labels in zip(requests[:6], found, strict=False):
        assert next(alone.labels([request])) == labels  # to the bit, whatever the company


def test_a_common_prompt_is_read_once(tiny):
    requests = [asked(seed) for seed in range(30)]
    prompts = [render_prompt(tiny.tokenizer, r.messages, r.prefix) for r in requests]
    engine = tiny.generator(max_length=256)
    list(engine.labels(requests))
    assert engine.prompt_tokens_read < 0.6 * sum(map(len, prompts))


def test_what_a_label_was_read_after_leaves_the_other_prompts_as_they_were(tiny):
    """A short prompt that goes on differently from a long one shares the long one's row."""
    long, short = "how many ducks are there in the red barn", "how many ducks the"
    weigh = [LabelRequest("q", long, ("a", "b"))], [LabelRequest("q", short, ("a", "b"))]
    generate = [Request("g", long, SamplingParams(12, temperature=0.0))]
    score = [ScoreRequest("s", long, " fox", end=False)]
    engine = tiny.generator()
    fresh = [list(tiny.generator().labels(weigh[0])), list(tiny.generator().generate(generate)),
             list(tiny.generator().score(score))]  # fmt: skip
    list(engine.generate(generate))
    assert list(engine.labels(weigh[1])) == list(tiny.generator().labels(weigh[1]))
    assert [list(engine.labels(weigh[0])), list(engine.generate(generate)),
            list(engine.score(score))] == fresh  # fmt: skip


def test_labels_that_cannot_be_told_apart_are_refused(tiny):
    messages = [{"role": "user", "content": "how many"}]
    with pytest.raises(UserError, match="request q: labels 'thex' and 'they'"):
        list(tiny.generator().labels([LabelRequest("q", messages, ("thex", "they"))]))
    with pytest.raises(UserError, match="request long"):
        list(tiny.generator().labels([LabelRequest("long", "fox " * 900, ("a", "b"))]))
    for labels in ((), ("",), "ab", tuple(map(str, range(65)))):
        with pytest.raises(UserError, match="request 'q'"):
            LabelRequest("q", messages, labels)
