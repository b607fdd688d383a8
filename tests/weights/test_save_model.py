"""Models written by us, loaded by transformers, and the other way round: equal logits."""

import json
from dataclasses import replace
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.models.config import ModelConfig
from selfevo_jax.models.llama import abstract_params, init_params
from selfevo_jax.models.presets import PRESETS
from selfevo_jax.weights.model_files import open_model, save_model
from selfevo_jax.weights.names import leaves

FAMILIES = ("llama", "llama_tied", "mistral", "qwen2", "gemma2")
TINY = ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_position=32,
)


def flat_shapes(tree, prefix=()):
    if not isinstance(tree, dict):
        return {prefix: tree.shape}
    return {p: s for key, sub in tree.items() for p, s in flat_shapes(sub, (*prefix, key)).items()}


@pytest.mark.parametrize("name", PRESETS)
def test_the_name_table_covers_the_parameter_tree(name):
    config = PRESETS[name]
    table = {leaf.path: leaf.shape for leaf in leaves(config)}
    assert table == flat_shapes(abstract_params(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_transformers_folder_gives_the_same_logits(
    family, hf_folders, torch_models, our_logits, torch_logits
):
    files = open_model(hf_folders(family))
    expected_btv = torch_logits(torch_models(family))
    assert np.abs(expected_btv).max() > 1
    np.testing.assert_allclose(our_logits(files.config, files.load()), expected_btv, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_what_we_write(family, hf_folders, torch_models, torch_logits, tmp_path):
    auto = import_module("transformers").AutoModelForCausalLM
    files = open_model(hf_folders(family))
    save_model(tmp_path / "out", files.config, files.load(), shard_bytes=60_000)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2  # sharded
    model, info = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    expected_btv = torch_logits(torch_models(family))
    np.testing.assert_allclose(torch_logits(model.eval()), expected_btv, atol=1e-5)
    assert open_model(tmp_path / "out").config == files.config


def test_bfloat16_is_written_and_read_back_exactly(tmp_path):
    params = init_params(TINY, jax.random.key(0), jnp.bfloat16)
    save_model(tmp_path / "out", TINY, params, jnp.bfloat16)
    again = open_model(tmp_path / "out").load(dtype=jnp.bfloat16)
    kernel = ("layers", "mlp", "down_proj", "kernel")
    mine, read = params, again
    for key in kernel:
        mine, read = mine[key], read[key]
    assert read.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(mine), np.asarray(read))
    data = json.loads((tmp_path / "out" / "config.json").read_text())
    assert data["torch_dtype"] == "bfloat16"


@pytest.fixture
def tiny_params():
    return init_params(TINY, jax.random.key(0))


def test_a_failed_write_leaves_the_older_model(tmp_path, tiny_params):
    save_model(tmp_path / "out", TINY, tiny_params)
    before = open_model(tmp_path / "out").hash

    def fails(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left on device"):
        save_model(tmp_path / "out", TINY, tiny_params, save_tokenizer=fails)
    assert open_model(tmp_path / "out").hash == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_write_replaces_the_first_entirely(tmp_path, tiny_params):
    save_model(tmp_path / "out", TINY, tiny_params, shard_bytes=3_000)
    save_model(tmp_path / "out", TINY, tiny_params)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.json", "model.safetensors"]


def test_equal_parameters_give_equal_hashes(tmp_path, tiny_params):
    save_model(tmp_path / "a", TINY, tiny_params)
    save_model(tmp_path / "b", TINY, tiny_params)
    assert open_model(tmp_path / "a").hash == open_model(tmp_path / "b").hash
    tiny_params["final_norm"]["scale"] = tiny_params["final_norm"]["scale"] + 1
    save_model(tmp_path / "b", TINY, tiny_params)
    assert open_model(tmp_path / "a").hash != open_model(tmp_path / "b").hash


def test_tokenizer_files_travel(tmp_path, tiny_params):
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text("{}")
    (tmp_path / "tok" / "model.safetensors").write_text("not this one")
    save_model(tmp_path / "out", TINY, tiny_params, tokenizer_files_from=tmp_path / "tok")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    with pytest.raises(UserError, match="no tokenizer files"):
        save_model(tmp_path / "o2", TINY, tiny_params, tokenizer_files_from=tmp_path / "out2")


def test_a_model_without_words_for_it_is_refused(tmp_path, tiny_params):
    with pytest.raises(UserError, match="LlamaForCausalLM"):
        save_model(tmp_path / "out", replace(TINY, final_softcap=3.0), tiny_params)
