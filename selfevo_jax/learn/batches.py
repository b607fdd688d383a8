"""Batches without waste: examples packed into rows, prompts stored once, targets listed.

A batch is a fixed number of examples, picked by an index permutation from (seed, epoch), so any
step can be rebuilt from its number alone, on any number of hosts. Its examples are packed
first-fit-decreasing into rows of one static length. An example is one segment of a row: its
prompt once (branch 0), then each completion as a branch of its own whose positions go on from
the prompt's end. What is predicted is an explicit list per row: (place of the hidden state,
token, sequence it belongs to).

A token that predicts nothing is not computed: each completion stops before its last loss token.

Axes: b row, t place, m target, e example slot of a row, k completion of an example.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import flax.struct
import numpy as np

from selfevo_jax.errors import UserError
from selfevo_jax.models.attention import BLOCK
from selfevo_jax.text.render import TokenExample, TokenSpan


@flax.struct.dataclass
class MicroBatch:
    """Rows of one static shape, ready for the device. `sequences_bm` is slot * k + completion;
    `weights_bm` is 0 for padding; `examples_be` indexes the data, -1 where a slot is empty;
    `reach`: see `Layout`."""

    tokens_bt: np.ndarray
    positions_bt: np.ndarray
    segments_bt: np.ndarray
    branches_bt: np.ndarray
    predict_from_bm: np.ndarray
    targets_bm: np.ndarray
    sequences_bm: np.ndarray
    weights_bm: np.ndarray
    examples_be: np.ndarray
    counts_bek: np.ndarray
    reach: int | None = flax.struct.field(pytree_node=False, default=None)


@dataclass(frozen=True)
class Shape:
    """The one static shape of a run: rows of a micro-batch, row length, targets and example slots
    of a row, completions of an example, `reach` as in `Layout`."""

    rows: int
    length: int
    targets: int
    slots: int
    completions: int
    reach: int


@dataclass(frozen=True)
class Packed:
    """An example as it lies in a row, relative to its first place. `ranks` counts the loss tokens
    of its completion before a target, `sequences` is the completion's number."""

    tokens: np.ndarray
    positions: np.ndarray
    branches: np.ndarray
    predict_from: np.ndarray
    targets: np.ndarray
    sequences: np.ndarray
    ranks: np.ndarray
    counts: np.ndarray

    @property
    def length(self) -> int:
        """Places it takes in a row."""
        return len(self.tokens)


def pack_example(example: TokenExample) -> Packed:
    """Lays an example out: the prompt, then its completions as branches 1, 2, ...

    Loss tokens of the prompt (assistant turns in a longer conversation) belong to completion 0.
    """
    spans = [_prompt_targets(example.prompt)]
    tokens, positions, branches = [example.prompt.tokens], [np.arange(_size(example.prompt))], [0]
    start = prompt_length = _size(example.prompt)
    for number, completion in enumerate(example.completions):
        used = _last_target(completion)
        spans.append(_completion_targets(completion, number, prompt_length, start))
        tokens.append(completion.tokens[:used])
        positions.append(prompt_length + np.arange(used))
        branches.append(number + 1)
        start += used
    columns = [np.concatenate(column).astype(np.int32) for column in zip(*spans, strict=True)]
    sizes = [len(part) for part in tokens]
    return Packed(
        np.concatenate(tokens).astype(np.int32),
        np.concatenate(positions).astype(np.int32),
        np.repeat(branches, sizes).astype(np.int32),
        *columns,
        np.bincount(columns[2], minlength=len(example.completions)).astype(np.int32),
    )


def _prompt_targets(prompt: TokenSpan) -> tuple[np.ndarray, ...]:
    places = np.flatnonzero(prompt.loss)
    places = places[places > 0]  # nothing predicts the first token
    return places - 1, prompt.tokens[places], np.zeros_like(places), np.arange(len(places))


def _completion_targets(
    span: TokenSpan, number: int, prompt_length: int, start: int
) -> tuple[np.ndarray, ...]:
    places = np.flatnonzero(span.loss)
    # The first token of every branch is predicted by the last token of the prompt.
    predict_from = np.where(places == 0, prompt_length - 1, start + places - 1)
    return predict_from, span.tokens[places], np.full_like(places, number), np.arange(len(places))


def _size(span: TokenSpan) -> int:
    return len(span.tokens)


def _last_target(span: TokenSpan) -> int:
    targets = np.flatnonzero(span.loss)
    return int(targets[-1]) if len(targets) else 0  # the absent side of a label alone


