"""Checkers against hand-written cases, the published SQuAD rules, and hostile text."""

import random
import re
import string
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfevo_jax.judge import checkers
from selfevo_jax.judge.checkers import choice_letter, exact_match, exact_number, final_answer


@pytest.mark.parametrize(
    ("text", "gold", "correct"),
    [
        ("15", "5", False),
        ("The answer is 15.", "5", False),
        ("1,000", "1000", True),
        ("1000", "1,000", True),
        ("$5.00", "5", True),
        ("It costs $5.00.", "5", True),
        ("5 dollars", "$5.00", True),
        ("-4", "4", False),
        ("4 - 1 - 7 = -4", "-4", True),
        ("4 - 8 =-4", "-4", True),
        ("The result is \u22124", "-4", True),
        ("10-3", "3", True),  # the minus is an operator: the last number is 3
        ("so 3 + 4 = 7\n#### 7", "7", True),
        ("#### 7\nDone with question 2", "7", True),
        (r"thus \boxed{\frac{3}{4}} and \boxed{12}", "12", True),
        (r"\boxed{1,234.50}", "1234.5", True),
        ("<answer>9</answer> (I checked 3 times)", "9", True),
        ("<think>maybe 8</think>9", "9", True),
        ("The answer is 12. I used 3 steps.", "12", True),
        ("**Answer:** 42", "42", True),
        ("Answer: **42**", "42", True),
        ("He has 7 apples.\nI hope this helps!", "7", True),
        ("3/4", "0.75", True),
        ("3/4", "4", False),
        ("1/0", "0", False),
        ("1e3", "1000", True),
        ("1e5", "5", False),
        (".5", "0.5", True),
        ("0.10", "0.1", True),
        ("50%", "50", True),
        ("1,2,3", "3", True),
        ("1,2,3", "123", False),
        ("12,34", "1234", False),
        ("no idea", "5", False),
        ("", "5", False),
        ("The answer is $18 for 2 days", "18", True),
        ("The answer is $18 for 2 days", "2", False),
        ("Answer: 5 apples, 3 of which are red", "5", True),
        ("So\n#### 12 (of 40)", "12", True),
        ("The answer is **7** of 9.", "7", True),
        ("The answer is 3 + 4 = 7", "7", True),
        ("The answer is 16 - 3 = $13.", "13", True),
        ("The answer is 3 times 4, which is 12", "12", True),
        ("The answer is that 2 hens lay 18 eggs", "18", True),
        ("2 of 40\n\\boxed{12 of 40}", "40", True),  # a mark that says where the answer ends
        ("1\u00bd", "1", False),
        ("1\u00bd", "1.5", True),
        ("The answer is 2 \u00be cups", "11/4", True),
        ("-\u2153", "-1/3", True),
    ],
)
def test_exact_number(text, gold, correct):
    """7.1 i: the whole number is compared, never a part of it."""
    check = exact_number(text, gold)
    assert check.correct is correct
    assert check.score == float(correct)


def test_no_number_is_unparsed_and_a_gold_without_number_is_an_error():
    assert exact_number("no idea", "5").parsed is None
    assert exact_number("it is 6", "5").parsed == "6"
    with pytest.raises(ValueError, match="holds no number"):
        exact_number("5", "five")


@given(
    st.integers(-(10**12), 10**12), st.sampled_from(["{}", "{:,}", "The answer is {:,}.", "= {}"])
)
def test_every_integer_is_read_back(value, form):
    check = exact_number(form.format(value), str(value))
    assert check.correct
    assert checkers.number_value(check.parsed) == value


@given(st.fractions(max_denominator=10**6))
def test_fractions_keep_their_exact_value(value):
    assert checkers.number_value(f"{value.numerator}/{value.denominator}") == value


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_different_integers_never_match(one, two):
    assert exact_number(f"So it is {one}", f"{two}").correct is (one == two)


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("reasoning\n<answer> blue </answer> trailing", "blue"),
        ("<answer>a</answer><answer>b</answer>", "b"),
        ("<answer>1 < 2 > 1.</answer>", "1 < 2 > 1."),
        ("<answer>a</answer> then <answer>b", "a"),
        ("</answer>7<answer>", "</answer>7<answer>"),
        (r"so \boxed{x^{2}+1} holds", "x^{2}+1"),
        ("a\n#### 12 \nb", "12"),
        ("I think the answer is **Paris**. It is nice.", "Paris"),
        ("one\n\n two \n\n", "two"),
        ("$x$", "x"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_final_answer(text, span):
    assert final_answer(text) == span


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(C)", "C"),
        ("**D**", "D"),
        ("B. because it is blue", "B"),
        ("The answer is (C), not D.", "C"),
        ("Answer: A", "A"),
        ("A dog is B", "B"),
        ("A or B", None),
        ("I do not know", None),
        ("None of Bears", None),
        ("E", None),
        ("", None),
    ],
)
def test_choice_letter(text, parsed):
    check = choice_letter(text, parsed or "A")
    assert check.parsed == parsed
    assert check.correct is (parsed is not None)


