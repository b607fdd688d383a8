"""GGUF against the gguf library and transformers' own GGUF loader."""

import json
from dataclasses import replace
from importlib import import_module

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from selfevo_jax.errors import UserError
from selfevo_jax.models.config import LinearRopeScaling
from selfevo_jax.models.presets import PRESETS
from selfevo_jax.weights import gguf_io
from selfevo_jax.weights.gguf_io import GgufFile, half_split_rows, read_metadata
from selfevo_jax.weights.hf_config import config_from_json
from selfevo_jax.weights.model_files import open_model
from selfevo_jax.weights.names import leaves
from selfevo_jax.weights.safetensors_io import SafetensorsFolder

ARCHITECTURE = {"llama": "llama", "llama_tied": "llama", "qwen2": "qwen2", "gemma2": "gemma2"}


def interleaved(weight, heads):
    """What convert_hf_to_gguf.py does to q and k of the llama architecture."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return rows.swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path, folder, arch, permute=True, extra=lambda writer: None):
    """A GGUF as llama.cpp's converter would write it from a Hugging Face folder."""
    config = config_from_json(json.loads((folder / "config.json").read_text()))
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_layers)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    if arch == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_softcap)
        writer.add_final_logit_softcapping(config.final_softcap)
        writer.add_sliding_window(config.window)
    extra(writer)
    store = SafetensorsFolder(folder, config.tie_embeddings)
    heads = {"attn_q.w": config.num_heads, "attn_k.w": config.num_kv_heads}
    for leaf in leaves(config):
        for layer in leaf.layers:
            value = store.read(store.name(leaf, layer), [(0, n) for n in leaf.file_shape])
            name = leaf.gguf.format(layer=layer)
            for part, count in heads.items():
                if arch == "llama" and permute and part in name:
                    value = interleaved(value, count)
            plus = 1 if arch == "gemma2" and name.endswith("norm.weight") else 0
            writer.add_tensor(name, np.ascontiguousarray(value) + np.float32(plus))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("family", ["llama_tied", "qwen2", "gemma2"])
def test_a_converted_model_gives_the_logits_of_its_original(
    family, hf_folders, torch_models, our_logits, torch_logits, tmp_path
):
    path = write_gguf(tmp_path / "m.gguf", hf_folders(family), ARCHITECTURE[family])
    files = open_model(path)
    config = files.config
    if family == "gemma2":  # llama.cpp keeps no query_pre_attn_scalar below 27B
        config = replace(config, query_scale=32**-0.5)
    assert config == open_model(hf_folders(family)).config
    expected_btv = torch_logits(torch_models(family))
    np.testing.assert_allclose(our_logits(config, files.load()), expected_btv, atol=1e-4)


@pytest.mark.parametrize("family", ["llama_tied", "qwen2", "gemma2"])
def test_transformers_reads_the_same_numbers_from_the_file(
    family, hf_folders, our_logits, torch_logits, tmp_path
):
    auto = import_module("transformers").AutoModelForCausalLM
    path = write_gguf(tmp_path / "m.gguf", hf_folders(family), ARCHITECTURE[family])
    model = auto.from_pretrained(tmp_path, gguf_file="m.gguf", dtype="float32").eval()
    # It ignores Gemma's caps and scale, so both sides take its config.
    config = config_from_json({**model.config.to_dict(), "quantization_config": None})
    np.testing.assert_allclose(
        our_logits(config, open_model(path).load()), torch_logits(model), atol=1e-4
    )


def test_the_rows_of_q_and_k_are_put_back():
    weight = np.arange(12 * 2).reshape(12, 2)
    for heads in (1, 2, 3):
        stored = interleaved(weight, heads)
        np.testing.assert_array_equal(stored[half_split_rows(12, heads)], weight)


