"""Stop strings: cut by hand-worked examples, across token borders."""

import pytest

from selfevo_jax.sample.stops import cut_at_stop


def pieces(tokenizer, *texts):
    return [token for text in texts for token in tokenizer.encode(text)]


def test_a_stop_string_across_tokens_is_found(tiny_tokenizer):
    tokens = pieces(tiny_tokenizer, "abc X", "Y", "Z rest")
    text, kept = cut_at_stop(tiny_tokenizer, tokens, len(tokens), ["XYZ"])
    assert text == "abc "
    assert "abc ".startswith(tiny_tokenizer.decode(tokens[:kept]))
    assert "X" in tiny_tokenizer.decode(tokens[: kept + 1])


@pytest.mark.parametrize("fresh", [1, 2, 5, 9])
def test_it_does_not_matter_how_many_tokens_are_looked_at_together(tiny_tokenizer, fresh):
    tokens = [token for char in "q1b2abcz" for token in tiny_tokenizer.encode(char)]
    found = None
    for end in range(fresh, len(tokens) + fresh, fresh):
        seen = tokens[:end]
        found = found or cut_at_stop(tiny_tokenizer, seen, fresh, ["abc", "b2ab"])
    assert found == ("q1", 2)  # "b2ab" is complete first, although "abc" comes by too


def test_the_earlier_stop_wins_when_one_token_completes_two(tiny_tokenizer):
    tokens = [token for char in "xaab" for token in tiny_tokenizer.encode(char)]
    assert cut_at_stop(tiny_tokenizer, tokens, 4, ["b", "aab"]) == ("x", 1)


def test_no_stop_and_an_empty_answer(tiny_tokenizer):
    tokens = tiny_tokenizer.encode("hello")
    assert cut_at_stop(tiny_tokenizer, tokens, len(tokens), ["xyz"]) is None
    assert cut_at_stop(tiny_tokenizer, tokens, len(tokens), []) is None
    assert cut_at_stop(tiny_tokenizer, tokens, len(tokens), ["h"]) == ("", 0)


def test_a_character_split_over_tokens_is_not_cut_apart(tiny_tokenizer):
    tokens = tiny_tokenizer.encode("aé!")
    assert len(tokens) == 4  # two bytes, two tokens
    assert cut_at_stop(tiny_tokenizer, tokens, 1, ["!"]) == ("aé", 3)
    assert cut_at_stop(tiny_tokenizer, tokens, 4, ["é"]) == ("a", 1)
