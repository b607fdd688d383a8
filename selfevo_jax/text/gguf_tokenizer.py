"""The tokenizer in a GGUF file's metadata, rewritten as the files of a Hugging Face folder.

`tokenizer.ggml.model` is "gpt2" for byte-level BPE (tokens and merges; how text is cut before
merging is named by `tokenizer.ggml.pre`) or "llama" for SentencePiece (pieces, scores, types).
The names of pre-tokenizers and their expressions are llama.cpp's (src/llama-vocab.cpp).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2 as pieces_pb2
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from selfevo_jax.errors import UserError
from selfevo_jax.weights.gguf_io import read_metadata

CONTROL, USER_DEFINED = 3, 4

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_GPT2 = ("gpt-2", "olmo", "jais", "mpt", "phi-2", "dbrx")
_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
_BY_REGEX = {
    "llama3": _LLAMA3, "llama-v3": _LLAMA3, "llama-bpe": _LLAMA3, "falcon3": _LLAMA3,
    "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2, "stablelm2": _QWEN2,
}  # fmt: skip
ADDS_BOS = ("llama3", "llama-v3", "llama-bpe", "falcon3")


def gguf_files(path: Path) -> dict[str, bytes]:
    """name -> content of tokenizer.json or tokenizer.model, and the two side files.

    Raises UserError for a tokenizer kind or pre-tokenizer that is not known here: a wrong guess
    would give other ids than the model was trained on.
    """
    metadata = read_metadata(path)
    kind = metadata.get("tokenizer.ggml.model")
    tokens = _strings(metadata, "tokenizer.ggml.tokens", path)
    if kind == "gpt2":
        files = {"tokenizer.json": _bpe_json(metadata, tokens, path)}
    elif kind == "llama":
        files = {"tokenizer.model": _piece_model(metadata, tokens, path)}
    else:
        raise UserError(f"{path} has a tokenizer of kind {kind!r}; only gpt2 and llama are read")
    files["tokenizer_config.json"] = _dump(_config(metadata, tokens, kind, path))
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(i for i in ends if i is not None))
    files["generation_config.json"] = _dump({"eos_token_id": ends} if ends else {})
    template = metadata.get("tokenizer.chat_template")
    if isinstance(template, str):
        files["chat_template.jinja"] = template.encode()
    return files


def _dump(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True).encode()


def _strings(metadata: Mapping[str, Any], key: str, path: Path) -> list[str]:
    values = metadata.get(key)
    if not isinstance(values, Sequence) or isinstance(values, str) or not len(values):
        raise UserError(f"{path} has no {key}; convert the model again with its tokenizer")
    return list(values)


def _numbers(metadata: Mapping[str, Any], key: str, tokens: list[str], path: Path) -> list:
    values = metadata.get(key)
    if values is None or len(values) != len(tokens):
        raise UserError(f"{path}: {key} does not have one entry for each of {len(tokens)} tokens")
    return list(values)


def _bpe_json(metadata: Mapping[str, Any], tokens: list[str], path: Path) -> bytes:
    name = metadata.get("tokenizer.ggml.pre", "")
    pre_tokenizer = pre_tokenizer_named(name, path)
    merges = [tuple(m.split(" ", 1)) for m in _strings(metadata, "tokenizer.ggml.merges", path)]
    vocab = {text: i for i, text in enumerate(tokens)}
    try:
        model = models.BPE(vocab=vocab, merges=merges, ignore_merges=name in ADDS_BOS)
    except Exception as error:  # the Rust library raises bare Exception
        raise UserError(f"{path}: the merges do not fit the tokens: {error}") from error
    engine = tokenizers.Tokenizer(model)
    engine.pre_tokenizer = pre_tokenizer
    engine.decoder = decoders.ByteLevel()
    if name in ("qwen2", "deepseek-r1-qwen"):
        engine.normalizer = normalizers.NFC()
    types = _numbers(metadata, "tokenizer.ggml.token_type", tokens, path)
    for text, kind in zip(tokens, types, strict=True):
        if kind in (CONTROL, USER_DEFINED):
            special = kind == CONTROL
            token = tokenizers.AddedToken(text, special=special, normalized=False)
            engine.add_special_tokens([token]) if special else engine.add_tokens([token])
    return engine.to_str().encode()


def pre_tokenizer_named(name: str, path: Path) -> pre_tokenizers.PreTokenizer:
    """How llama.cpp's pre-tokenizer `name` cuts text. Raises UserError, naming `path`."""
    if name in _GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([digits, level])
    if name in _BY_REGEX:
        split = pre_tokenizers.Split(Regex(_BY_REGEX[name]), behavior="isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, level])
    known = ", ".join(sorted((*_GPT2, *_DIGITS, *_BY_REGEX)))
    raise UserError(
        f"{path}: the pre-tokenizer {name!r} is not known here (known: {known}); "
        "use the model's own folder with its tokenizer.json"
    )


def _piece_model(metadata: Mapping[str, Any], tokens: list[str], path: Path) -> bytes:
    scores = _numbers(metadata, "tokenizer.ggml.scores", tokens, path)
    types = _numbers(metadata, "tokenizer.ggml.token_type", tokens, path)
    proto = pieces_pb2.ModelProto()
    for text, score, kind in zip(tokens, scores, types, strict=True):
        if kind not in pieces_pb2.ModelProto.SentencePiece.Type.values():
            raise UserError(f"{path}: token {text!r} is of the unknown type {kind}")
        proto.pieces.add(piece=text, score=float(score), type=int(kind))
    proto.trainer_spec.model_type = pieces_pb2.TrainerSpec.BPE
    proto.trainer_spec.byte_fallback = True
    proto.trainer_spec.vocab_size = len(tokens)
    for name in ("bos", "eos", "unk"):
        key = {"unk": "unknown"}.get(name, name)
        i = metadata.get(f"tokenizer.ggml.{key}_token_id")
        setattr(proto.trainer_spec, f"{name}_id", -1 if i is None else int(i))
    proto.trainer_spec.pad_id = -1
    proto.normalizer_spec.name = "identity"
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    proto.normalizer_spec.add_dummy_prefix = bool(prefix)
    proto.normalizer_spec.remove_extra_whitespaces = False
    return proto.SerializeToString(deterministic=True)


def _config(
    metadata: Mapping[str, Any], tokens: list[str], kind: str, path: Path
) -> dict[str, Any]:
    llama = kind == "llama"
    adds = llama or metadata.get("tokenizer.ggml.pre") in ADDS_BOS
    config: dict[str, Any] = {
        "tokenizer_class": "LlamaTokenizer" if llama else "PreTrainedTokenizerFast",
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", adds)),
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    if llama:
        config["legacy"] = False
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    for name, key in keys.items():
        i = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if i is not None:
            if not 0 <= i < len(tokens):
                raise UserError(f"{path}: {key}_token_id is {i}, outside {len(tokens)} tokens")
            config[name] = tokens[i]
    return config
