"""Every reasoning-gym dataset as a task: `get_task("rg:chain_sum", min_terms=2)`.

Questions are drawn in blocks whose seeds depend on the split, and each question is used only in
the split that its text hashes to, so train and test cannot share one. A prompt's meta holds the
block seed and index; a check makes the question again from them and lets the dataset score.
The dataset's own score counts as correct only at 1.0: several give 0.01 to 0.05 to wrong answers.

Replies are hostile, and the scorers of some datasets run `eval` or sympy's parser on them. Where
such a dataset has one right answer it is compared here; where it has many it is refused.
"""

import dataclasses
import hashlib
import importlib.metadata
import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.task import SPLITS, STYLES, Split, check_choice, nearest, split_of
from selfevo_jax.judge.checkers import Check, final_answer, last_number, number_value
from selfevo_jax.records import Prompt

BLOCK = 500  # questions per block seed
BARREN_BLOCKS = 12  # blocks without a new question after which a dataset counts as exhausted
PARSERS = ("auto", "number", "final", "text")
LONGEST_ANSWER = 4_000  # characters; longer parsed answers are wrong unless the gold is long too

# Datasets whose scorer runs the reply (the first three) or marks wrong replies as right (0.1.25:
# a prefix match, the first number found, truthiness, a substring). They have one right answer, so
# it is compared here; the value is the tolerance for numbers.
COMPARED_HERE = {
    "binary_matrix": 0.0, "spiral_matrix": 0.0, "string_insertion": 0.0,
    "coin_flip": 1e-4, "gsm_symbolic": 0.0, "game_of_life_halting": 0.0, "letter_jumble": 0.0,
}  # fmt: skip
EXECUTES_REPLIES = {
    "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication",
    "puzzle24", "simple_integration",
}  # fmt: skip
ORDERED_BY_STRING_HASH = {
    "isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder",
}  # fmt: skip
# Not-a-number passes some scorers' clamps as a full score, and huge exponents become infinite.
_NOT_FINITE = re.compile(
    r"(?<![a-z])(?:nan|inf(?:inity)?)[ij]?(?![a-z])|e[-+]?[0-9]{3,}", re.IGNORECASE
)
SCORER_ERRORS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError,
    ValueError,
)  # fmt: skip


class ReasoningGymTask:
    """One dataset with its settings, a prompt style and a way to read the answer from a reply.

    `parse`: "number" the reply's last number, "final" its final answer, "text" the whole reply;
    "auto" takes "number" where the right answer is a number and "final" elsewhere.
    """

    def __init__(self, name: str, style: str = "plain", parse: str = "auto", **settings: Any):
        self.dataset = name.removeprefix("rg:")
        self.name = f"rg:{self.dataset}"
        self.style, self.parse = style, parse
        self.settings = tuple(sorted(settings.items()))
        check_choice(style, STYLES, f"style for {self.name}")
        check_choice(parse, PARSERS, f"parse for {self.name}")
        _validate(self.dataset, settings)

    def prompts(self, split: Split, n: int | None = None, seed: int = 0) -> Iterator[Prompt]:
        """See `Task.prompts`; a generator has no end, so `n` must be given."""
        check_choice(split, SPLITS, "split")
        if n is None:
            raise UserError(f"{self.name} makes questions without end: say how many (n)")
        return self._draw(split, n, seed)

    def _draw(self, split: Split, n: int, seed: int) -> Iterator[Prompt]:
        seen: set[str] = set()
        block = barren = 0
        while barren < BARREN_BLOCKS:
            known = len(seen)
            block_seed = _block_seed(self.dataset, split, seed, block)
            for index in range(BLOCK):
                if len(seen) == n:
                    return
                entry = _entry(self.dataset, self.settings, block_seed, index)
                question = entry["question"]
                if split_of(question) == split and question not in seen:
                    seen.add(question)
                    yield self._prompt(entry, block_seed, index)
            block, barren = block + 1, barren + 1 if len(seen) == known else 0
        raise UserError(
            f"{self.name} gave only {len(seen)} different {split} questions with these settings, "
            f"{n} were asked for: ask for fewer or widen its settings"
        )

    def _prompt(self, entry: dict[str, Any], block_seed: int, index: int) -> Prompt:
        content = STYLES[self.style].format(question=entry["question"])
        return Prompt.make(
            task=self.name,
            messages=({"role": "user", "content": content},),
            answer=entry["answer"],
            meta={"seed": block_seed, "index": index},
        )

    def check(self, prompt: Prompt, text: str) -> Check:
        """See `Task.check`."""
        entry = _entry(self.dataset, self.settings, prompt.meta["seed"], prompt.meta["index"])
        if entry["question"] not in prompt.messages[-1]["content"]:
            raise UserError(
                f"{self.name}: prompt {prompt.id} cannot be made again; it comes from other "
                "settings or another reasoning-gym version: make the prompts anew"
            )
        parsed = self._parse(entry, text)
        if parsed is None:
            return Check(0.0, False, None)
        score = self._score(entry, parsed)
        return Check(score, score >= 1.0, parsed)

    def inputs(self) -> dict[str, str]:
        """See `Task.inputs`."""
        return {"reasoning-gym": importlib.metadata.version("reasoning-gym")}

    def sources(self) -> tuple["ReasoningGymTask"]:
        """See `Task.sources`."""
        return (self,)

    def _parse(self, entry: dict[str, Any], text: str) -> str | None:
        numeric = number_value(entry["answer"] or "") is not None
        if self.parse == "number" or (self.parse == "auto" and numeric):
            return _plain_number(last_number(text))
        return (text.strip() if self.parse == "text" else final_answer(text)) or None

    def _score(self, entry: dict[str, Any], parsed: str) -> float:
        """The dataset's score, 0 where its scorer breaks on the reply or is not to be trusted."""
        gold = entry["answer"] or ""
        if self.dataset in COMPARED_HERE:
            return float(_same(parsed, gold, COMPARED_HERE[self.dataset]))
        if len(parsed) > max(LONGEST_ANSWER, 2 * len(gold)):
            return 0.0
        if _NOT_FINITE.search(parsed) and not _NOT_FINITE.search(gold):
            return 0.0
        dataset = _dataset(self.dataset, self.settings, 0)
        try:
            return min(1.0, max(0.0, float(dataset.score_answer(parsed, entry))))
        except SCORER_ERRORS:
            return 0.0


