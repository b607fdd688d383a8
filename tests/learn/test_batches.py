"""Packing: every loss token predicted once from the right place, nothing else, same every time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfevo_jax.errors import UserError
from selfevo_jax.learn.batches import (
    Batches,
    check_examples,
    example_hash,
    first_fit_decreasing,
    pack_example,
)
from selfevo_jax.text.render import TokenExample


def test_a_pair_by_hand(make_example):
    """Prompt 1 2 3, chosen 4 5, rejected 6 7 8: last completion tokens are targets, not inputs."""
    packed = pack_example(make_example("x", [1, 2, 3], [4, 5], [6, 7, 8]))
    assert packed.tokens.tolist() == [1, 2, 3, 4, 6, 7]
    assert packed.positions.tolist() == [0, 1, 2, 3, 3, 4]
    assert packed.branches.tolist() == [0, 0, 0, 1, 2, 2]
    assert packed.targets.tolist() == [4, 5, 6, 7, 8]
    assert packed.predict_from.tolist() == [
        2,
        3,
        2,
        4,
        5,
    ]  # both branches start from the prompt's end
    assert packed.sequences.tolist() == [0, 0, 1, 1, 1]
    assert packed.counts.tolist() == [2, 3]


def test_loss_masks_by_hand(make_span):
    """Only masked tokens are targets: inside a completion, and in a prompt's assistant turn."""
    prompt = make_span([1, 2, 3], [True, True, False])
    completion = make_span([4, 5, 6, 7], [False, True, True, False])
    packed = pack_example(TokenExample("x", prompt, (completion,)))
    assert packed.targets.tolist() == [2, 5, 6]  # the first token of all is predicted by nothing
    assert packed.predict_from.tolist() == [0, 3, 4]
    assert packed.tokens.tolist() == [1, 2, 3, 4, 5]
    assert packed.counts.tolist() == [3]


def batches(examples, **options):
    return Batches(examples, **{"batch_size": 5, "steps": 6, "seed": 3, "rows": 2, **options})


def test_prompt_tokens_and_padding_get_no_weight(pairs):
    """The targets with weight are the completions' tokens, each once, and nothing else."""
    plan = batches(pairs)
    listed = []
    for step in range(plan.per_epoch):
        for micro in plan.micro_batches(step):
            for row in range(plan.shape.rows):
                on = micro.weights_bm[row] > 0
                slots = micro.sequences_bm[row][on] // 2, micro.sequences_bm[row][on] % 2
                ids = micro.examples_be[row][slots[0]]
                listed += list(zip(ids, slots[1], micro.targets_bm[row][on], strict=True))
    expected = [
        (i, k, token)
        for i, pair in enumerate(pairs)
        for k, completion in enumerate(pair.completions)
        for token in completion.tokens
    ]
    assert sorted(listed) == sorted(expected)


def test_an_epoch_holds_each_example_once_and_epochs_differ(pairs):
    plan = batches(pairs)
    epochs = [np.concatenate([plan.examples(e * 3 + b) for b in range(3)]) for e in range(2)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(12))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()


def test_any_step_is_rebuilt_from_its_number(pairs):
    """Random access: step 4 is the same after steps 0..3 as in a fresh object."""
    one, other = batches(pairs), batches(pairs)
    for step in range(4):
        list(one.micro_batches(step))
    for mine, theirs in zip(one.micro_batches(4), other.micro_batches(4), strict=True):
        for a, b in zip(mine.__dict__.values(), theirs.__dict__.values(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_one_shape_serves_the_run(pairs):
    plan = batches(pairs)
    shapes = {
        (m.tokens_bt.shape, m.targets_bm.shape, m.examples_be.shape)
        for step in range(plan.steps)
        for m in plan.micro_batches(step)
    }
    assert len(shapes) == 1


def test_ld_alpha_weighs_the_longer_tail(make_example):
    plan = batches(
        [make_example("x", [1, 2], [3], [4, 5, 6])], batch_size=1, steps=1, rows=1, ld_alpha=0.25
    )
    (micro,) = plan.micro_batches(0)
    assert micro.weights_bm[0, :4].tolist() == [1, 1, 0.25, 0.25]
    assert micro.counts_bek[0, 0].tolist() == [1, 3]


def test_a_row_too_short_is_refused(pairs):
    with pytest.raises(UserError, match="row_length is 4 but example pair"):
        batches(pairs, row_length=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=40))
def test_first_fit_decreasing_loses_nothing(sizes):
    groups = first_fit_decreasing(sizes, 20)
    assert sorted(i for group in groups for i in group) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in group) <= 20 for group in groups)
    # Two half-empty rows would have been one.
    assert sum(sum(sizes[i] for i in group) <= 10 for group in groups) <= 1


@pytest.mark.parametrize(
    ("completions", "message"),
    [
        (([1, 2], [1, 2]), "equal chosen and rejected"),
        (([], [1]), "an empty completion"),
        (([1],), r"not exactly two completions \(chosen, rejected\)"),
        (([1], [2] * 30), "more than the model's 16 tokens"),
    ],
)
def test_bad_pairs_are_refused_by_id(make_example, completions, message):
    good = make_example("fine", [1], [2], [3])
    with pytest.raises(UserError, match=rf"{message}: 1 \(culprit\)"):
        check_examples(
            [good, make_example("culprit", [9], *completions)], pairs=True, max_length=16
        )


def test_examples_without_targets_prompts_or_own_ids_are_refused(make_example, make_span):
    silent = TokenExample("silent", make_span([1], False), (make_span([2, 3], False),))
    for culprits, message in [
        ([silent], "without loss tokens"),
        ([make_example("bare", [], [1])], "an empty prompt"),
        ([make_example("twin", [1], [2]), make_example("twin", [1], [3])], "a repeated id"),
        ([], "empty"),
    ]:
        with pytest.raises(UserError, match=message):
            check_examples(culprits, pairs=False, max_length=16)


def test_labels_in_the_prompt_of_a_pair_are_refused(make_example, make_span):
    fine = make_example("x", [1, 2], [3], [4])
    bad = TokenExample("bad", make_span([1, 2], [False, True]), fine.completions)
    with pytest.raises(UserError, match=r"loss tokens in the prompt of a pair: 1 \(bad\)"):
        check_examples([fine, bad], pairs=True, max_length=16)


def test_hash_sees_tokens_masks_and_borders(make_example, make_span):
    base = make_example("a", [1, 2], [3, 4])
    assert example_hash(base) == example_hash(make_example("another id", [1, 2], [3, 4]))
    others = [
        make_example("a", [1], [2, 3, 4]),
        make_example("a", [1, 2], [3], [4]),
        TokenExample("a", base.prompt, (make_span([3, 4], [True, False]),)),
    ]
    assert len({example_hash(e) for e in [base, *others]}) == 4
