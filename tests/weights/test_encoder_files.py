"""Encoder folders: what is read, what decides the hash, and what is refused."""

import json
import shutil

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.models.bert import BertConfig
from selfevo_jax.weights.encoder_files import bert_config, is_encoder, open_encoder
from selfevo_jax.weights.model_files import open_model

GIVEN = dict(
    model_type="bert", vocab_size=50, hidden_size=12, intermediate_size=20, num_hidden_layers=2,
    num_attention_heads=3, max_position_embeddings=64,
)  # fmt: skip
MEAN = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
PIPELINE = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {
        "idx": 2,
        "name": "2",
        "path": "2_Normalize",
        "type": "sentence_transformers.models.Normalize",
    },
]


@pytest.fixture
def folder(tiny_bert, tmp_path):
    return tiny_bert(tmp_path / "encoder")


def write(path, data):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(data))


def test_defaults_are_those_of_transformers():
    transformers = pytest.importorskip("transformers", reason="no parity libraries")
    own = {key: value for key, value in GIVEN.items() if key != "model_type"}
    saved = transformers.BertConfig(**own).to_dict()
    assert bert_config(saved) == bert_config(GIVEN) == BertConfig(50, 12, 20, 2, 3, 64, 2, 1e-12)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "mpnet"),
        ("architectures", ["BertForMaskedLM"]),
        ("hidden_act", "gelu_new"),
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("auto_map", {"AutoModel": "model.py"}),
        ("embedding_size", 128),
        ("hidden_size", 13),
        ("num_hidden_layers", 100_000),
        ("layer_norm_eps", 0),
        ("vocab_size", "many"),
    ],
)
def test_what_would_change_the_vectors_is_refused(field, value):
    with pytest.raises(UserError, match=field):
        bert_config(GIVEN | {field: value})


def test_how_much_of_a_text_is_read(folder):
    """sentence-transformers' own setting, else the tokenizer's, never more than positions."""
    assert open_encoder(folder).max_tokens == 16
    write(folder / "sentence_bert_config.json", {"max_seq_length": 500})
    assert open_encoder(folder).max_tokens == 96
    (folder / "sentence_bert_config.json").unlink()
    assert open_encoder(folder).max_tokens == 96
    write(folder / "tokenizer_config.json", {"model_max_length": 40})
    assert open_encoder(folder).max_tokens == 40
    write(folder / "tokenizer_config.json", {"model_max_length": 1e30})  # "without limit"
    assert open_encoder(folder).max_tokens == 96
    for value in (2, "long", float("nan")):
        write(folder / "sentence_bert_config.json", {"max_seq_length": value})
        with pytest.raises(UserError, match=f"{folder}.*max_seq_length"):
            open_encoder(folder)


def test_only_the_mean_over_tokens_may_follow(folder):
    write(folder / "modules.json", PIPELINE)
    for modes in (MEAN, {"pooling_mode": "mean", "embedding_dimension": 32}):
        write(folder / "1_Pooling" / "config.json", modes)
        assert open_encoder(folder).config.hidden_size == 32
    both = MEAN | {"pooling_mode_max_tokens": True}
    cls = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    for modes in (both, cls, {"pooling_mode": "cls"}, {}):
        write(folder / "1_Pooling" / "config.json", modes)
        with pytest.raises(UserError, match="pools by.*supported: pooling_mode_mean_tokens"):
            open_encoder(folder)
    dense = {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    write(folder / "modules.json", [PIPELINE[0], dense])
    with pytest.raises(UserError, match="has a Dense"):
        open_encoder(folder)
    for path in ("../elsewhere", "/elsewhere", None):
        write(folder / "modules.json", [PIPELINE[1] | {"path": path}])
        with pytest.raises(UserError, match="is no folder's name"):
            open_encoder(folder)
    (folder / "modules.json").write_text("{}")
    with pytest.raises(UserError, match="no list"):
        open_encoder(folder)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("sentence_bert_config.json", "do_lower_case"),
        ("config_sentence_transformers.json", "default_prompt_name"),
    ],
)
def test_what_would_change_the_texts_is_refused(name, setting, folder):
    write(folder / name, {setting: "query"})
    with pytest.raises(UserError, match=f"{name}: {setting}"):
        open_encoder(folder)


def test_what_decides_the_vectors_is_in_the_hash(folder, tiny_bert, tmp_path):
    first = open_encoder(folder).hash
    same = shutil.copytree(folder, tmp_path / "copy")
    assert open_encoder(same).hash == first
    write(same / "sentence_bert_config.json", {"max_seq_length": 17})
    assert open_encoder(same).hash != first
    assert open_encoder(tiny_bert(tmp_path / "other", seed=1)).hash != first
    assert open_encoder(tiny_bert(tmp_path / "rough", layer_norm_eps=0.1)).hash != first


def test_tensors_that_do_not_fit_are_refused(folder):
    data = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", data | {"num_hidden_layers": 2})
    with pytest.raises(UserError, match="encoder.layer.2.*no place in a bert model"):
        open_encoder(folder).load()
    write(folder / "config.json", data | {"num_hidden_layers": 4})
    with pytest.raises(UserError, match="missing tensors encoder.layer.3"):
        open_encoder(folder).load()


def test_no_pickle_is_loaded(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights"):
        open_encoder(folder)


def test_an_encoder_is_no_model_that_writes(folder):
    """One message wherever a model is opened: to train, sample, judge, serve, export."""
    assert is_encoder(folder)
    with pytest.raises(UserError, match="sentence encoder.*--config.roles.encoder.model"):
        open_model(folder)
    (folder / "config.json").write_text("{")
    assert not is_encoder(folder) and not is_encoder(folder / "absent")
    with pytest.raises(UserError, match="not valid JSON"):
        open_model(folder)


def test_a_decoder_is_no_encoder(folder):
    write(folder / "config.json", GIVEN | {"model_type": "llama"})
    assert not is_encoder(folder)
    with pytest.raises(UserError, match="model_type is 'llama'; an encoder must be bert"):
        open_encoder(folder)