@pytest.mark.parametrize(
    "kind",
    [Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0]
    + [Kind.TQ1_0, Kind.TQ2_0, Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K]
    + [Kind.IQ4_NL, Kind.IQ4_XS, Kind.IQ2_XXS, Kind.IQ2_XS, Kind.IQ3_XXS, Kind.IQ1_S, Kind.IQ1_M],
)
def test_slices_of_every_quantisation_equal_the_whole(kind, tmp_path):
    """Rows and columns that cut through blocks, against gguf's dequantisation of the tensor."""
    rows, columns = 6, 1024
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = np.random.default_rng(1).integers(0, 60, (rows, columns // block * size), np.uint8)
    tensor = gguf_io.GgufTensor("x", (rows, columns), kind, 0, raw.size)
    whole = dequantize(raw, kind)
    blocks = raw.reshape(rows, -1, size)
    for start, stop in [(0, 1024), (5, 300), (256, 512), (1000, 1024)]:
        part = gguf_io._dequantized(blocks, tensor, slice(1, 4), start, stop)
        np.testing.assert_array_equal(part, whole[1:4, start:stop])


def test_an_integer_tensor_is_refused_by_name(tmp_path, hf_folders):
    path = tmp_path / "m.gguf"
    write_gguf(path, hf_folders("llama_tied"), "llama")
    data = path.read_bytes()
    name = b"output_norm.weight"
    at = data.index(name) + len(name) + 4 + 8
    assert data[at : at + 4] == bytes(4)  # F32
    path.write_bytes(data[:at] + int(Kind.I32).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(UserError, match="output_norm.weight is stored as I32"):
        open_model(path).load()


def test_metadata_equals_the_gguf_library(smollm2):
    reader = gguf.GGUFReader(smollm2.path)
    ours = read_metadata(smollm2.path)
    theirs = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key] == (pytest.approx(value) if isinstance(value, float) else value), key
    assert len(ours["tokenizer.ggml.tokens"]) == 49152
    assert ours["tokenizer.ggml.add_bos_token"] is False


def test_tensor_places_equal_the_gguf_library(smollm2):
    reader = gguf.GGUFReader(smollm2.path)
    ours = GgufFile(smollm2.path).header.tensors
    theirs = {t.name: (t.data_offset, t.n_bytes, tuple(reversed(t.shape))) for t in reader.tensors}
    assert {t.name: (t.start, t.size, t.shape) for t in ours.values()} == theirs


def test_smollm2_is_its_preset(smollm2):
    assert smollm2.config == PRESETS["smollm2_135m"]
    assert smollm2.hash == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def rope_factors(theta, head_dim, factor=32.0, low=1.0, high=4.0, original=8192):
    """The loop of `LlamaModel.generate_extra_tensors` in convert_hf_to_gguf.py."""
    factors = []
    for frequency in 1.0 / theta ** (np.arange(0, head_dim, 2) / head_dim):
        wavelength = 2 * np.pi / frequency
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def test_llama3_scaling_is_recovered_from_the_factors(tmp_path, hf_folders):
    def extra(writer):
        writer.add_tensor("rope_freqs.weight", rope_factors(10_000.0, 16))

    path = write_gguf(tmp_path / "m.gguf", hf_folders("llama_tied"), "llama", extra=extra)
    scaling = open_model(path).config.rope_scaling
    assert scaling == PRESETS["llama32_1b"].rope_scaling
    open_model(path).load()


def test_factors_of_no_known_scaling_are_refused(tmp_path, hf_folders):
    def extra(writer):
        writer.add_tensor("rope_freqs.weight", np.linspace(1, 3, 8, dtype=np.float32))

    path = write_gguf(tmp_path / "m.gguf", hf_folders("llama_tied"), "llama", extra=extra)
    with pytest.raises(UserError, match="rope_freqs.weight"):
        open_model(path)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (lambda w: w.add_expert_count(8), "expert_count"),
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), "rope.scaling.type"),
        (lambda w: w.add_uint32("llama.attention.temperature_length", 3), "temperature_length"),
        (lambda w: w.add_rope_dimension_count(8), "rope.dimension_count"),
        (lambda w: w.add_uint16("split.count", 3), "llama-gguf-split --merge"),
        (lambda w: w.add_final_logit_softcapping(3.0), "final_logit_softcapping"),
    ],
)
def test_metadata_that_changes_the_numbers_is_named(add, message, tmp_path, hf_folders):
    path = write_gguf(tmp_path / "m.gguf", hf_folders("llama_tied"), "llama", extra=add)
    with pytest.raises(UserError, match=message):
        open_model(path)


def test_another_architecture_is_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError, match="'mamba'.*llama, qwen2, gemma2"):
        open_model(tmp_path / "m.gguf")


def test_linear_scaling_is_read(tmp_path, hf_folders):
    def extra(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    path = write_gguf(tmp_path / "m.gguf", hf_folders("llama_tied"), "llama", extra=extra)
    assert open_model(path).config.rope_scaling == LinearRopeScaling(4.0)
