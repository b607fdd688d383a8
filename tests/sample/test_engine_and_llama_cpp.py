"""A model written as GGUF and run by llama.cpp itself gives our engine's greedy tokens."""

import contextlib
import json
from dataclasses import replace

import httpx
import jax
import pytest

from selfevo_jax import cli
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.stages import Stage, StageFolder
from selfevo_jax.models.config import LinearRopeScaling, Llama3RopeScaling
from selfevo_jax.models.llama import init_params
from selfevo_jax.models.lora import LoraConfig, adapter, init_lora
from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.sample.protocol import Request, SamplingParams
from selfevo_jax.text.gguf_vocabulary import gguf_vocabulary
from selfevo_jax.text.tokenizer import Tokenizer, load_tokenizer
from selfevo_jax.weights.gguf_write import save_gguf
from selfevo_jax.weights.model_files import open_model, save_model
from selfevo_jax.weights.peft import load_peft, save_peft

GEMMA = dict(
    window=24, alternate_window=True, activation="gelu_tanh", scale_embeddings=True,
    norm_plus_one=True, post_norms=True, attn_softcap=50.0, final_softcap=30.0,
    query_scale=32**-0.5,
)  # fmt: skip
SHAPES = {
    "llama": {"tie_embeddings": False, "rope_scaling": Llama3RopeScaling(8.0, 1.0, 4.0, 8192)},
    "mistral": {"rope_scaling": LinearRopeScaling(2.0)},
    "qwen2": {"qkv_bias": True, "rope_theta": 1e6},
    "gemma2": GEMMA,
}
FEW = [
    "gemma2",
    *(pytest.param(name, marks=pytest.mark.slow) for name in SHAPES if name != "gemma2"),
]
PROMPTS = ("How many ducks are there?", "the quick  brown\nfox 1234")


@pytest.fixture(scope="module")
def shaped(tiny):
    """Family -> (config, parameters) of two layers with heads that llama.cpp's kernels take."""

    def make(family):
        config = replace(
            tiny.config, family=family, hidden_size=64, num_heads=2, num_kv_heads=1, head_dim=32,
            **{"tie_embeddings": True, "rope_theta": 5e5} | SHAPES[family],
        )  # fmt: skip
        params = init_params(config, jax.random.key(3))
        keys = iter(jax.random.split(jax.random.key(4), 100))
        params = jax.tree.map(
            lambda x: 4 * x + 0.1 * jax.random.normal(next(keys), x.shape), params
        )
        if config.scale_embeddings:  # else every token would only repeat itself
            params["embed_tokens"]["embedding"] *= 0.1
        return config, params

    return make


@contextlib.contextmanager
def llama_cpp(path):
    """A function from text to llama.cpp's greedy ids, up to an end token."""
    xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp is not here: install xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(path), 320, 1
    params.n_gpu_layers, params.cpuparams.n_threads, params.warmup = 0, 1, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)

    def complete(prompt):
        body = {"prompt": prompt, "n_predict": 40, "temperature": 0, "return_tokens": True}
        url = f"{server.listening_address}/completion"
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.post(url, json=body).raise_for_status().json()["tokens"]

    yield complete


@pytest.mark.parametrize("family", FEW)
def test_llama_cpp_says_what_our_engine_says(family, shaped, tiny_tokenizer, tmp_path):
    config, params = shaped(family)
    path = tmp_path / "model.gguf"
    save_gguf(path, config, params, gguf_vocabulary(tiny_tokenizer, config.vocab_size))
    engine = JaxGenerator(config, params, tiny_tokenizer, slots=2, max_length=320)
    how = SamplingParams(max_new_tokens=40, temperature=0.0)
    requests = [Request(str(i), prompt, how) for i, prompt in enumerate(PROMPTS)]
    ours = {done.id: list(done.tokens) for done in engine.generate(requests)}
    assert len(set(ours["0"])) > 5  # not one token over and over
    with llama_cpp(path) as complete:
        for i, prompt in enumerate(PROMPTS):
            assert complete(tiny_tokenizer.encode(prompt)) == ours[str(i)]
            assert complete(prompt) == ours[str(i)]  # its tokenizer reads the text alike


