"""config.json against transformers' own config classes, and everything that is refused."""

import json

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.models.config import LinearRopeScaling, Llama3RopeScaling
from selfevo_jax.models.presets import PRESETS
from selfevo_jax.weights.hf_config import config_from_json, config_to_json, read_config

NEEDED = dict(
    vocab_size=160, hidden_size=64, intermediate_size=96, num_hidden_layers=4,
    num_attention_heads=32,
)  # fmt: skip
LLAMA = dict(model_type="llama", **NEEDED)
CLASSES = {
    "llama": "LlamaConfig",
    "mistral": "MistralConfig",
    "qwen2": "Qwen2Config",
    "gemma2": "Gemma2Config",
}
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)  # fmt: skip


def by_transformers(data: dict) -> dict:
    """The same config after transformers filled in and rewrote it (version 5 spelling)."""
    transformers = pytest.importorskip("transformers")
    own = {key: value for key, value in data.items() if key != "model_type"}
    return getattr(transformers, CLASSES[data["model_type"]])(**own).to_dict()


@pytest.mark.parametrize("family", CLASSES)
def test_absent_fields_get_transformers_defaults(family):
    data = dict(model_type=family, **NEEDED)
    assert config_from_json(data) == config_from_json(by_transformers(data))


@pytest.mark.parametrize(
    "extra",
    [
        dict(model_type="llama", rope_theta=5e5, rope_scaling=LLAMA3, head_dim=16),
        dict(model_type="llama", rope_scaling=dict(type="linear", factor=2.0)),
        dict(model_type="mistral", sliding_window=None, rope_theta=1e6),
        dict(model_type="mistral", sliding_window=9, num_key_value_heads=2),
        dict(model_type="qwen2", use_sliding_window=True, sliding_window=7, max_window_layers=0),
        dict(model_type="qwen2", use_sliding_window=True, sliding_window=7, max_window_layers=4),
        dict(model_type="qwen2", use_sliding_window=False, sliding_window=7, max_window_layers=2),
        dict(model_type="gemma2", sliding_window=9, query_pre_attn_scalar=144),
        dict(model_type="gemma2", attn_logit_softcapping=None, final_logit_softcapping=None),
    ],
    ids=str,
)
def test_both_spellings_mean_the_same(extra):
    data = {**NEEDED, **extra}
    assert config_from_json(data) == config_from_json(by_transformers(data))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_transformers(name):
    """Ours -> config.json -> transformers -> its config.json -> ours."""
    config = PRESETS[name]
    data = config_to_json(config)
    assert config_from_json(json.loads(json.dumps(data))) == config
    assert config_from_json(by_transformers(data)) == config


def test_values_arrive_where_they_belong():
    rope = dict(LLAMA3, rope_theta=500000.0)
    config = config_from_json(dict(LLAMA, rope_parameters=rope, num_key_value_heads=8))
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == Llama3RopeScaling(8.0, 1.0, 4.0, 8192)
    assert (config.num_kv_heads, config.head_dim) == (8, 2)
    linear = config_from_json(dict(LLAMA, rope_scaling=dict(type="linear", factor=4)))
    assert linear.rope_scaling == LinearRopeScaling(4.0)
    gemma = config_from_json(dict(model_type="gemma2", **NEEDED))
    assert (gemma.window, gemma.alternate_window, gemma.attn_softcap) == (4096, True, 50.0)
    assert gemma.norm_plus_one and gemma.post_norms and gemma.scale_embeddings


REFUSED = {
    "auto_map": {"AutoModelForCausalLM": "evil.Model"},
    "trust_remote_code": True,
    "_attn_implementation": "some/kernel",
    "_attn_implementation_internal": "some/kernel",
    "kernels": ["x"],
    "attention_bias": True,
    "mlp_bias": True,
    "rope_interleaved": True,
    "quantization_config": {"bits": 4},
    "hidden_act": "relu",
    "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
    "attn_logit_softcapping": 30.0,
    "num_local_experts": 8,
    "sliding_window": 4,
    "partial_rotary_factor": 0.5,
    "num_hidden_layers": 10**9,
    "vocab_size": 10**400,
    "hidden_size": -4,
    "intermediate_size": "96",
    "rms_norm_eps": float("nan"),
    "tie_word_embeddings": "yes",
    "num_key_value_heads": 5,
    "head_dim": 3,
    "layer_types": ["sliding_attention"] * 4,
    "architectures": ["LlamaForSequenceClassification"],
    "model_type": "falcon",
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_would_change_the_numbers_is_named(field):
    config_from_json(LLAMA)  # right without it
    with pytest.raises(UserError, match=field):
        config_from_json({**LLAMA, field: REFUSED[field]})


def test_an_unknown_model_names_those_supported():
    with pytest.raises(UserError, match="falcon.*llama, mistral, qwen2, gemma2"):
        config_from_json(dict(LLAMA, model_type="falcon"))


@pytest.mark.parametrize("field", NEEDED)
def test_a_missing_size_is_named(field):
    with pytest.raises(UserError, match=f"{field} is missing"):
        config_from_json({key: value for key, value in LLAMA.items() if key != field})


def test_rope_that_contradicts_itself_is_refused():
    with pytest.raises(UserError, match="rope_theta is given twice"):
        config_from_json(dict(LLAMA, rope_theta=1e4, rope_parameters={"rope_theta": 5e5}))


def test_a_window_in_some_layers_is_refused():
    data = dict(LLAMA, model_type="qwen2", use_sliding_window=True, max_window_layers=2)
    with pytest.raises(UserError, match="max_window_layers"):
        config_from_json(data)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"a": ' + "[" * 100_000])
def test_a_broken_file_is_named(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match="config.json"):
        read_config(tmp_path / "config.json")


def test_hub_configs_written_by_transformers_4_load():
    """Fields as published: SmolLM2-135M-Instruct and gemma-2-2b (bookkeeping included)."""
    smol = dict(
        architectures=["LlamaForCausalLM"], attention_bias=False, attention_dropout=0.0,
        bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=576,
        initializer_range=0.041666666666666664, intermediate_size=1536, is_llama_config=True,
        max_position_embeddings=8192, mlp_bias=False, model_type="llama", num_attention_heads=9,
        num_hidden_layers=30, num_key_value_heads=3, pad_token_id=2, pretraining_tp=1,
        rms_norm_eps=1e-05, rope_interleaved=False, rope_scaling=None, rope_theta=100000,
        tie_word_embeddings=True, torch_dtype="bfloat16", transformers_version="4.42.3",
        use_cache=True, vocab_size=49152,
    )  # fmt: skip
    smol["transformers.js_config"] = {"kv_cache_dtype": {"q4f16": "float16"}}
    assert config_from_json(smol) == PRESETS["smollm2_135m"]
    gemma = dict(
        architectures=["Gemma2ForCausalLM"], attention_bias=False, attention_dropout=0.0,
        attn_logit_softcapping=50.0, bos_token_id=2, cache_implementation="hybrid",
        eos_token_id=1, final_logit_softcapping=30.0, head_dim=256,
        hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", hidden_size=2304,
        initializer_range=0.02, intermediate_size=9216, max_position_embeddings=8192,
        model_type="gemma2", num_attention_heads=8, num_hidden_layers=26, num_key_value_heads=4,
        pad_token_id=0, query_pre_attn_scalar=256, rms_norm_eps=1e-06, rope_theta=10000.0,
        sliding_window=4096, torch_dtype="float32", transformers_version="4.42.4",
        use_cache=True, vocab_size=256000,
    )  # fmt: skip
    assert config_from_json(gemma) == PRESETS["gemma2_2b"]
