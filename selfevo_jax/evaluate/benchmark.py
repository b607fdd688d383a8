"""What a benchmark is: rows, a prompt, a way of asking, a way of reading what comes back.

A benchmark is declared in one small file of `benchmarks/`. Names, prompts, few-shot counts and
readings are those of EleutherAI's lm-evaluation-harness (0.4.13) where it has the task, so that
numbers can be compared; a wording of our own is a benchmark with a name of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from selfevo_jax.evaluate.data import Data, Row


@dataclass(frozen=True)
class Reading:
    """One way of reading one reply: the answer found in it (None: no answer) and its scores.

    `counts` says of how many things a score is the mean, where it is more than one.
    """

    parsed: str | None
    scores: Mapping[str, float]
    counts: Mapping[str, int] = field(default_factory=dict)


Read = Callable[[str, Row], Reading]


@dataclass(frozen=True)
class Generate:
    """The model writes a reply, greedily unless told otherwise.

    `readings` are by name ("strict-match"), the first being the one to look at. The reply ends
    before any of `stop`. `code` marks readings that run the reply, which needs the sandbox.
    `none` is the reply that means "there is no answer": its log-probability is asked for too, and
    exact match and F1 are also given at the threshold on it that is best.
    """

    readings: Mapping[str, Read]
    stop: tuple[str, ...] = ()
    max_new_tokens: int = 256
    code: bool = False
    none: str = ""


@dataclass(frozen=True)
class Choose:
    """The model's log-probability of each choice after the prompt; the largest is its answer.

    `acc` compares sums, `acc_norm` sums divided by the characters of the choice.
    """

    choices: Callable[[Row], Sequence[str]]
    gold: Callable[[Row], int]


@dataclass(frozen=True)
class Shots:
    """Where examples come from: given rows, or a split, its first rows or seeded ones.

    `file` is a file below the data folder, what is in it with its source, and what reads
    (description, examples) from it; where that has no examples, they are of the split.
    `spare`: one example more is drawn than shown, as the harness does for tasks that name no
    test split; without it the draws, and so the prompts, would differ.
    """

    split: str | None = None
    rows: tuple[Row, ...] = ()
    file: tuple[str, str, Callable[[Path], tuple[str, tuple[Row, ...]]]] | None = None
    pick: Literal["first", "random"] = "random"
    spare: bool = False


def _nothing(row: Row) -> str:
    return ""


@dataclass(frozen=True)
class Benchmark:
    """One task in one wording.

    `prompt` gives the question as the model reads it, `target` the answer as an example shows it
    and raises ValueError where a row's gold does not parse. `description` opens the prompt (the
    system turn of a chat), `prefix` begins the reply. `delimiter` stands between question and
    answer. Rows with equal `cluster` share a passage: errors are clustered by it. `groups` are
    names that stand for several benchmarks. A wording of our `own` is a chat wherever the model
    has a template, and its rows are drawn by the seed instead of from the top.
    """

    name: str
    data: Data
    prompt: Callable[[Row], str]
    target: Callable[[Row], str]
    ask: Generate | Choose
    split: str = "test"
    num_fewshot: int = 0
    shots: Shots = field(default_factory=Shots)
    description: Callable[[Row], str] = _nothing
    prefix: Callable[[Row], str] = _nothing
    delimiter: str = " "
    cluster: Callable[[Row], str] | None = None
    groups: tuple[str, ...] = ()
    own: bool = False
    version: str = "1"
