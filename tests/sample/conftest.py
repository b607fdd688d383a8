"""A tokenizer trained here and a random model of its size: small, but every part is real."""

import json
from dataclasses import dataclass

import jax
import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from selfevo_jax.models.config import ModelConfig
from selfevo_jax.models.llama import init_params
from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.text.tokenizer import Tokenizer, load_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = (
    "the quick brown fox jumps over the lazy dog", "a prompt is read once and then shared",
    "user system assistant", "how many ducks are there in the red barn today",
)  # fmt: skip


@dataclass(frozen=True)
class Tiny:
    """A random model with its tokenizer."""

    config: ModelConfig
    params: dict
    tokenizer: Tokenizer

    def generator(self, **settings) -> JaxGenerator:
        settings = {
            "slots": 6,
            "max_length": 320,
            "prompt_rows": 4,
            "chunk": 16,
            "steps": 4,
        } | settings
        return JaxGenerator(self.config, self.params, self.tokenizer, **settings)


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    inner = HfTokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, initial_alphabet=alphabet)
    inner.train_from_iterator(TEXTS, trainer)
    inner.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>", "chat_template": TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)


@pytest.fixture(scope="session")
def tiny(tiny_tokenizer) -> Tiny:
    config = ModelConfig(
        vocab_size=tiny_tokenizer.vocab_size, hidden_size=48, intermediate_size=96, num_layers=2,
        num_heads=6, num_kv_heads=2, head_dim=8, max_position=512, tie_embeddings=True,
    )  # fmt: skip
    # Larger weights than at the start of training: distributions that are not flat.
    params = jax.tree.map(
        lambda x: x * 8 if x.ndim > 2 else x, init_params(config, jax.random.key(1))
    )
    params["embed_tokens"]["embedding"] *= 20
    return Tiny(config, params, tiny_tokenizer)
