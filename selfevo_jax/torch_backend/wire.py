"""Questions to a process that samples, and its answers, as lines of JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from selfevo_jax.evolve.policy import Policy, Role
from selfevo_jax.sample.protocol import (
    Completion,
    LabelRequest,
    Labels,
    Request,
    SamplingParams,
    Score,
    ScoreRequest,
)

# A method of `Generator`, what it takes, and what it gives.
KINDS = {
    "generate": (Request, Completion),
    "score": (ScoreRequest, Score),
    "labels": (LabelRequest, Labels),
}


def question(what: str, policy: Policy, requests: Iterable[Any]) -> str:
    """Requests to `policy` by a method of `Generator`."""
    asked = [dataclasses.asdict(request) for request in requests]
    return json.dumps(
        {"what": what, "policy": dataclasses.asdict(policy), "requests": asked}, default=str
    )


def read_question(line: str) -> tuple[str, Policy, list[Any]]:
    """The method, the policy and the requests of a `question`."""
    asked = json.loads(line)
    return asked["what"], policy_from(asked["policy"]), _made(asked, "requests", 0)


def answer(what: str, found: Iterable[Any]) -> str:
    """What a method of `Generator` gave."""
    answers = [dataclasses.asdict(one) for one in found]
    return json.dumps({"what": what, "answers": answers}, default=_plain)


def read_answer(line: str) -> list[Any]:
    """What an `answer` says."""
    return _made(json.loads(line), "answers", 1)


def policy_from(fields: Mapping[str, Any]) -> Policy:
    """A policy from its fields, as `dataclasses.asdict` gives them, the path as text."""
    adapter = None if fields["adapter"] is None else Path(fields["adapter"])
    role = None if fields["role"] is None else Role(**fields["role"])
    return Policy(fields["name"], fields["hash"], adapter, fields["parent"], role)


def _made(said: Mapping[str, Any], key: str, place: int) -> list[Any]:
    kind, made = KINDS[said["what"]][place], []
    for fields in said[key]:
        given = {name: _tuples(value) for name, value in fields.items()}
        if "sampling" in given:
            given["sampling"] = SamplingParams(**given["sampling"])
        made.append(kind(**given))
    return made


def _tuples(value: Any) -> Any:
    """JSON's lists as tuples, at any depth."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """A number of numpy's as Python's, which is the same number."""
    return value.item()
