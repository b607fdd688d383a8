"""Judges that are rules, not models: what a `Generator` may be, with an answer known in advance."""

import re
from collections.abc import Iterable, Iterator

from selfevo_jax.sample.protocol import Completion, LabelRequest, Labels, Request

SURE = (-0.01, -6.0)  # log-probabilities of the label meant and of the other one
BLOCK = r"<{0}>\n(.*?)\n</{0}>"


def shown(messages, field: str) -> str:
    """The text of a field of a judge's prompt."""
    return re.search(BLOCK.format(field), messages[-1]["content"], re.DOTALL)[1]


class Rule:
    """`choose(messages)` gives the place (0 or 1) of the label that the judge means."""

    def __init__(self, choose, reply=None) -> None:
        self.choose, self.reply = choose, reply or (lambda request: "Output (a)")
        self.asked: list[Request | LabelRequest] = []

    def labels(self, requests: Iterable[LabelRequest]) -> Iterator[Labels]:
        for request in requests:
            self.asked.append(request)
            yield Labels(request.id, SURE if self.choose(request.messages) == 0 else SURE[::-1])

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            self.asked.append(request)
            yield Completion(request.id, self.reply(request), (), (), "stop", 0)

    def score(self, requests):
        raise AssertionError("judges do not score")


class Wordless:
    """A server without label probabilities: text is all it gives."""

    def __init__(self, reply) -> None:
        self.reply = reply

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            yield Completion(request.id, self.reply(request), (), (), "stop", 0)

    def score(self, requests):
        raise AssertionError("judges do not score")


def longer(messages) -> int:
    return int(len(shown(messages, "output_a")) < len(shown(messages, "output_b")))


def always_a(messages) -> int:
    return 0
