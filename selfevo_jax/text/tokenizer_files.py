"""From the files of a tokenizer to a description of it; GGUF metadata first become such files.

Hugging Face spreads one tokenizer over several files. What is read, and who wins:
    tokenizer.json (else tokenizer.model)    the vocabulary and how text is cut
    tokenizer_config.json                    special tokens by name, more added tokens, add_bos
    special_tokens_map.json, added_tokens.json    the same, older; for what is still missing
    chat_template.jinja                      the template; else `chat_template` of the config
    generation_config.json                   further ids that end a text
Nothing here is code: no class named in a config is looked up, no remote file is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from selfevo_jax.errors import UserError
from selfevo_jax.text.backends import parse_pieces
from selfevo_jax.text.gguf_tokenizer import gguf_files

FILE_NAMES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class Description:
    """What the files say. Exactly one of json_spec and piece_model is set.

    added: every added or special token as {"id", "content", "special", "lstrip", "rstrip"}.
    named: bos_token, eos_token, unk_token, pad_token -> text, those that there are.
    """

    json_spec: dict[str, Any] | None
    piece_model: bytes | None
    added: tuple[dict[str, Any], ...]
    named: dict[str, str]
    template: str | None
    ends: tuple[int, ...]
    legacy: bool
    add_bos: bool

    def added_ids(self) -> dict[str, int]:
        return {token["content"]: token["id"] for token in self.added}

    def controls(self) -> dict[str, int]:
        """The tokens that text must not reach: those flagged special, and the named ones."""
        named = set(self.named.values())
        return {
            token["content"]: token["id"]
            for token in self.added
            if token["special"] or token["content"] in named
        }

    def special_ids(self) -> frozenset[int]:
        """Ids that reading text leaves out."""
        return frozenset(self.controls().values())

    def special_texts(self) -> dict[str, str]:
        return dict(self.named)

    def id_of(self, name: str) -> int | None:
        return self.added_ids().get(self.named.get(name, ""))

    def eos_ids(self) -> tuple[int, ...]:
        eos = self.id_of("eos_token")
        ids = ([] if eos is None else [eos]) + list(self.ends)
        return tuple(dict.fromkeys(ids))


def read_files(path: Path) -> dict[str, bytes]:
    """The tokenizer files of a folder, or those made from a .gguf. Raises UserError."""
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UserError(f"{path} does not exist; give a .gguf file or a model folder")
        return gguf_files(path)
    if not path.is_dir():
        raise UserError(f"{path} is neither a folder nor a .gguf file; give one of the two")
    files = {name: (path / name).read_bytes() for name in FILE_NAMES if (path / name).is_file()}
    if not {"tokenizer.json", "tokenizer.model"} & set(files):
        raise UserError(f"{path} holds neither tokenizer.json nor tokenizer.model; add one")
    return files


def describe(files: Mapping[str, bytes]) -> Description:
    """Join the files into one description. Raises UserError for a file that is malformed."""
    config = _json(files, "tokenizer_config.json")
    named = _named(config, _json(files, "special_tokens_map.json"))
    extra = _extra_tokens(files, config)
    parts: dict[str, Any]
    if "tokenizer.json" in files:
        parts = _from_json(_json(files, "tokenizer.json"), config, named, extra)
    else:
        parts = _from_pieces(files["tokenizer.model"], config, named, extra)
    ends = _json(files, "generation_config.json").get("eos_token_id")
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if not all(type(i) is int and i >= 0 for i in ends):
        raise UserError(f"generation_config.json: eos_token_id is {ends}; it must hold token ids")
    return Description(
        named=parts.pop("named", named),
        template=_template(files, config),
        ends=tuple(ends),
        legacy=bool(config.get("legacy", False)),
        **parts,
    )


def _json(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    if name not in files:
        return {}
    try:
        value = json.loads(files[name].decode("utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{name} is not JSON: {error}; fetch the file again") from error
    if not isinstance(value, dict):
        raise UserError(f"{name} holds a {type(value).__name__}, not an object; fetch it again")
    return value


def _text(token: Any) -> str | None:
    """A token in a config is its text, or an object that has it as `content`."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _named(config: Mapping[str, Any], older: Mapping[str, Any]) -> dict[str, str]:
    texts = {name: _text(config.get(name)) or _text(older.get(name)) for name in NAMED}
    return {name: text for name, text in texts.items() if text}


