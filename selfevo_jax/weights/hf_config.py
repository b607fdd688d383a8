"""config.json <-> ModelConfig, by an allow-list of fields per model type.

A config is never code, and a field we do not know may change the numbers: both are errors
that name the field. Defaults are those of transformers' config classes. What is written is
the transformers 4 spelling (`rope_theta`, `rope_scaling`), which version 5 reads as well.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.models.config import LinearRopeScaling, Llama3RopeScaling, ModelConfig
from selfevo_jax.weights.names import MAX_LAYERS

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
}
_ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
_TOO_LARGE = 1e15
_CODE = ("auto_map", "trust_remote_code", "kernels")  # and everything that begins with _attn

# Fields that do not change logits: bookkeeping, training, generation, labels.
_HARMLESS = set(
    """_name_or_path _commit_hash transformers_version torch_dtype dtype use_cache pretraining_tp
    initializer_range bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id
    output_attentions output_hidden_states return_dict return_dict_in_generate id2label label2id
    problem_type chunk_size_feed_forward cache_implementation is_llama_config
    transformers.js_config sliding_window_size tokenizer_class keys_to_ignore_at_inference
    max_length min_length do_sample temperature top_k top_p""".split()
)
# Fields that change nothing only while they hold one of these values.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "attention_dropout": (0.0,),
    "rope_interleaved": (False,),
    "is_encoder_decoder": (False,),
    "use_mrope": (False,),
    "use_bidirectional_attention": (False, None),
    "partial_rotary_factor": (1.0,),
    "quantization_config": (None,),
    "add_cross_attention": (False,),
    "pruned_heads": ({}, None),
    "is_decoder": (False,),
    "position_embedding_type": ("absolute",),  # of an encoder
}
_SHARED = set(
    """model_type architectures vocab_size hidden_size intermediate_size num_hidden_layers
    num_attention_heads num_key_value_heads head_dim max_position_embeddings rope_theta
    rope_scaling rope_parameters rms_norm_eps tie_word_embeddings layer_types""".split()
)
_OWN = {
    "llama": {"hidden_act"},
    "mistral": {"hidden_act", "sliding_window"},
    "qwen2": {"hidden_act", "sliding_window", "use_sliding_window", "max_window_layers"},
    "gemma2": {
        "hidden_act",  # an old spelling that transformers does not read
        "hidden_activation",
        "sliding_window",
        "query_pre_attn_scalar",
        "attn_logit_softcapping",
        "final_logit_softcapping",
    },
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048},
    "mistral": {
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "qwen2": {
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "use_sliding_window": False,
        "max_window_layers": 28,
    },
    "gemma2": {
        "max_position_embeddings": 8192,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "tie_word_embeddings": True,
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": 4096,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
}
_DEFAULTS_OF_ALL = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}


def wrong(field: str, problem: str) -> UserError:
    """The error that names a field of a config.json."""
    return UserError(f"config.json: {field} {problem}")


class Fields:
    """Typed access to the fields of one config; every failure names the field."""

    def __init__(self, data: Mapping[str, Any], family: str) -> None:
        self.data = {**_DEFAULTS_OF_ALL, **_DEFAULTS.get(family, {}), **data}
        self.family = family

    def number(self, key: str) -> float:
        value = self.data.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong(key, f"is {value!r}, not a number" if key in self.data else "is missing")
        if not 0 < value < _TOO_LARGE:  # NaN fails too
            raise wrong(key, "is not a positive number of sensible size")
        return value

    def count(self, key: str, absent: int | None = None) -> int:
        """A positive whole number; `absent` stands for a missing field or null."""
        if self.data.get(key) is None and absent is not None:
            return absent
        value = self.number(key)
        if value != int(value):
            raise wrong(key, f"is {value!r}, not a whole number")
        return int(value)

    def optional(self, key: str) -> float | None:
        return None if self.data.get(key) is None else float(self.number(key))

    def flag(self, key: str) -> bool:
        value = self.data.get(key, False)
        if not isinstance(value, bool):
            raise wrong(key, f"is {value!r}, not true or false")
        return value

    def activation(self, key: str) -> str:
        name = self.data.get(key)
        if not isinstance(name, str) or name not in _ACTIVATIONS:
            raise wrong(key, f"is {name!r}; supported: {', '.join(_ACTIVATIONS)}")
        return _ACTIVATIONS[name]


def _family(data: Mapping[str, Any]) -> str:
    family = data.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise wrong("model_type", f"is {family!r}; supported: {', '.join(ARCHITECTURES)}")
    names = data.get("architectures") or [ARCHITECTURES[family]]
    if names != [ARCHITECTURES[family]]:
        raise wrong(
            "architectures", f"is {names!r}; supported for {family}: {ARCHITECTURES[family]}"
        )
    return family


def refuse_unknown(data: Mapping[str, Any], family: str, own: set[str]) -> None:
    """Refuses every field but `own` ones, those that change nothing, and neutral values."""
    known = own | _HARMLESS
    for key, value in data.items():
        if key in _CODE or key.startswith("_attn"):
            raise wrong(key, "asks to run code; remove it after checking where the model is from")
        if key in known:
            continue
        if key not in _NEUTRAL:
            raise wrong(key, f"is not supported for {family} models and may change the numbers")
        if value not in _NEUTRAL[key]:
            raise wrong(key, f"is {value!r}; only {_NEUTRAL[key][0]!r} is supported")


def _rope_settings(fields: Fields, given: Mapping[str, Any]) -> dict[str, Any]:
    """One dict from the spellings of transformers 4 and 5, which must agree."""
    both = [given[key] for key in ("rope_parameters", "rope_scaling") if given.get(key)]
    for settings in both:
        if not isinstance(settings, dict):
            raise wrong("rope_parameters", f"is {settings!r}, not an object")
    merged: dict[str, Any] = {"rope_theta": fields.number("rope_theta")}
    explicit = {"rope_theta": given["rope_theta"]} if "rope_theta" in given else {}
    for settings in both:
        for key, value in settings.items():
            key = "rope_type" if key == "type" else key
            if explicit.setdefault(key, value) != value:
                raise wrong(key, f"is given twice, as {explicit[key]!r} and {value!r}")
    return {**merged, **explicit}


def _rope(
    fields: Fields, given: Mapping[str, Any]
) -> tuple[float, Llama3RopeScaling | LinearRopeScaling | None]:
    """(theta, scaling)."""
    settings = Fields(_rope_settings(fields, given), fields.family)
    kind = settings.data.get("rope_type", "default")
    keys = {"default": (), "linear": ("factor",)}
    keys["llama3"] = (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    )
    if not isinstance(kind, str) or kind not in keys:
        raise wrong("rope_scaling", f"has type {kind!r}; supported: {', '.join(keys)}")
    for key in _rope_settings(fields, given):
        if key not in ("rope_theta", "rope_type", *keys[kind]):
            raise wrong("rope_scaling", f"of type {kind} has the unsupported field {key!r}")
    theta = float(settings.number("rope_theta"))
    if kind == "default":
        return theta, None
    factor = float(settings.number("factor"))
    if kind == "linear":
        return theta, LinearRopeScaling(factor)
    low, high = settings.number("low_freq_factor"), settings.number("high_freq_factor")
    if low >= high:
        raise wrong("rope_scaling", "has low_freq_factor not below high_freq_factor")
    original = settings.count("original_max_position_embeddings")
    return theta, Llama3RopeScaling(factor, float(low), float(high), original)


def _window(fields: Fields, layers: int) -> dict[str, Any]:
    """Window settings; `layer_types`, where given, must be a pattern that we have."""
    first = 0 if fields.family in ("mistral", "gemma2") else layers
    width = fields.optional("sliding_window")
    if fields.family == "qwen2":
        width = width if fields.flag("use_sliding_window") else None
        first = 0 if fields.data["max_window_layers"] == 0 else fields.count("max_window_layers")
    slides = [width is not None and layer >= first for layer in range(layers)]
    if fields.family == "gemma2":
        slides = [slide and layer % 2 == 0 for layer, slide in enumerate(slides)]
    alternating = [layer % 2 == 0 for layer in range(layers)]
    if fields.data.get("layer_types") is not None:
        _check_layer_types(fields.data["layer_types"], layers)
        slides = [kind == "sliding_attention" for kind in fields.data["layer_types"]]
    if not any(slides):
        return {"window": None, "alternate_window": False}
    if width is None:
        raise wrong("layer_types", "names sliding layers, but sliding_window is null")
    alternate = fields.family == "gemma2"
    if slides != (alternating if alternate else [True] * layers):
        raise wrong(
            "max_window_layers" if fields.family == "qwen2" else "layer_types",
            "limits the sliding window to a pattern of layers that is not supported",
        )
    return {"window": fields.count("sliding_window"), "alternate_window": alternate}


def _check_layer_types(kinds: Any, layers: int) -> None:
    allowed = ("sliding_attention", "full_attention")
    right = isinstance(kinds, list) and len(kinds) == layers
    if not right or any(kind not in allowed for kind in kinds):
        raise wrong("layer_types", f"is not a list of {layers} items out of {', '.join(allowed)}")


def _gemma2(fields: Fields) -> dict[str, Any]:
    return {
        "scale_embeddings": True,
        "norm_plus_one": True,
        "post_norms": True,
        "attn_softcap": fields.optional("attn_logit_softcapping"),
        "final_softcap": fields.optional("final_logit_softcapping"),
        "query_scale": float(fields.number("query_pre_attn_scalar")) ** -0.5,
    }


def _heads(fields: Fields) -> dict[str, int]:
    heads, hidden = fields.count("num_attention_heads"), fields.count("hidden_size")
    kv_heads = fields.count("num_key_value_heads", absent=heads)
    if heads % kv_heads:
        raise wrong("num_key_value_heads", f"is {kv_heads}, which does not divide {heads} heads")
    if fields.data.get("head_dim") is None and hidden % heads:
        raise wrong("hidden_size", f"is {hidden}, which {heads} heads do not divide")
    head_dim = fields.count("head_dim", absent=hidden // heads)
    if head_dim % 2:
        raise wrong("head_dim", f"is {head_dim}: rotary positions need an even number")
    return {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": head_dim}


def config_from_json(data: Mapping[str, Any]) -> ModelConfig:
    """The architecture that a config.json describes.

    Raises UserError for an unknown model type and for any field that asks for code, is
    unknown, or has a value that would change the numbers in a way we do not compute.
    """
    family = _family(data)
    refuse_unknown(data, family, _SHARED | _OWN[family])
    fields = Fields(data, family)
    theta, scaling = _rope(fields, data)
    layers = fields.count("num_hidden_layers")
    if layers > MAX_LAYERS:
        raise wrong("num_hidden_layers", f"is {layers}; at most {MAX_LAYERS} are believed")
    gemma = family == "gemma2"
    return ModelConfig(
        vocab_size=fields.count("vocab_size"),
        hidden_size=fields.count("hidden_size"),
        intermediate_size=fields.count("intermediate_size"),
        num_layers=layers,
        max_position=fields.count("max_position_embeddings"),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=float(fields.number("rms_norm_eps")),
        tie_embeddings=fields.flag("tie_word_embeddings"),
        qkv_bias=family == "qwen2",
        activation=fields.activation("hidden_activation" if gemma else "hidden_act"),
        family=family,
        **_heads(fields),
        **_window(fields, layers),
        **(_gemma2(fields) if gemma else {}),
    )


def _rope_json(config: ModelConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_theta": config.rope_theta, "rope_scaling": None}
    if isinstance(scaling, LinearRopeScaling):
        settings: dict[str, Any] = {"rope_type": "linear", "factor": scaling.factor}
    else:
        settings = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    return {"rope_theta": config.rope_theta, "rope_scaling": settings}


def _family_json(config: ModelConfig) -> dict[str, Any]:
    activation = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}[config.activation]
    if config.family == "gemma2":
        return {
            "hidden_activation": activation,
            "sliding_window": config.window,
            "query_pre_attn_scalar": round(config.scale**-2),
            "attn_logit_softcapping": config.attn_softcap,
            "final_logit_softcapping": config.final_softcap,
        }
    if config.family == "qwen2":
        window = {} if config.window is None else {"sliding_window": config.window}
        uses = config.window is not None
        layers = 0 if uses else config.num_layers
        return {
            "hidden_act": activation,
            "use_sliding_window": uses,
            "max_window_layers": layers,
            **window,
        }
    extra = {"sliding_window": config.window} if config.family == "mistral" else {}
    return {"hidden_act": activation, **extra}


def config_to_json(config: ModelConfig) -> dict[str, Any]:
    """A config.json that transformers loads. Raises UserError when its class cannot say it."""
    data = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        **_rope_json(config),
        **_family_json(config),
    }
    named = replace(config, query_scale=config.scale) if config.family == "gemma2" else config
    if config_from_json(data) != named:
        raise UserError(
            f"this model cannot be written as a {config.family} config.json: transformers' "
            f"{ARCHITECTURES[config.family]} has no words for some of {config}"
        )
    return data


def read_config(path: Path) -> ModelConfig:
    """Read and check a config.json. Raises UserError naming the file."""
    data = read_object(path)
    try:
        return config_from_json(data)
    except UserError as error:
        raise UserError(f"{path.parent}: {error}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError naming the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: not a JSON object")
    return data
