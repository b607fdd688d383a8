"""What a task is: prompts of a split, and a check of a reply. One implementation per family."""

import difflib
import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol, TypeVar

from selfevo_jax.errors import UserError
from selfevo_jax.judge.checkers import Check
from selfevo_jax.records import Prompt

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
TEST_SHARE = 0.25  # of a source without splits of its own, by question hash

STYLES = {
    "plain": "{question}",
    "answer_only": "{question}\nReply with the answer only.",
    "steps": "{question}\nThink step by step, then end with a line 'Answer: ' and the answer.",
    "boxed": "{question}\nThink step by step, and put the final answer in \\boxed{{}}.",
}

Item = TypeVar("Item")


class Task(Protocol):
    """Questions with a rule that marks replies. Pure: the same arguments, the same prompts."""

    name: str

    def prompts(self, split: Split, n: int | None = None, seed: int = 0) -> Iterator[Prompt]:
        """Yield `n` different questions of a split, chosen by `seed`; all of a file when None.

        A smaller `n` gives a prefix of what a larger one gives, so that rounds can take turns.
        No question of "test" ever occurs in "train", whatever the seeds. Raises UserError for
        an unknown split or when the source holds fewer than `n` different questions.
        """
        ...

    def check(self, prompt: Prompt, text: str) -> Check:
        """Mark the reply `text` to one of this task's prompts; never executes or trusts it."""
        ...


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of an error message: the nearest known names, or else some of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known[:12])}"


def check_choice(value: str, known: Iterable[str], thing: str) -> None:
    """Raise a UserError that names the nearest right values unless `value` is among `known`."""
    known = list(known)
    if value not in known:
        raise UserError(f"unknown {thing} {value!r}; {nearest(value, known)}")


def split_of(question: str) -> Split:
    """The split a question belongs to, decided by its text alone (case and spacing aside).

    This is what keeps held-out questions out of training: a question that a generator yields
    under a train seed and again under a test seed is used in one of the two only.
    """
    digest = hashlib.sha256(" ".join(question.casefold().split()).encode()).digest()
    return "test" if int.from_bytes(digest[:8]) < TEST_SHARE * 2**64 else "train"


def shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    """A seeded permutation, the same in every process."""
    order = list(items)
    random.Random(f"selfevo-shuffle-{seed}").shuffle(order)
    return order
