"""What a task is: prompts of a split, and a check of a reply. One implementation per family."""

import difflib
import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol, TypeVar

from selfevo_jax.errors import UserError
from selfevo_jax.judge.checkers import Check
from selfevo_jax.records import Prompt

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
# Of a source without splits of its own, by question hash; the rest is for training. Settings are
# chosen on validation questions, so that those of "test" stay unseen until a figure is reported.
SHARES: dict[Split, float] = {"test": 0.25, "validation": 0.15}
# Another salt gives other splits: renew it when held-out questions were used to choose a setting.
SPLIT_SALT = "2"

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
        No question occurs in two splits, whatever the seeds. Raises UserError for an unknown
        split or when the source holds fewer than `n` different questions.
        """
        ...

    def check(self, prompt: Prompt, text: str) -> Check:
        """Mark the reply `text` to one of this task's prompts; never executes or trusts it."""
        ...

    def inputs(self) -> dict[str, str]:
        """What the questions come from: the content hash of each file, a library's version."""
        ...

    def sources(self) -> Sequence["Task"]:
        """The tasks whose code makes and marks the questions: itself, unless it mixes others."""
        ...


_OPTION = re.compile(r"^\(?([A-Z])[).] ", re.MULTILINE)


def letters_shown(prompt: Prompt) -> tuple[str, ...]:
    """The letters of the options that a question shows, "(A) ..." or "A. ..." in their own lines.

    Nothing where there are not two from A on, or where the right answer is none of them.
    """
    found = _OPTION.findall(prompt.messages[-1]["content"])
    letters = tuple(letter for place, letter in enumerate(found) if ord(letter) - ord("A") == place)
    right = (prompt.answer or "").strip("()")
    return letters if len(letters) == len(found) > 1 and right in letters else ()


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
    plain = " ".join(question.casefold().split())
    digest = hashlib.sha256(f"{SPLIT_SALT}\n{plain}".encode()).digest()
    place = int.from_bytes(digest[:8]) / 2**64
    for split, share in SHARES.items():
        if place < share:
            return split
        place -= share
    return "train"


def shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    """A seeded permutation, the same in every process."""
    order = list(items)
    random.Random(f"selfevo-shuffle-{seed}").shuffle(order)
    return order