def test_choice_letter_of_the_wrong_option_is_wrong():
    assert choice_letter("The answer is C", "B") == checkers.Check(0.0, False, "C")


@pytest.mark.parametrize(
    ("text", "golds", "correct"),
    [
        ("The answer is Paris!", ["paris"], True),
        ("  New   York ", ["new york"], True),
        ("\uff30aris", ["Paris"], True),
        ("Parisian", ["Paris"], False),
        ("Not Paris", ["Paris"], False),
        ("", [""], True),
    ],
)
def test_exact_match(text, golds, correct):
    assert exact_match(text, golds).correct is correct


@pytest.mark.parametrize(
    ("text", "gold", "correct", "parsed"),
    [
        ("Yes.", True, True, "yes"),
        ("No, it is not.", False, True, "no"),
        ("The passage says so. True", True, True, "yes"),
        ("I know nothing", True, False, None),
        ("The answer is no. Yes would be wrong.", False, True, "no"),
        ("Yesterday", True, False, None),
    ],
)
def test_yes_no(text, gold, correct, parsed):
    check = checkers.yes_no(text, gold)
    assert (check.correct, check.parsed) == (correct, parsed)


# SQuAD 2.0's published rules, written a second time and differently: character by character.
def _reference_tokens(text):
    kept = "".join(" " if c.isspace() else c for c in text.lower() if c not in string.punctuation)
    return [w for w in re.split(r" +", re.sub(r"\b(?:a|an|the)\b", " ", kept)) if w]


def _reference_squad(answer, golds):
    golds = [g for g in golds if _reference_tokens(g)] or [""]
    best = [0.0, 0.0]
    for gold in golds:
        mine, theirs = _reference_tokens(answer), _reference_tokens(gold)
        best[0] = max(best[0], float(mine == theirs))
        if not mine or not theirs:
            best[1] = max(best[1], float(mine == theirs))
            continue
        rest, shared = list(theirs), 0
        for word in mine:
            if word in rest:
                rest.remove(word)
                shared += 1
        best[1] = max(best[1], 2 * shared / (len(mine) + len(theirs)))
    return tuple(best)


def test_squad_scores_on_2000_random_and_adversarial_answers():
    generator = random.Random(0)
    words = ["the", "a", "An", "Theatre", "cat,", "cat", "(dog)", "it's", "U.S.", "$5", "—", "",
             "  ", "1,000", "the-cat", "\u00e9t\u00e9", "\n", "a.", "New", "York"]  # fmt: skip
    for _ in range(2000):
        make = lambda: " ".join(generator.choices(words, k=generator.randint(0, 6)))  # noqa: E731
        answer, golds = make(), [make() for _ in range(generator.randint(0, 3))]
        assert checkers.squad_scores(answer, golds) == pytest.approx(
            _reference_squad(answer, golds), abs=1e-12
        )


def test_squad_scores_by_hand():
    assert checkers.squad_scores("The Cat!", ["cat"]) == (1.0, 1.0)
    assert checkers.squad_scores("big cat", ["cat"]) == (0.0, pytest.approx(2 / 3))
    assert checkers.squad_scores("", []) == (1.0, 1.0)
    assert checkers.squad_scores("cat", []) == (0.0, 0.0)
    assert checkers.squad_scores("the", ["cat"]) == (0.0, 0.0)


HOSTILE = [
    "9" * 2_000_000,
    "1," * 1_000_000,
    "." * 2_000_000,
    "answer is " * 200_000,
    "<answer>" * 200_000,
    "\\boxed{" * 200_000,
    "#" * 2_000_000,
    "#### " * 300_000,
    "-" * 1_000_000 + "1",
    "$" * 2_000_000,
    "A " * 1_000_000,
    "1e999999999",
    "1/" * 1_000_000,
    "\ud800\u202e\x00" * 100_000,
    "__import__('os').system('echo no')",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_replies_cost_little_and_never_raise(text):
    start = time.perf_counter()
    assert not exact_number(text, "31337").correct
    assert not exact_match(text, ["31337"]).correct
    assert not checkers.squad_scores(text, ["31337"])[0]
    choice_letter(text, "B")
    checkers.yes_no(text, True)
    assert time.perf_counter() - start < 2.0


def test_only_the_end_of_a_reply_is_read():
    assert exact_number("7 " + "." * checkers.TAIL, "7").parsed is None
    assert exact_number("- " * checkers.TAIL + "7", "7").correct


@given(st.text(max_size=300))
def test_any_text_gives_a_verdict(text):
    check = exact_number(text, "7")
    if check.correct:
        assert checkers.number_value(check.parsed) == Fraction(7)
    assert choice_letter(text, "A").score in (0.0, 1.0)
    assert exact_match(text, [final_answer(text)]).correct
