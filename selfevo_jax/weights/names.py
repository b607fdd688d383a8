"""One table from parameter paths to the names of tensors in Hugging Face and GGUF files.

Every other file of this package asks `leaves(config)`: which parameters a decoder or an encoder
has, their shapes in our tree (layers stacked on axis 0, kernels [in, out]) and what they are
called.
"""

from dataclasses import dataclass

from selfevo_jax.models.bert import BertConfig
from selfevo_jax.models.config import ModelConfig

Path = tuple[str, ...]
MAX_LAYERS = 1000  # a config that claims more is broken or hostile; far above any real decoder


@dataclass(frozen=True)
class Leaf:
    """A parameter of the tree. `hf` and `gguf` hold `{layer}` when `stacked`.

    Encoders are read from Hugging Face files alone: their `gguf` is empty.

    `shape` includes the layer axis. `transposed` says that files store [out, in].
    """

    path: Path
    shape: tuple[int, ...]
    hf: str
    gguf: str
    stacked: bool = True
    transposed: bool = False

    @property
    def layers(self) -> range:
        """Layer numbers held by this leaf; one pass (layer 0) when it is not stacked."""
        return range(self.shape[0] if self.stacked else 1)

    @property
    def file_shape(self) -> tuple[int, ...]:
        """The shape of one tensor in a file."""
        shape = self.shape[1:] if self.stacked else self.shape
        return shape[::-1] if self.transposed else shape


def _projections(config: ModelConfig) -> dict[str, tuple[int, int, str]]:
    """`group/name` -> (in, out, GGUF name) of the seven kernels of a layer."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries = config.num_heads * config.head_dim
    keys = config.num_kv_heads * config.head_dim
    return {
        "attn/q_proj": (hidden, queries, "attn_q"),
        "attn/k_proj": (hidden, keys, "attn_k"),
        "attn/v_proj": (hidden, keys, "attn_v"),
        "attn/o_proj": (queries, hidden, "attn_output"),
        "mlp/gate_proj": (hidden, inner, "ffn_gate"),
        "mlp/up_proj": (hidden, inner, "ffn_up"),
        "mlp/down_proj": (inner, hidden, "ffn_down"),
    }


def _norms(config: ModelConfig) -> dict[str, tuple[str, str]]:
    """Our norm -> (HF name, GGUF name); Gemma-2 gives HF's second norm another meaning."""
    if not config.post_norms:
        return {
            "attn_norm": ("input_layernorm", "attn_norm"),
            "mlp_norm": ("post_attention_layernorm", "ffn_norm"),
        }
    return {
        "attn_norm": ("input_layernorm", "attn_norm"),
        "attn_post_norm": ("post_attention_layernorm", "post_attention_norm"),
        "mlp_norm": ("pre_feedforward_layernorm", "ffn_norm"),
        "mlp_post_norm": ("post_feedforward_layernorm", "post_ffw_norm"),
    }


def module_name(group: str, name: str) -> str:
    """HF name of a projection inside its layer: `attn`, `q_proj` -> `self_attn.q_proj`."""
    return f"{'self_attn' if group == 'attn' else group}.{name}"


def _layer_leaves(config: ModelConfig) -> list[Leaf]:
    found = []
    for norm, (hf, gguf) in _norms(config).items():
        found.append(
            Leaf(
                ("layers", norm, "scale"),
                (config.num_layers, config.hidden_size),
                f"model.layers.{{layer}}.{hf}.weight",
                f"blk.{{layer}}.{gguf}.weight",
            )
        )
    for key, (size_in, size_out, gguf) in _projections(config).items():
        group, name = key.split("/")
        hf = f"model.layers.{{layer}}.{module_name(group, name)}"
        path = ("layers", group, name)
        found.append(
            Leaf(
                (*path, "kernel"),
                (config.num_layers, size_in, size_out),
                f"{hf}.weight",
                f"blk.{{layer}}.{gguf}.weight",
                transposed=True,
            )
        )
        if config.qkv_bias and name in ("q_proj", "k_proj", "v_proj"):
            shape = (config.num_layers, size_out)
            found.append(Leaf((*path, "bias"), shape, f"{hf}.bias", f"blk.{{layer}}.{gguf}.bias"))
    return found


def _linear(path: Path, hf: str, layers: int, size_in: int, size_out: int) -> list[Leaf]:
    """A kernel and a bias in every layer of an encoder."""
    kernel, bias = (layers, size_in, size_out), (layers, size_out)
    name = f"encoder.layer.{{layer}}.{hf}"
    return [
        Leaf((*path, "kernel"), kernel, f"{name}.weight", "", transposed=True),
        Leaf((*path, "bias"), bias, f"{name}.bias", ""),
    ]


def _layer_norm(path: Path, hf: str, shape: tuple[int, ...]) -> list[Leaf]:
    parts = (("scale", "weight"), ("bias", "bias"))
    return [
        Leaf((*path, ours), shape, f"{hf}.LayerNorm.{theirs}", "", stacked=len(shape) > 1)
        for ours, theirs in parts
    ]


def _encoder_leaves(config: BertConfig) -> list[Leaf]:
    """Every parameter of a BERT that its hidden states depend on."""
    layers, hidden, inner = config.num_layers, config.hidden_size, config.intermediate_size
    rows = {
        "tokens": ("word", config.vocab_size),
        "positions": ("position", config.max_position),
        "types": ("token_type", config.token_types),
    }
    found = []
    for ours, (theirs, count) in rows.items():
        path, hf = (f"embed_{ours}", "embedding"), f"embeddings.{theirs}_embeddings.weight"
        found.append(Leaf(path, (count, hidden), hf, "", stacked=False))
    found += _layer_norm(("embed_norm",), "embeddings", (hidden,))
    for ours, theirs in (("q", "query"), ("k", "key"), ("v", "value")):
        path = ("layers", "attn", f"{ours}_proj")
        found += _linear(path, f"attention.self.{theirs}", layers, hidden, hidden)
    out = "attention.output"
    found += _linear(("layers", "attn", "o_proj"), f"{out}.dense", layers, hidden, hidden)
    found += _linear(("layers", "mlp", "up_proj"), "intermediate.dense", layers, hidden, inner)
    found += _linear(("layers", "mlp", "down_proj"), "output.dense", layers, inner, hidden)
    for ours, theirs in (("attn_norm", out), ("mlp_norm", "output")):
        name = f"encoder.layer.{{layer}}.{theirs}"
        found += _layer_norm(("layers", ours), name, (layers, hidden))
    return found


def leaves(config: ModelConfig | BertConfig) -> list[Leaf]:
    """Every parameter of the decoder, in the order in which files list them, or of the encoder."""
    if isinstance(config, BertConfig):
        return _encoder_leaves(config)
    vocab, hidden = config.vocab_size, config.hidden_size
    embedding = Leaf(
        ("embed_tokens", "embedding"),
        (vocab, hidden),
        "model.embed_tokens.weight",
        "token_embd.weight",
        stacked=False,
    )
    norm = Leaf(
        ("final_norm", "scale"), (hidden,), "model.norm.weight", "output_norm.weight", stacked=False
    )
    head = Leaf(
        ("lm_head", "kernel"),
        (hidden, vocab),
        "lm_head.weight",
        "output.weight",
        stacked=False,
        transposed=True,
    )
    found = [embedding, *_layer_leaves(config), norm]
    return found if config.tie_embeddings else [*found, head]
