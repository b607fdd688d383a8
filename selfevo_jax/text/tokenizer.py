"""One tokenizer, whatever file it came in. Neither torch nor transformers is imported.

    tokenizer = load_tokenizer(folder_or_gguf)
    ids = tokenizer.encode("Hello")                 # text is only ever text
    ids = tokenizer.encode("<s>[INST]", allow_special=True)
    tokenizer.decode(ids)

Every source is first put into the files of a Hugging Face folder (text/tokenizer_files.py); the
tokenizer is built from those files, hashed over them, and saved by writing them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from selfevo_jax.errors import UserError
from selfevo_jax.text.backends import Backend, PieceBackend, TokenizersBackend
from selfevo_jax.text.chat import ChatTemplate
from selfevo_jax.text.guard import Guard
from selfevo_jax.text.tokenizer_files import Description, describe, read_files

REPLACEMENT = "\ufffd"


class Tokenizer:
    """Text to ids and back.

    vocab_size: largest id + 1. bos_id: None when the model has none. eos_ids: every id that ends
    a turn or a text. pad_id: never read as content; the eos when the model names no padding.
    add_bos: whether plain (untemplated) text starts with bos. hash: sha256 hex over the files.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """files: name -> content of a Hugging Face tokenizer folder."""
        self.files = dict(files)
        self.hash = _hash_files(files)
        described = describe(files)
        self.chat = _chat_template(described)
        controls = described.controls()
        controls |= self._turn_markers(described)
        self.guard = Guard(controls)
        self._backend = _backend(described, self.guard)
        self._skipped = described.special_ids()
        self.vocab_size = self._backend.size
        self.bos_id = described.id_of("bos_token")
        self.pad_id, self.eos_ids = self._ends(described)
        self.add_bos = described.add_bos and self.bos_id is not None

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        """Ids of the text, nothing added. Control tokens are text unless allow_special."""
        return self._backend.encode(self.guard.seal(text) if allow_special else text)

    def encode_sealed(self, sealed: str) -> list[int]:
        """Ids of text whose markup was sealed by `guard`; for text/render.py."""
        return self._backend.encode(sealed)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of the ids; broken UTF-8 becomes U+FFFD. Special tokens are dropped or printed."""
        kept = [int(i) for i in ids if not (skip_special and int(i) in self._skipped)]
        return self._backend.decode(kept)

    def save(self, folder: str | Path) -> None:
        """Write the tokenizer's files; `load_tokenizer(folder)` then has the same ids and hash."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (folder / name).write_bytes(content)

    def _turn_markers(self, described: Description) -> dict[str, int]:
        """Added tokens around a user's turn: markup even where their file calls them ordinary."""
        if self.chat is None:
            return {}
        try:
            text = self.chat.render([{"role": "user", "content": "."}], False)
        except UserError:
            return {}
        added = described.added_ids().items()
        return {name: i for name, i in added if name.strip() and name in text}

    def _ends(self, described: Description) -> tuple[int, tuple[int, ...]]:
        ends = described.eos_ids()
        marker = self._turn_end()
        if marker is not None and marker not in ends:
            ends = (*ends, marker)
        pad = described.id_of("pad_token")
        return (pad if pad is not None else next(iter(ends), 0)), ends

    def _turn_end(self) -> int | None:
        """The control token that the template writes right after an assistant's text."""
        if self.chat is None:
            return None
        turns = [{"role": "user", "content": "."}, {"role": "assistant", "content": "QZANSWERQZ"}]
        try:
            sealed = self.guard.seal(self.chat.render(turns, False))
        except UserError:
            return None
        rest = sealed.rpartition("QZANSWERQZ")[2].lstrip()
        match = self.guard.surface_pattern.match(rest)
        return self.guard.controls[self.guard.unseal(match.group())] if match else None


class StreamDecoder:
    """Text of a stream of ids, a piece at a time; a character split over tokens is held back.

    The pieces joined are `tokenizer.decode(all ids)`.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special
        self._ids: list[int] = []
        self._shown = 0  # ids[:shown] are already out
        self._context = 0  # decoding starts here, so that a space between tokens is kept

    def push(self, token: int) -> str:
        """The text that this id completes, possibly empty."""
        if self._skip and self._tokenizer.decode([token], skip_special=True) == "":
            if self._tokenizer.decode([token], skip_special=False) != "":
                return ""
        self._ids.append(int(token))
        text = self._pending()
        return "" if text.endswith(REPLACEMENT) else self._emit(text)

    def finish(self) -> str:
        """What was held back: an unfinished character as U+FFFD."""
        return self._emit(self._pending())

    def _pending(self) -> str:
        before = self._tokenizer.decode(self._ids[self._context : self._shown], self._skip)
        return self._tokenizer.decode(self._ids[self._context :], self._skip)[len(before) :]

    def _emit(self, text: str) -> str:
        self._context, self._shown = self._shown, len(self._ids)
        return text


def load_tokenizer(path: str | Path) -> Tokenizer:
    """From a folder (tokenizer.json or tokenizer.model) or a .gguf file. Raises UserError."""
    return Tokenizer(read_files(Path(path)))


def _hash_files(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {len(files[name])}\n".encode())
        digest.update(files[name])
    return digest.hexdigest()


def _chat_template(described: Description) -> ChatTemplate | None:
    if described.template is None:
        return None
    return ChatTemplate(described.template, described.special_texts())


def _backend(described: Description, guard: Guard) -> Backend:
    if described.json_spec is not None:
        return TokenizersBackend(described.json_spec, guard)
    return PieceBackend(described.piece_model, described.added, guard, described.legacy)
