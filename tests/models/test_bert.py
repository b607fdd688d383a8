"""The encoder against transformers' BertModel: random shapes of it, and the real MiniLM."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selfevo_jax.models import bert
from selfevo_jax.weights.encoder_files import open_encoder

torch = pytest.importorskip("torch", reason="the parity libraries are not installed")
transformers = pytest.importorskip("transformers", reason="the parity libraries are not installed")

LENGTHS = (20, 1, 13)
SHAPES = {
    "tiny": {},
    "one_head": {"num_attention_heads": 1, "num_hidden_layers": 1},
    "wide": {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 20},
    "rough_norm": {"layer_norm_eps": 0.1, "type_vocab_size": 1},
}


def batch(vocabulary: int, width: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and which of them are real: rows of `LENGTHS`, then padding."""
    draw = np.random.default_rng(1)
    valid_bt = np.arange(width) < np.array(LENGTHS)[:, None]
    return draw.integers(1, vocabulary, valid_bt.shape) * valid_bt, valid_bt


def reference(folder, tokens_bt, valid_bt) -> np.ndarray:
    """Hidden states [b, t, d] by transformers, which reads the folder itself."""
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        given = torch.tensor(tokens_bt), torch.tensor(valid_bt.astype(np.int64))
        return model(given[0], attention_mask=given[1]).last_hidden_state.numpy()


@pytest.mark.parametrize("shape", SHAPES)
def test_hidden_states_are_those_of_transformers(shape, tiny_bert, tmp_path):
    folder = tiny_bert(tmp_path, **SHAPES[shape])
    files = open_encoder(folder)
    tokens_bt, valid_bt = batch(files.config.vocab_size)
    found_btd = bert.forward(files.config, files.load(), tokens_bt, valid_bt)
    wanted_btd = reference(folder, tokens_bt, valid_bt)
    assert found_btd.dtype == jnp.float32
    np.testing.assert_allclose(found_btd[valid_bt], wanted_btd[valid_bt], atol=1e-5)


def test_padding_changes_no_row(tiny_bert, tmp_path):
    """Neither how much of it there is, nor which tokens stand there."""
    files = open_encoder(tiny_bert(tmp_path))
    params = files.load()
    tokens_bt, valid_bt = batch(files.config.vocab_size)
    wide_bt, wide_valid_bt = batch(files.config.vocab_size, width=64)
    wide_bt[:, :20] = tokens_bt
    wide_bt[~wide_valid_bt] = 7
    short_btd = bert.forward(files.config, params, tokens_bt, valid_bt)
    wide_btd = bert.forward(files.config, params, wide_bt, wide_valid_bt)
    np.testing.assert_allclose(wide_btd[:, :20][valid_bt], short_btd[valid_bt], atol=1e-5)
    alone_td = bert.forward(files.config, params, tokens_bt[2:, :13], valid_bt[2:, :13])[0]
    np.testing.assert_allclose(short_btd[2, :13], alone_td, atol=1e-5)


def test_a_row_of_padding_alone_is_a_number(tiny_bert, tmp_path):
    files = open_encoder(tiny_bert(tmp_path))
    nothing_bt = np.zeros((1, 4), np.int32)
    hidden_btd = bert.forward(files.config, files.load(), nothing_bt, nothing_bt.astype(bool))
    assert np.isfinite(hidden_btd).all()


def test_the_real_one_is_that_of_transformers(minilm):
    tokens_bt, valid_bt = batch(minilm.config.vocab_size, width=256)
    found_btd = bert.forward(minilm.config, minilm.load(), tokens_bt, valid_bt)
    wanted_btd = reference(minilm.path, tokens_bt, valid_bt)
    np.testing.assert_allclose(found_btd[valid_bt], wanted_btd[valid_bt], atol=1e-5)


def test_products_are_at_the_highest_precision(tiny_bert, tmp_path):
    """Accelerators would round float32 to fewer bits on the way into a product."""
    files = open_encoder(tiny_bert(tmp_path))
    given = files.load(), *batch(files.config.vocab_size)
    lowered = jax.jit(partial(bert.forward, files.config)).lower(*given).as_text()
    products = [line for line in lowered.splitlines() if "dot_general" in line]
    assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)