def check_examples(
    examples: Sequence[TokenExample], *, pairs: bool, max_length: int, labels: bool = False
) -> None:
    """Refuses what must not be trained on, naming the ids. Raises `UserError`.

    pairs       examples have a chosen and a rejected completion, in this order
    labels      one of the two may be empty (`labels.labelled`)
    max_length  the model's context, in tokens of the prompt and one completion
    """
    if not examples:
        raise UserError("there is nothing to train on: the list of examples is empty")
    faults: dict[str, list[str]] = {}
    seen: set[str] = set()
    for example in examples:
        fault = _fault(example, pairs, labels, max_length)
        fault = "a repeated id" if example.id in seen else fault
        seen.add(example.id)
        if fault:
            faults.setdefault(fault, []).append(example.id)
    if faults:
        lines = [f"{fault}: {len(ids)} ({_few(ids)})" for fault, ids in faults.items()]
        raise UserError(
            f"of {len(examples)} training examples some cannot be trained on; "
            "mend or drop those with " + "; ".join(lines)
        )


def _fault(example: TokenExample, pairs: bool, labels: bool, max_length: int) -> str | None:
    completions = example.completions
    if labels and len(completions) == 2:
        completions = tuple(span for span in completions if _size(span))
    if _size(example.prompt) == 0:
        return "an empty prompt"
    if not completions or any(_size(span) == 0 for span in completions):
        return "an empty completion"
    if any(not span.loss.any() for span in completions):
        return "a completion without loss tokens"
    if max(map(_size, completions)) + _size(example.prompt) > max_length:
        return f"more than the model's {max_length} tokens"
    if not pairs:
        return None
    if len(example.completions) != 2:
        return "not exactly two completions (chosen, rejected)"
    if example.prompt.loss.any():
        return "loss tokens in the prompt of a pair"
    if len(completions) == 2 and np.array_equal(*(span.tokens for span in completions)):
        return "equal chosen and rejected"
    return None


