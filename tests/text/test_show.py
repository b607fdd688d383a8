"""The coloured rendering: what is marked as learned, and that text cannot drive the terminal."""

import io
import json

import pytest
from rich.console import Console

from selfevo_jax.errors import UserError
from selfevo_jax.text.show import show
from selfevo_jax.text.terminal import escape_controls

GREEN, DIM = "\x1b[32m", "\x1b[2m"
NASTY = "a\x1b[2Jb\u202ec\x07d\r\ne\u200bf\x9b[bold red]g[/]"


def printed(path, tokenizer, terminal=False, limit=5, **options):
    out = io.StringIO()
    console = Console(
        file=out, force_terminal=terminal, width=200, color_system="standard" if terminal else None
    )
    return show(path, tokenizer, limit, console, **options), out.getvalue()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"id": "r1", "prompt": "What is [bold]2+2[/]?", "chosen": "Four.", "rejected": "Five."},
        {"id": "r2", "prompt": NASTY, "chosen": NASTY, "rejected": "no"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_plain_output_marks_what_is_learned(file, smollm):
    count, text = printed(file, smollm, limit=1)
    assert count == 1 and "r2" not in text and "\x1b" not in text
    assert "<|im_start|>assistant\n⟦Four.<|im_end|>⟧" in text
    assert "<|im_start|>assistant\n⟦Five.<|im_end|>⟧" in text
    assert "What is [bold]2+2[/]?<|im_end|>" in text
    assert text.count("⟦") == 2 and "3 learned" in text


def test_terminal_output_colours_what_is_learned(file, smollm):
    _, text = printed(file, smollm, terminal=True, limit=1)
    assert f"{GREEN}Four.<|im_end|>" in text
    assert f"{DIM}<|im_start|>system" in text and "⟦" not in text


@pytest.mark.parametrize("terminal", [False, True])
def test_text_cannot_drive_the_terminal(file, smollm, terminal):
    count, text = printed(file, smollm, terminal)
    assert count == 2
    for bad in ("\x1b[2J", "\u202e", "\x07", "\x9b", "\r", "\u200b"):
        assert bad not in text
    assert r"a\x1b[2Jb\u202ec\x07d\x0d" in text and r"e\u200bf\x9b[bold red]g[/]" in text


def test_separators_stand_between_tokens(file, smollm):
    _, text = printed(file, smollm, limit=1, separators=True)
    assert "⟦Four·.·<|im_end|>⟧" in text


def test_prompts_and_texts_are_shown_too(tmp_path, smollm):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "Hi"}\n')
    _, text = printed(path, smollm)
    assert "prompt only" in text and "⟦" not in text and "user\nHi<|im_end|>" in text
    path.write_text('{"text": "Once upon"}\n')
    _, text = printed(path, smollm)
    assert "⟦Once upon<|im_end|>⟧" in text


def test_records_that_do_not_fit_or_parse_are_named(file, smollm):
    with pytest.raises(UserError, match="record r1"):
        printed(file, smollm, max_length=10)
    file.write_text("{")
    with pytest.raises(UserError, match=r"rows\.jsonl:1"):
        printed(file, smollm)


def test_escapes():
    assert escape_controls("a\nb\tc\x00\U000e0001é😀") == "a\nb\\x09c\\x00\\U000e0001é😀"
