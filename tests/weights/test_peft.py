"""Adapters against peft: it loads ours, we load its, and neither takes a wrong one."""

import json
from dataclasses import replace
from importlib import import_module

import jax
import numpy as np
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.models.lora import LoraConfig, adapter, init_lora
from selfevo_jax.weights.model_files import open_model
from selfevo_jax.weights.peft import CONFIG, WEIGHTS, load_peft, save_peft
from selfevo_jax.weights.safetensors_io import read_file

FAMILIES = ("llama", "mistral", "qwen2", "gemma2")
LORAS = {
    "all": LoraConfig(rank=4, alpha=8.0),
    "rslora_qv": LoraConfig(rank=4, alpha=6.5, rslora=True, targets="layers/attn/[qv]_proj"),
}


def random_lora(config, lora, seed=0):
    """A tree whose b is not zero, so that the adapter changes the logits."""
    tree = init_lora(config, lora, jax.random.key(seed))
    leaves, form = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    pairs = zip(leaves, keys, strict=True)
    return jax.tree.unflatten(form, [x + 0.1 * jax.random.normal(k, x.shape) for x, k in pairs])


def on_base(folder, adapter_folder):
    transformers, peft = import_module("transformers"), import_module("peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return peft.PeftModel.from_pretrained(base, adapter_folder).eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", LORAS)
def test_peft_loads_ours_with_equal_logits(
    family, name, hf_folders, torch_models, our_logits, torch_logits, tmp_path
):
    files, lora = open_model(hf_folders(family)), LORAS[name]
    tree = random_lora(files.config, lora)
    save_peft(tmp_path / "a", tree, lora, "base", files.hash)
    expected_btv = torch_logits(on_base(hf_folders(family), tmp_path / "a"))
    got_btv = our_logits(files.config, files.load(), adapter=adapter(tree, lora))
    plain_btv = torch_logits(torch_models(family))
    assert np.abs(expected_btv - plain_btv).max() > 0.1  # the adapter does something
    np.testing.assert_allclose(got_btv, expected_btv, atol=1e-4)


def peft_written(folder, base, **options):
    """An adapter by peft itself, with random B."""
    torch, peft = import_module("torch"), import_module("peft")
    transformers = import_module("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.1)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        dict(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]),
        dict(r=3, lora_alpha=8, target_modules="all-linear", use_rslora=True, lora_dropout=0.1),
        dict(r=4, lora_alpha=4, target_modules=r".*mlp\.up_proj", rank_pattern={"up_proj": 4}),
    ],
    ids=["list", "all-linear", "regex"],
)
def test_we_load_what_peft_wrote(options, hf_folders, our_logits, torch_logits, tmp_path):
    files = open_model(hf_folders("llama"))
    model = peft_written(tmp_path / "theirs", hf_folders("llama"), **options)
    tree, lora = load_peft(tmp_path / "theirs", files.config)
    got_btv = our_logits(files.config, files.load(), adapter=adapter(tree, lora))
    np.testing.assert_allclose(got_btv, torch_logits(model), atol=1e-4)
    assert lora.dropout == options.get("lora_dropout", 0.0)
    save_peft(tmp_path / "ours", tree, lora, "base")
    assert (tmp_path / "ours" / WEIGHTS).read_bytes() == (
        tmp_path / "theirs" / WEIGHTS
    ).read_bytes()


@pytest.fixture
def saved(hf_folders, tmp_path):
    """(folder, config, tree, lora) of a good adapter."""
    config = open_model(hf_folders("llama")).config
    tree = random_lora(config, LORAS["all"])
    save_peft(tmp_path / "a", tree, LORAS["all"], "base", "0" * 64)
    return tmp_path / "a", config, tree, LORAS["all"]


@pytest.mark.parametrize("name", LORAS)
def test_what_is_read_is_what_was_written(name, saved, tmp_path):
    _, config, *_ = saved
    tree = random_lora(config, LORAS[name])
    save_peft(tmp_path / "b", tree, LORAS[name], "base")
    again, lora = load_peft(tmp_path / "b", config)
    jax.tree.map(np.testing.assert_array_equal, tree, again)
    assert (lora.rank, lora.alpha, lora.rslora) == (4, LORAS[name].alpha, LORAS[name].rslora)
    assert jax.tree.structure(init_lora(config, lora, jax.random.key(0))) == (
        jax.tree.structure(tree)
    )
    if name == "all":
        assert lora == LORAS["all"]


def test_equal_adapters_are_equal_bytes(saved, tmp_path):
    folder, _, tree, lora = saved
    save_peft(tmp_path / "b", tree, lora, "base", "0" * 64)
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "b" / name).read_bytes() == (folder / name).read_bytes()


def test_another_base_is_refused(saved, hf_folders):
    folder, config, *_ = saved
    load_peft(folder, config, "0" * 64)
    with pytest.raises(UserError, match="trained on the base"):
        load_peft(folder, config, "1" * 64)


def test_a_base_of_another_shape_is_refused(saved):
    folder, config, *_ = saved
    with pytest.raises(UserError, match="mlp.*another base"):
        load_peft(folder, replace(config, intermediate_size=128))
    with pytest.raises(UserError, match="layers.2.* has no place"):
        load_peft(folder, replace(config, num_layers=2))
    with pytest.raises(UserError, match="layers.3.* is missing"):
        load_peft(folder, replace(config, num_layers=4))


def rewrite(folder, change):
    save = import_module("safetensors.numpy").save_file
    arrays = {key: np.array(value) for key, value in read_file(folder / WEIGHTS)[0].items()}
    change(arrays)
    save(arrays, folder / WEIGHTS)


KEY = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"


def test_missing_and_unused_keys_are_named(saved):
    folder, config, *_ = saved
    rewrite(folder, lambda arrays: arrays.update({KEY.replace("A.w", "A.default.w"): arrays[KEY]}))
    with pytest.raises(UserError, match="lora_A.default.weight.* has no place"):
        load_peft(folder, config)
    rewrite(folder, lambda arrays: arrays.pop(KEY.replace("A.w", "A.default.w")))
    load_peft(folder, config)
    rewrite(folder, lambda arrays: arrays.pop(KEY))
    with pytest.raises(UserError, match="up_proj.lora_A.weight.* is missing"):
        load_peft(folder, config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("rank_pattern", {"q_proj": 8}),
        ("alpha_pattern", {"q_proj": 1}),
        ("modules_to_save", ["lm_head"]),
        ("bias", "all"),
        ("lora_bias", True),
        ("layers_to_transform", [0]),
        ("fan_in_fan_out", True),
        ("peft_type", "IA3"),
        ("r", 0),
        ("lora_alpha", "x"),
        ("lora_dropout", 1.5),
        ("use_rslora", 3),
        ("target_modules", ["q_proj"]),
        ("some_new_field", 1),
    ],
)
def test_more_than_plain_lora_is_named(field, value, saved):
    folder, config, *_ = saved
    data = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**data, field: value}))
    with pytest.raises(UserError, match=field):
        load_peft(folder, config)


def test_a_pickled_adapter_is_refused(saved):
    folder, config, *_ = saved
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match="adapter_model.safetensors.*pickle"):
        load_peft(folder, config)
    with pytest.raises(UserError, match="adapter_config.json"):
        load_peft(folder / "nowhere", config)