def _few(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")


def example_hash(example: TokenExample) -> str:
    """SHA-256 over the tokens and loss masks of an example (not its id)."""
    digest = hashlib.sha256()
    for span in (example.prompt, *example.completions):
        for array in (span.tokens.astype("<i4"), span.loss.astype(np.uint8)):
            digest.update(len(array).to_bytes(8, "little"))
            digest.update(array.tobytes())
    return digest.hexdigest()


def first_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices grouped so that a group's sizes sum to at most `capacity`; ties keep their order."""
    groups: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        size = sizes[index]
        place = next((g for g, free in enumerate(room) if free >= size), None)
        if place is None:
            groups.append([])
            room.append(capacity)
            place = len(groups) - 1
        groups[place].append(index)
        room[place] -= size
    return groups


class Batches:
    """All batches of a run: step -> micro-batches of one static shape.

    batch_size   examples of a batch (an epoch's last batch holds what is left)
    rows         rows of a micro-batch
    row_length   tokens of a row; None chooses the length that wastes least
    ld_alpha     weight of a pair's loss tokens beyond the shorter completion (LD-DPO)
    row_cost     cost of a row of a given length, for choosing it (default: its length)
    parts        row lengths are multiples of it (the mesh's sequence axis)
    """

    def __init__(
        self,
        examples: Sequence[TokenExample],
        *,
        batch_size: int,
        steps: int,
        seed: int,
        rows: int = 1,
        row_length: int | None = None,
        ld_alpha: float = 1.0,
        row_cost: Callable[[int], float] = float,
        parts: int = 1,
    ):
        self.packed = [pack_example(example) for example in examples]
        self._ids = [example.id for example in examples]
        self._batch_size, self._seed, self._ld_alpha = batch_size, seed, ld_alpha
        self._row_cost, self._parts = row_cost, parts
        # Two epochs are kept: batches are made ahead of the step that is reported.
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)
        self.steps = steps
        length = self._row_length(row_length, rows)
        self.shape = self._shape(length, rows)

    @property
    def per_epoch(self) -> int:
        """Steps of one pass over the data."""
        return steps_per_epoch(len(self.packed), self._batch_size)

    def examples(self, step: int) -> np.ndarray:
        """Indices of the examples of a batch, in the epoch's shuffled order."""
        epoch, batch = divmod(step, self.per_epoch)
        return self._order(epoch)[batch * self._batch_size : (batch + 1) * self._batch_size]

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self.packed))

    def ids(self, step: int) -> list[str]:
        """The ids of the examples of a batch."""
        return [self._ids[index] for index in self.examples(step)]

    def micro_batches(self, step: int) -> Iterator[MicroBatch]:
        """A batch's packed rows, `shape.rows` at a time; the last is filled with empty rows."""
        rows = self._groups(self.examples(step), self.shape.length)
        for start in range(0, len(rows), self.shape.rows):
            yield self._fill(rows[start : start + self.shape.rows])

    def tokens(self, step: int) -> int:
        """Tokens that a batch computes: prompts once, padding not counted."""
        return sum(self.packed[index].length for index in self.examples(step))

    def _groups(self, chosen: Sequence[int], length: int) -> list[list[int]]:
        groups = first_fit_decreasing([self.packed[index].length for index in chosen], length)
        return [[int(chosen[i]) for i in group] for group in groups]

    def _row_length(self, asked: int | None, rows: int) -> int:
        longest = max(range(len(self.packed)), key=lambda i: self.packed[i].length)
        need = self.packed[longest].length
        if asked is None:
            return self._cheapest_length(need, rows)
        if asked < need:
            raise UserError(
                f"learn.row_length is {asked} but example {self._ids[longest]} takes {need} "
                "tokens: raise it, or leave it to be chosen"
            )
        if asked % self._parts:
            raise UserError(
                f"learn.row_length is {asked}, which the mesh's sequence axis does not split into "
                f"{self._parts} equal parts: give a multiple of {self._parts}"
            )
        return asked

    def _cheapest_length(self, need: int, rows: int) -> int:
        """Of some lengths, the one whose first batches cost least: multiples of the longest
        example up to 4, and the largest batch's tokens in 1, 2, ... rows."""
        batches = [self.examples(step) for step in range(min(self.steps, self.per_epoch, 32))]
        most = max(sum(self.packed[index].length for index in batch) for batch in batches)
        exact = {need * factor for factor in (1, 1.25, 1.5, 2, 2.5, 3, 4)}
        exact |= {most / parts for parts in range(1, 9) if need <= most / parts <= 4 * need}
        unit = math.lcm(32, self._parts)
        candidates = sorted(_round_up(math.ceil(length), unit) for length in exact)

        def cost(length: int) -> float:
            count = sum(_round_up(len(self._groups(batch, length)), rows) for batch in batches)
            return count * self._row_cost(length)

        return min(candidates, key=cost)

    def _shape(self, length: int, rows: int) -> Shape:
        """Room for the fullest row of the whole run, so that one compilation serves it."""
        targets = slots = reach = 1
        for step in range(self.steps):
            for group in self._groups(self.examples(step), length):
                row = [self.packed[i] for i in group]
                targets = max(targets, sum(len(packed.targets) for packed in row))
                slots, reach = max(slots, len(row)), max(reach, _reach(row))
        completions = max(len(packed.counts) for packed in self.packed)
        return Shape(rows, length, _round_up(targets, 32), slots, completions, reach)

    def _fill(self, groups: list[list[int]]) -> MicroBatch:
        micro = _empty(self.shape)
        for row, group in enumerate(groups):
            place = target = 0
            for slot, index in enumerate(group):
                packed = self.packed[index]
                self._put(micro, packed, row, slot, place, target)
                micro.examples_be[row, slot] = index
                place += packed.length
                target += len(packed.targets)
        return micro

    def _put(
        self, micro: MicroBatch, packed: Packed, row: int, slot: int, place: int, target: int
    ) -> None:
        places = np.s_[row, place : place + packed.length]
        micro.tokens_bt[places] = packed.tokens
        micro.positions_bt[places] = packed.positions
        micro.segments_bt[places] = slot + 1
        micro.branches_bt[places] = packed.branches
        listed = np.s_[row, target : target + len(packed.targets)]
        micro.predict_from_bm[listed] = place + packed.predict_from
        micro.targets_bm[listed] = packed.targets
        micro.sequences_bm[listed] = slot * self.shape.completions + packed.sequences
        micro.weights_bm[listed] = np.where(packed.ranks < packed.counts.min(), 1.0, self._ld_alpha)
        micro.counts_bek[row, slot, : len(packed.counts)] = packed.counts


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Batches of one pass over the data; the last may be smaller."""
    return -(-examples // batch_size)


def _reach(row: Sequence[Packed]) -> int:
    """Of how many blocks of keys the neediest block of queries in a row sees something."""
    sees: dict[int, set[int]] = {}
    place = 0
    for packed in row:
        starts = np.flatnonzero(np.diff(packed.branches, prepend=-1)).tolist()
        ends = [*starts[1:], packed.length]
        prompt = place + ends[0] - 1
        for start, end in zip(starts, ends, strict=True):
            first, last = (place + start) // BLOCK, (place + end - 1) // BLOCK
            for block in range(first, last + 1):
                own, shared = range(first, block + 1), range(place // BLOCK, prompt // BLOCK + 1)
                sees.setdefault(block, set()).update(own, shared if start else ())
        place += packed.length
    return max(map(len, sees.values()))


def _empty(shape: Shape) -> MicroBatch:
    def zeros(*sizes: int, dtype=np.int32) -> np.ndarray:
        return np.zeros((shape.rows, *sizes), dtype)

    places = [zeros(shape.length) for _ in range(4)]
    listed = [zeros(shape.targets) for _ in range(3)]
    return MicroBatch(
        *places,
        *listed,
        weights_bm=zeros(shape.targets, dtype=np.float32),
        examples_be=zeros(shape.slots) - 1,
        counts_bek=zeros(shape.slots, shape.completions, dtype=np.float32),
        reach=shape.reach,
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
