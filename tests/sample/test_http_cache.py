"""A cache of answers whose file is damaged: what it gives is right, or it says that it cannot."""

import logging
import random
import sqlite3

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.sample.http.cache import AnswerCache

ANSWERS = {f"{n:064x}": {"text": f"answer {n} " * 20} for n in range(200)}


@pytest.fixture
def stored(tmp_path):
    """A file of 200 answers."""
    path = tmp_path / "answers.sqlite"
    cache = AnswerCache(path)
    for key, answer in ANSWERS.items():
        cache.put(key, answer)
    cache.close()
    return path


def test_a_changed_answer_is_told_of_and_asked_for_again(stored, caplog):
    key, kept = list(ANSWERS)[:2]
    with sqlite3.connect(stored) as connection:
        connection.execute(
            "UPDATE answers SET answer = replace(answer, 'answer', 'Answer') WHERE key = ?", [key]
        )
    cache = AnswerCache(stored)
    with caplog.at_level(logging.WARNING):
        assert cache.get(key) is None
    assert "is damaged" in caplog.text and str(stored) in caplog.text
    cache.put(key, ANSWERS[key])
    assert cache.get(key) == ANSWERS[key] and cache.get(kept) == ANSWERS[kept]


@pytest.mark.parametrize("seed", range(20))
def test_flipped_bits_anywhere(stored, seed):
    draw = random.Random(seed)
    whole = bytearray(stored.read_bytes())
    for _ in range(1 + seed):
        whole[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
    stored.write_bytes(whole)
    try:
        cache = AnswerCache(stored)
    except UserError as error:
        assert str(stored) in str(error)
        return
    for key, answer in ANSWERS.items():
        try:
            assert cache.get(key) in (None, answer)
        except UserError as error:
            assert "move it away to start a new one" in str(error)


def test_a_file_cut_in_half(stored):
    stored.write_bytes(stored.read_bytes()[: stored.stat().st_size // 2])
    with pytest.raises(UserError, match="answers.sqlite"):
        cache = AnswerCache(stored)
        for key in ANSWERS:
            assert cache.get(key) in (None, ANSWERS[key])
