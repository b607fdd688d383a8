"""A tokenizer as the `tokenizer.*` metadata of a GGUF file: the way back of `gguf_tokenizer`.

llama.cpp cuts text before merging by a rule that it knows by name, so the name is found by cutting
a probe text both ways; a tokenizer that no known name cuts alike is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from selfevo_jax.errors import UserError
from selfevo_jax.text.backends import parse_pieces
from selfevo_jax.text.gguf_tokenizer import ADDS_BOS, CONTROL, USER_DEFINED, pre_tokenizer_named
from selfevo_jax.text.tokenizer import Tokenizer
from selfevo_jax.text.tokenizer_files import Description, describe

NORMAL, UNUSED = 1, 5
_NAMES = ("gpt-2", "smollm", "llama-bpe", "qwen2")
_PROBE = (
    "Hello, WORLD's 3.14159 and 1234567!?\n\n\t  x=y;  they'll we'Re I'D  \r\n"
    "caf\u00e9 na\u00efve \u4f60\u597d \u0416\u0438\u0437\u043d\u044c \U0001f600 "
    "\u0661\u0662\u0663 __init__(self): //#$ 9a 12b \u00a0z  "
)
_ENDS = ("eos", "eot", "eom")  # llama.cpp's names of up to three ids that end a text
_REMEDY = "Export with --format=safetensors"


def gguf_vocabulary(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """Metadata of `size` tokens; ids that the tokenizer does not use become unused ones.

    Raises UserError for a tokenizer that llama.cpp has no name for.
    """
    files = dict(tokenizer.files)
    if "tokenizer.model" in files:
        files.pop("tokenizer.json", None)  # the pieces have the scores that GGUF wants
    described = describe(files)
    metadata = _pieces(described) if described.piece_model else _byte_pairs(described)
    metadata |= _special_ids(tokenizer, described)
    _fill(metadata, size)
    return metadata


def _byte_pairs(described: Description) -> dict[str, Any]:
    spec = described.json_spec
    assert spec is not None
    model = spec["model"]
    if model.get("type", "BPE") != "BPE":
        raise UserError(f"llama.cpp has no {model['type']} tokenizer of this kind. {_REMEDY}")
    merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges") or []]
    if not merges:
        raise UserError(f"llama.cpp loads no tokenizer without merges. {_REMEDY}")
    tokens = {i: (text, NORMAL) for text, i in model["vocab"].items()}
    _add_tokens(tokens, described)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _name(spec),
        "tokenizer.ggml.tokens": {i: text for i, (text, _) in tokens.items()},
        "tokenizer.ggml.token_type": {i: kind for i, (_, kind) in tokens.items()},
        "tokenizer.ggml.merges": merges,
    }


def _pieces(described: Description) -> dict[str, Any]:
    assert described.piece_model is not None
    proto = parse_pieces(described.piece_model)
    tokens = {i: (piece.piece, piece.type) for i, piece in enumerate(proto.pieces)}
    scores = {i: piece.score for i, piece in enumerate(proto.pieces)}
    _add_tokens(tokens, described)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": {i: text for i, (text, _) in tokens.items()},
        "tokenizer.ggml.scores": {i: scores.get(i, 0.0) for i in tokens},
        "tokenizer.ggml.token_type": {i: kind for i, (_, kind) in tokens.items()},
        "tokenizer.ggml.add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
    }


def _add_tokens(tokens: dict[int, tuple[str, int]], described: Description) -> None:
    for token in described.added:
        old = tokens.get(token["id"], ("", NORMAL))[1]
        kind = CONTROL if token["special"] else USER_DEFINED
        tokens[token["id"]] = (token["content"], kind if old == NORMAL else old)


def _name(spec: Mapping[str, Any]) -> str:
    """llama.cpp's name of how `spec` cuts text."""
    cut = tokenizers.Tokenizer.from_str(json.dumps(spec)).pre_tokenizer
    ignores = bool(spec["model"].get("ignore_merges"))
    for name in _NAMES:
        known = pre_tokenizer_named(name, Path("tokenizer.json"))
        if ignores == (name in ADDS_BOS) and _cuts(cut) == _cuts(known):
            return name
    raise UserError(
        "llama.cpp has no name for the way in which this tokenizer cuts text; known here: "
        f"{', '.join(_NAMES)}. {_REMEDY}"
    )


def _cuts(cut: PreTokenizer | None) -> list[str]:
    return [] if cut is None else [text for text, _ in cut.pre_tokenize_str(_PROBE)]


def _special_ids(tokenizer: Tokenizer, described: Description) -> dict[str, Any]:
    ids = dict(zip(_ENDS, tokenizer.eos_ids, strict=False))
    ids |= {"bos": tokenizer.bos_id, "padding": tokenizer.pad_id}
    ids["unknown"] = described.id_of("unk_token")
    found = {f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None}
    found["tokenizer.ggml.add_bos_token"] = tokenizer.add_bos
    found["tokenizer.ggml.add_eos_token"] = False
    if described.template is not None:
        found["tokenizer.chat_template"] = described.template
    return found


def _fill(metadata: dict[str, Any], size: int) -> None:
    """Turns id -> value into lists of `size`."""
    tokens = metadata["tokenizer.ggml.tokens"]
    if max(tokens) >= size:
        raise UserError(f"the tokenizer has the id {max(tokens)}, the model only {size} tokens")
    empty = {
        "tokens": lambda i: f"[PAD{i}]",
        "scores": lambda i: 0.0,
        "token_type": lambda i: UNUSED,
    }
    for name, make in empty.items():
        key = f"tokenizer.ggml.{name}"
        if key in metadata:
            metadata[key] = [metadata[key].get(i, make(i)) for i in range(size)]