def dataset_names() -> list[str]:
    """The task names `rg:...` of the installed reasoning-gym that can be used."""
    unusable = EXECUTES_REPLIES | {"composite"}
    return [f"rg:{name}" for name in sorted(_registry()) if name not in unusable]


def _registry() -> dict[str, Any]:
    from reasoning_gym.factory import DATASETS  # slow to import, so only when asked for

    return DATASETS


def _validate(name: str, settings: dict[str, Any]) -> None:
    """Refuse an unknown or unsafe dataset and wrong settings, each with the remedy."""
    check_choice(f"rg:{name}", [*dataset_names(), *map("rg:{}".format, EXECUTES_REPLIES)], "task")
    if name in EXECUTES_REPLIES:
        raise UserError(
            f"rg:{name}: reasoning-gym's scorer for it executes the model's reply as code; "
            "use another dataset"
        )
    if name in ORDERED_BY_STRING_HASH and not os.environ.get("PYTHONHASHSEED", "").isdigit():
        raise UserError(
            f"rg:{name} orders its questions by Python's string hash, so a run would not repeat: "
            "set the environment variable PYTHONHASHSEED=0"
        )
    known = {f.name for f in dataclasses.fields(_registry()[name][1])} - {"seed", "size"}
    for key in settings:
        if key not in known:
            raise UserError(f"rg:{name} has no setting {key!r}; {nearest(key, known)}")
    try:
        _dataset(name, tuple(sorted(settings.items())), 0)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"rg:{name} refuses the settings {settings}: {error}") from error


def _block_seed(dataset: str, split: Split, seed: int, block: int) -> int:
    """A 31-bit seed; datasets use seed + index, so neighbouring seeds would share questions."""
    digest = hashlib.sha256(f"{dataset}/{split}/{seed}/{block}".encode()).digest()
    return int.from_bytes(digest[:4]) & 0x7FFFFFFF


@lru_cache(maxsize=32)
def _dataset(name: str, settings: tuple[tuple[str, Any], ...], seed: int) -> Any:
    from reasoning_gym.factory import create_dataset

    with _pinned_randomness(seed):
        return create_dataset(name, size=BLOCK, seed=seed, **dict(settings))


@lru_cache(maxsize=4096)
def _entry(
    name: str, settings: tuple[tuple[str, Any], ...], seed: int, index: int
) -> dict[str, Any]:
    dataset = _dataset(name, settings, seed)
    with _pinned_randomness(seed + index):
        return dataset[index]


@contextmanager
def _pinned_randomness(seed: int) -> Iterator[None]:
    """Seed the global generators, which a few datasets use, and put them back afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _same(parsed: str, gold: str, tolerance: float) -> bool:
    """Equal words, whatever the case, or equal numbers within `tolerance`."""
    one, two = number_value(parsed), number_value(gold)
    if one is not None and two is not None:
        return abs(one - two) <= tolerance
    return parsed.casefold().split() == gold.casefold().split()


def _plain_number(written: str | None) -> str | None:
    """A written number without currency and thousands marks, as the scorers expect it."""
    if written is None:
        return None
    return re.sub(r"[,$€£+]", "", written).replace("\u2212", "-")