@pytest.mark.parametrize("family", SHAPES)
def test_what_is_written_is_read_back(family, shaped, tiny_tokenizer, tmp_path):
    config, params = shaped(family)
    path = tmp_path / "model.gguf"
    save_gguf(path, config, params, gguf_vocabulary(tiny_tokenizer, config.vocab_size), "float16")
    read = open_model(path)
    half = jax.tree.map(
        lambda x: x.astype("float16").astype("float32") if x.shape[1:] != () else x, params
    )
    same = jax.tree.map(lambda a, b: abs(a - b).max() <= 1e-3 * abs(b).max(), read.load(), half)
    assert all(jax.tree.leaves(same))
    assert load_tokenizer(path).encode(PROMPTS[1]) == tiny_tokenizer.encode(PROMPTS[1])


@pytest.mark.parametrize("change", [{"window": 16}, {"qkv_bias": True}, {"query_scale": 0.3}])
def test_what_gguf_cannot_say_is_refused(change, tiny, tmp_path):
    config = replace(tiny.config, hidden_size=64, num_heads=2, num_kv_heads=1, head_dim=32)
    config = replace(config, **change)
    params = init_params(config, jax.random.key(0))
    with pytest.raises(UserError, match="safetensors"):
        vocabulary = gguf_vocabulary(tiny.tokenizer, config.vocab_size)
        save_gguf(tmp_path / "model.gguf", config, params, vocabulary)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_that_llama_cpp_cannot_name_is_refused(tiny_tokenizer):
    spec = tiny_tokenizer.files["tokenizer.json"]
    pieces = [b'"pattern":{"String":" "}', b'"behavior":"Isolated"', b'"invert":false']
    split = b'{"type":"Split",' + b",".join(pieces) + b"}"
    other = Tokenizer(
        tiny_tokenizer.files | {"tokenizer.json": replaced_pre_tokenizer(spec, split)}
    )
    with pytest.raises(UserError, match="no name for the way"):
        gguf_vocabulary(other, other.vocab_size)
    with pytest.raises(UserError, match="only 10 tokens"):
        gguf_vocabulary(tiny_tokenizer, 10)


def replaced_pre_tokenizer(spec: bytes, pre_tokenizer: bytes) -> bytes:
    return json.dumps(json.loads(spec) | {"pre_tokenizer": json.loads(pre_tokenizer)}).encode()


@pytest.fixture
def trained(shaped, tiny_tokenizer, tmp_path):
    """The workdir of a run, as far as an export reads it, with an adapter that changes much."""
    config, params = shaped("mistral")
    base, folder = tmp_path / "base", tmp_path / "run/round_01/train/adapter"
    save_model(base, config, params, save_tokenizer=tiny_tokenizer.save)
    lora = LoraConfig(rank=2)
    tree = init_lora(config, lora, jax.random.key(1))
    keys = iter(jax.random.split(jax.random.key(2), 100))
    tree = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape) / 10, tree)
    save_peft(folder, tree, lora, "base", open_model(base).hash)
    names = [f"adapter/{file.name}" for file in folder.iterdir()]
    StageFolder(folder.parent).seal(Stage("round_01/train", "1", {}, {}), {}, names)
    policies = {"round_01": {"adapter": "round_01/train/adapter", "parent": "base"}}
    run = {"model": str(base), "method": "verified", "policies": policies, "best": "round_01"}
    (tmp_path / "run/run.json").write_text(json.dumps(run))
    (tmp_path / "run/config.json").write_text(json.dumps({"compute": {"quant": "none"}}))
    return tmp_path / "run"


def test_an_exported_policy_answers_alike_in_llama_cpp(trained, tiny_tokenizer, tmp_path):
    out = tmp_path / "out"
    assert cli.main(["export", str(trained), f"--out={out}", "--format=gguf"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "model.gguf"]
    files = open_model(tmp_path / "base")
    tree, lora = load_peft(trained / "round_01/train/adapter", files.config)
    answers = []
    for applied in (adapter(tree, lora), None):
        engine = JaxGenerator(
            files.config, files.load(), tiny_tokenizer, adapter=applied, slots=2, max_length=320
        )
        how = SamplingParams(max_new_tokens=40, temperature=0.0)
        answers.append(list(next(engine.generate([Request("0", PROMPTS[0], how)])).tokens))
    assert answers[0] != answers[1]
    with llama_cpp(out / "model.gguf") as complete:
        assert complete(PROMPTS[0]) == answers[0]
