"""The two engines that turn sealed text into ids: `tokenizers` and `sentencepiece`.

Both are given a Guard and rename the control tokens to its surfaces when they are built, so that
plain text never yields one (see guard.py). `encode` takes text that may hold surfaces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import sentencepiece
import tokenizers
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as pieces_pb2

from selfevo_jax.errors import UserError
from selfevo_jax.text.guard import Guard

SPACE = "\u2581"


class Backend(Protocol):
    """Ids from sealed text and back. `size` is the largest id + 1."""

    size: int

    def encode(self, sealed: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class TokenizersBackend:
    """A `tokenizer.json`: byte-level BPE, Metaspace BPE, Unigram, WordPiece."""

    def __init__(self, spec: Mapping[str, Any], guard: Guard) -> None:
        """spec: the parsed tokenizer.json, its added tokens already complete."""
        self._guard = guard
        try:
            self._engine = tokenizers.Tokenizer.from_str(json.dumps(_renamed(spec, guard.surfaces)))
        except Exception as error:  # the Rust library raises bare Exception
            raise UserError(f"tokenizer.json cannot be read by `tokenizers`: {error}") from error
        self._engine.no_padding()
        self._engine.no_truncation()
        self.size = 1 + max(self._engine.get_vocab(with_added_tokens=True).values(), default=-1)

    def encode(self, sealed: str) -> list[int]:
        return self._engine.encode(sealed, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._guard.unseal(self._engine.decode(list(ids), skip_special_tokens=False))


def _renamed(spec: Mapping[str, Any], surfaces: Mapping[str, str]) -> dict[str, Any]:
    """The spec with each control token under its surface; ids and all else unchanged."""
    added = [
        {**token, "content": surfaces.get(token["content"], token["content"])}
        for token in spec.get("added_tokens") or []
    ]
    model = dict(spec["model"])
    vocab = model["vocab"]
    if isinstance(vocab, Mapping):
        model["vocab"] = {surfaces.get(text, text): i for text, i in vocab.items()}
    else:
        model["vocab"] = [[surfaces.get(text, text), score] for text, score in vocab]
    if model.get("merges"):
        # A merge that spells a control token would let text reach it.
        model["merges"] = [merge for merge in model["merges"] if not _spells(merge, surfaces)]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = surfaces.get(model["unk_token"], model["unk_token"])
    return {**spec, "added_tokens": added, "model": model, "post_processor": None}


def _spells(merge: str | Sequence[str], controls: Mapping[str, str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in controls or right in controls or left + right in controls


class PieceBackend:
    """A SentencePiece `tokenizer.model` with the LLaMA conventions.

    Text between control tokens goes to sentencepiece. One space is put before the first piece of
    text when the model asks for a dummy prefix; before every piece after a control token too when
    `legacy` (Hugging Face's name for LLaMA-1's behaviour). Decoding drops that first space again.
    """

    def __init__(
        self, model: bytes, added: Sequence[Mapping[str, Any]], guard: Guard, legacy: bool = False
    ) -> None:
        """added: {"id","content","lstrip","rstrip"} of each added or control token."""
        self._legacy = legacy
        self._engine, self._dummy_prefix = _load_pieces(model, set(guard.controls))
        self._ids = {guard.surfaces.get(t["content"], t["content"]): t["id"] for t in added}
        self._text = {token["id"]: token["content"] for token in added}
        names = sorted(added, key=lambda token: -len(token["content"]))
        pattern = "|".join(_with_strip(token, guard.surfaces) for token in names)
        self._split = re.compile(f"({pattern})") if pattern else None
        self.size = max([self._engine.get_piece_size(), *(i + 1 for i in self._text)])

    def encode(self, sealed: str) -> list[int]:
        parts = self._split.split(sealed) if self._split else [sealed]
        ids: list[int] = []
        for index, part in enumerate(parts):
            if index % 2:
                ids.append(self._ids[part if part in self._ids else part.strip()])
            elif part:
                first = self._dummy_prefix and (self._legacy or index == 0)
                ids += self._engine.encode(" " + part if first else part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        raw = b"".join(self._bytes(i) for i in ids)
        text = raw.decode("utf-8", errors="replace")
        starts_as_text = bool(ids) and ids[0] not in self._text
        return text[1:] if self._dummy_prefix and starts_as_text and text[:1] == " " else text

    def _bytes(self, i: int) -> bytes:
        if i in self._text:
            return self._text[i].encode()
        if i >= self._engine.get_piece_size():
            raise IndexError(f"token id {i} is outside the vocabulary of {self.size}")
        piece = self._engine.id_to_piece(i)
        if self._engine.is_byte(i):
            return bytes([int(piece[1:-1], 16)])
        return piece.replace(SPACE, " ").encode()


def _with_strip(token: Mapping[str, Any], surfaces: Mapping[str, str]) -> str:
    name = re.escape(surfaces.get(token["content"], token["content"]))
    return (r"\s*" if token.get("lstrip") else "") + name + (r"\s*" if token.get("rstrip") else "")


def _load_pieces(
    model: bytes, controls: set[str]
) -> tuple[sentencepiece.SentencePieceProcessor, bool]:
    """The processor, with every control piece unreachable from text, and its dummy-prefix flag."""
    proto = parse_pieces(model)
    for piece in proto.pieces:
        if piece.piece in controls and piece.type != piece.UNKNOWN:
            piece.type = piece.CONTROL
    dummy_prefix = proto.normalizer_spec.add_dummy_prefix
    # The space is added in `encode`, which knows where a text begins.
    proto.normalizer_spec.add_dummy_prefix = False
    engine = sentencepiece.SentencePieceProcessor()
    engine.load_from_serialized_proto(proto.SerializeToString())
    return engine, dummy_prefix


def parse_pieces(model: bytes) -> pieces_pb2.ModelProto:
    """The parsed tokenizer.model. Raises UserError when the bytes are not one."""
    proto = pieces_pb2.ModelProto()
    try:
        proto.ParseFromString(model)
    except DecodeError as error:
        raise UserError(f"tokenizer.model is not a SentencePiece model: {error}") from error
    if not proto.pieces:
        raise UserError("tokenizer.model holds no pieces; fetch the file again")
    return proto
