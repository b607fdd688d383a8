"""The engine as a server uses it: requests that come later, that are cancelled, that wait."""

import itertools

from selfevo_jax.sample.protocol import Request, SamplingParams, ScoreRequest


def short(number: int, tokens: int = 6) -> Request:
    sampling = SamplingParams(tokens, temperature=0.9)
    return Request(f"s{number}", (), sampling, seed=number, tokens=(5 + number % 50, 7, 9))


class Feed:
    """Ends whenever it has nothing, and goes on later."""

    def __init__(self) -> None:
        self.waiting: list[Request] = []

    def __iter__(self):
        return self

    def __next__(self) -> Request:
        if not self.waiting:
            raise StopIteration
        return self.waiting.pop(0)


def test_requests_may_come_while_others_are_decoded(tiny):
    alone = {c.id: c for c in tiny.generator().generate([short(i, 40) for i in range(8)])}
    feed, found = Feed(), {}
    feed.waiting = [short(0, 40)]
    for step, news in enumerate(tiny.generator().stream(feed)):
        if step < 7:
            feed.waiting.append(short(step + 1, 40))
        done = [one.completion for one in news if one.completion is not None]
        found |= {completion.id: completion for completion in done}
    assert found == alone


def test_the_pieces_of_a_stream_are_its_completion(tiny):
    pieces: dict[str, tuple] = {}
    for news in tiny.generator().stream(short(i, 5 + i) for i in range(9)):
        for one in news:
            pieces[one.request.id] = pieces.get(one.request.id, ()) + one.fresh
            if one.completion is not None:
                assert pieces[one.request.id] == one.completion.tokens


def test_a_cancelled_request_frees_its_row_and_changes_nothing_else(tiny):
    requests = [short(i, 120) for i in range(6)] + [short(i, 10) for i in range(6, 12)]
    expected = {c.id: c for c in tiny.generator().generate(requests)}
    gone = {"s1", "s3", "s7"}
    steps = [news for news in tiny.generator().stream(requests, lambda request: request.id in gone)]
    found = {one.completion.id: one.completion for news in steps for one in news if one.completion}
    assert found == {name: c for name, c in expected.items() if name not in gone}
    all_gone = list(tiny.generator().stream(requests, lambda request: True))
    assert len(all_gone) <= 2 and not any(all_gone)


def test_a_long_request_is_not_starved_by_short_ones(tiny):
    """It has a cache length of its own; the short ones never end."""
    generator = tiny.generator()
    long = Request("long", (), SamplingParams(5), seed=1, tokens=(8,) * 200)
    endless = itertools.chain([short(0)], [long], map(short, itertools.count(1)))
    for count, completion in enumerate(generator.generate(endless)):
        if completion.id == "long":
            break
        assert count < 200
    assert count > 5


def test_token_scores_while_others_are_decoded(tiny):
    generator = tiny.generator()
    request = ScoreRequest("a", [{"role": "user", "content": "how many ducks"}], "a red barn")
    (expected,) = tiny.generator().score([request])
    stream = generator.stream(short(i, 60) for i in range(6))
    plain = {c.id: c for c in tiny.generator().generate(short(i, 60) for i in range(6))}
    next(stream)
    text = tuple(tiny.tokenizer.encode("a red barn and a lazy dog")) + expected.tokens
    (score,) = generator.score_tokens([text], 3, [None])
    done = {one.request.id: one.completion for news in stream for one in news if one.completion}
    assert done == plain
    assert len(score.logps) == len(score.top) == len(text) - 1
    for logp, token, best in zip(score.logps, text[1:], score.top, strict=True):
        values = [value for _, value in best]
        assert len(best) == 3 and values == sorted(values, reverse=True)
        assert dict(best).get(token, logp) == logp <= values[0]
    (plain,) = generator.score_tokens([text], 0, [None])
    assert plain.logps == score.logps and plain.top == ((),) * len(plain.logps)