def _token(i: int, content: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": i, "content": content, **{name: bool(flags.get(name)) for name in names}}


def _extra_tokens(files: Mapping[str, bytes], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Added tokens that the side files declare, by id."""
    older = _json(files, "added_tokens.json")
    tokens = {i: _token(i, text, {}) for text, i in older.items() if type(i) is int}
    declared = config.get("added_tokens_decoder") or {}
    try:
        for key, flags in declared.items():
            tokens[int(key)] = _token(int(key), str(flags["content"]), flags)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            "tokenizer_config.json: added_tokens_decoder must map ids to objects with `content`"
        ) from error
    return [tokens[i] for i in sorted(tokens)]


def _template(files: Mapping[str, bytes], config: Mapping[str, Any]) -> str | None:
    if "chat_template.jinja" in files:
        return files["chat_template.jinja"].decode("utf-8", errors="replace")
    template = config.get("chat_template")
    if isinstance(template, list):  # several templates by name
        template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
    return template if isinstance(template, str) else None


def _from_json(
    spec: dict[str, Any], config: Mapping[str, Any], named: dict[str, str], extra: list[dict]
) -> dict[str, Any]:
    model = spec.get("model")
    if not isinstance(model, Mapping) or not isinstance(model.get("vocab"), Mapping | list):
        raise UserError("tokenizer.json has no model.vocab; fetch the file again")
    vocab = model["vocab"]
    if isinstance(vocab, list):  # Unigram: [text, score] in the order of ids
        vocab = {entry[0]: i for i, entry in enumerate(vocab)}
    added = {token["id"]: token for token in spec.get("added_tokens") or []}
    added |= {token["id"]: token for token in extra}
    known = {token["content"] for token in added.values()}
    for text in dict.fromkeys(named.values()):
        if text in vocab and text not in known:
            added[vocab[text]] = _token(vocab[text], text, {"special": True})
    tokens = tuple(added[i] for i in sorted(added))
    spec = {**spec, "added_tokens": list(tokens)}
    return {
        "json_spec": spec,
        "piece_model": None,
        "added": tokens,
        "add_bos": _adds_bos(spec, config, named),
    }


def _adds_bos(spec: dict[str, Any], config: Mapping[str, Any], named: dict[str, str]) -> bool:
    """What the config says, else whether the post-processor puts bos before a text."""
    if isinstance(config.get("add_bos_token"), bool):
        return config["add_bos_token"]
    if not spec.get("post_processor") or "bos_token" not in named:
        return False
    try:
        engine = tokenizers.Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the Rust library raises bare Exception
        raise UserError(f"tokenizer.json cannot be read by `tokenizers`: {error}") from error
    return engine.encode("a").tokens[:1] == [named["bos_token"]]


def _from_pieces(
    model: bytes, config: Mapping[str, Any], named: dict[str, str], extra: list[dict]
) -> dict[str, Any]:
    proto = parse_pieces(model)
    pieces = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    special = {i for i, piece in enumerate(proto.pieces) if piece.type in (2, 3)}
    by_id = {i: _token(i, proto.pieces[i].piece, {"special": True}) for i in sorted(special)}
    by_id |= {token["id"]: token for token in extra}
    spec = proto.trainer_spec
    ends = {"bos_token": spec.bos_id, "eos_token": spec.eos_id, "unk_token": spec.unk_id}
    for name, i in ends.items():
        if name not in named and 0 <= i < len(proto.pieces) and i in special:
            named = {**named, name: proto.pieces[i].piece}
    for text in named.values():
        if text in pieces:
            by_id.setdefault(pieces[text], _token(pieces[text], text, {"special": True}))
    return {
        "json_spec": None,
        "piece_model": model,
        "added": tuple(by_id[i] for i in sorted(by_id)),
        "named": named,
        "add_bos": bool(config.get("add_bos_token", True)),
    }
