"""`open_encoder`: a sentence encoder in a folder, as sentence-transformers keeps it.

    config.json, model.safetensors    the network; model_type must be bert
    tokenizer.json                    see selfevo_jax.text
    sentence_bert_config.json         how many tokens of a text it reads; else what the tokenizer's
                                      model_max_length and the config's positions allow
    modules.json, N_Pooling/config.json   what follows the network: it must be the mean over tokens,
                                          which is also taken where these files are absent

Whatever asks for something else (another pooling, a further layer, lower-casing outside the
tokenizer) is refused: the vectors would not be the model's.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from selfevo_jax.errors import UserError
from selfevo_jax.models.bert import BertConfig
from selfevo_jax.weights.assemble import TensorStore, load_tree
from selfevo_jax.weights.hf_config import Fields, read_object, refuse_unknown, wrong
from selfevo_jax.weights.names import MAX_LAYERS
from selfevo_jax.weights.safetensors_io import SafetensorsFolder, weight_files
from selfevo_jax.weights.sources import resolve
from selfevo_jax.weights.storage import files_sha256

FAMILY, ARCHITECTURE = "bert", "BertModel"
# What hidden states do not depend on: the head over [CLS], and a constant that old files saved.
_UNUSED = re.compile(r"pooler\..*|embeddings\.position_ids")
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "type_vocab_size",
)  # fmt: skip
_OWN = {
    *_SIZES, "model_type", "architectures", "hidden_act", "layer_norm_eps", "hidden_dropout_prob",
    "attention_probs_dropout_prob", "classifier_dropout", "gradient_checkpointing",
    "tie_word_embeddings", "tie_encoder_decoder",
}  # fmt: skip
_STEPS = ("Transformer", "Pooling", "Normalize")
_MEAN = "pooling_mode_mean_tokens"


@dataclass(frozen=True)
class EncoderFiles:
    """A sentence encoder on disk. `max_tokens`: of a text, [CLS] and [SEP] included."""

    path: Path
    config: BertConfig
    max_tokens: int
    store: TensorStore
    files: tuple[Path, ...]  # whose bytes decide the vectors, besides the tokenizer's

    @cached_property
    def hash(self) -> str:
        """SHA-256 in hex over (name, SHA-256) of the files and how much of a text is read."""
        return f"{files_sha256(self.path, self.files)}:{self.max_tokens}"

    def load(self) -> dict[str, Any]:
        """Parameters, float32, on the first device."""
        return load_tree(self.config, self.store, dtype=jnp.float32)


def is_encoder(folder: Path) -> bool:
    """Whether a folder's config.json is that of an encoder; not whether it is a sound one."""
    with suppress(UserError):
        return read_object(folder / "config.json").get("model_type") == FAMILY
    return False


def open_encoder(source: str | Path) -> EncoderFiles:
    """Open an encoder from any source that `sources.resolve` knows; no weights are read yet.

    Raises UserError when the source, a file, or what it asks for is not right.
    """
    path = resolve(source)
    try:
        config = bert_config(read_object(path / "config.json"))
        _check_modules(path)
        longest = _max_tokens(path, config)
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from error
    store = SafetensorsFolder(path, unused=_UNUSED)
    return EncoderFiles(path, config, longest, store, (path / "config.json", *weight_files(path)))


def bert_config(data: Mapping[str, Any]) -> BertConfig:
    """The architecture that a config.json describes. Raises UserError that names the field."""
    if data.get("model_type") != FAMILY:
        raise wrong("model_type", f"is {data.get('model_type')!r}; an encoder must be {FAMILY}")
    if (data.get("architectures") or [ARCHITECTURE]) != [ARCHITECTURE]:
        raise wrong("architectures", f"is {data['architectures']!r}; supported: {ARCHITECTURE}")
    refuse_unknown(data, FAMILY, _OWN)
    if data.get("hidden_act", "gelu") != "gelu":
        raise wrong("hidden_act", f"is {data['hidden_act']!r}; supported: gelu")
    fields = Fields({"type_vocab_size": 2, "layer_norm_eps": 1e-12, **data}, FAMILY)
    vocabulary, hidden, inner, layers, heads, positions, types = map(fields.count, _SIZES)
    if hidden % heads:
        raise wrong("hidden_size", f"is {hidden}, which {heads} heads do not divide")
    if layers > MAX_LAYERS:
        raise wrong("num_hidden_layers", f"is {layers}; at most {MAX_LAYERS} are believed")
    eps = float(fields.number("layer_norm_eps"))
    return BertConfig(vocabulary, hidden, inner, layers, heads, positions, types, eps)


def _check_modules(folder: Path) -> None:
    """Refuses what follows the network unless it is the mean over tokens, scaled to length one."""
    if _optional(folder / "config_sentence_transformers.json").get("default_prompt_name"):
        raise UserError("config_sentence_transformers.json: default_prompt_name is not supported")
    if not (folder / "modules.json").is_file():
        return
    for module in _list(folder / "modules.json"):
        kind = str(module.get("type")).rsplit(".", 1)[-1]
        if kind not in _STEPS:
            raise UserError(f"modules.json: has a {kind}; supported: {', '.join(_STEPS)}")
        if kind == "Pooling":
            _check_pooling(folder / _inside(module.get("path")) / "config.json")


def _inside(name: Any) -> str:
    """A folder's plain name. Raises UserError for a path, which could lead out of the model."""
    if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"modules.json: path {name!r} is no folder's name")
    return name


def _check_pooling(path: Path) -> None:
    modes = read_object(path)
    chosen = [name for name in modes if name.startswith("pooling_mode") and modes[name]]
    if chosen not in ([_MEAN], ["pooling_mode"]) or modes.get("pooling_mode", "mean") != "mean":
        raise UserError(f"{path}: pools by {', '.join(chosen)}; supported: {_MEAN}")


def _max_tokens(folder: Path, config: BertConfig) -> int:
    """As sentence-transformers has it: its own setting, else the tokenizer's and the positions."""
    settings = _optional(folder / "sentence_bert_config.json")
    if settings.get("do_lower_case"):
        raise UserError("sentence_bert_config.json: do_lower_case is left to the tokenizer here")
    asked = settings.get("max_seq_length")
    if asked is None:
        asked = _optional(folder / "tokenizer_config.json").get("model_max_length")
    if asked is None:
        return config.max_position
    if not isinstance(asked, int | float) or not asked >= 3:  # NaN is neither
        raise UserError(f"max_seq_length (or model_max_length) is {asked!r}, not a number of 3 up")
    return int(min(asked, config.max_position))


def _optional(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _list(path: Path) -> list[dict[str, Any]]:
    """The objects in a JSON list. Raises UserError naming the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise UserError(f"{path}: is no list of objects")
    return found
