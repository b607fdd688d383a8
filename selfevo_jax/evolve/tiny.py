"""`random:tiny?seed=N`: a model of random weights in an ordinary folder, for runs of seconds.

The folder (config.json, model.safetensors, tokenizer.json with one token per byte) is made once and
kept in the cache, so nothing else has to know that the model is not a real one.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import jax
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from selfevo_jax.errors import UserError
from selfevo_jax.models.config import ModelConfig
from selfevo_jax.models.llama import init_params
from selfevo_jax.models.presets import preset
from selfevo_jax.weights.model_files import save_model
from selfevo_jax.weights.storage import cache_folder, one_at_a_time

RANDOM = "random:"
RECIPE = "1"  # raised when the same source would give other files
END, PAD = "<|end|>", "<|pad|>"
TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTROLS = (END, PAD, "<|user|>", "<|assistant|>", "<|system|>")


def random_model(source: str) -> Path:
    """The folder of `random:PRESET?seed=N`. Raises UserError for another form or preset."""
    match = re.fullmatch(r"random:(\w+)\?seed=(\d+)", source)
    if match is None:
        raise UserError(f"model source {source!r} must look like random:tiny?seed=0")
    name, seed = match[1], int(match[2])
    config = preset(name)
    folder = cache_folder() / "random" / f"{name}-{seed}-{RECIPE}"
    if not folder.exists():
        with one_at_a_time(folder):  # workers of a group start together
            if not folder.exists():
                _make(folder, config, seed)
    return folder


def _make(folder: Path, config: ModelConfig, seed: int) -> None:
    tokenizer = byte_tokenizer()
    config = replace(config, vocab_size=tokenizer.get_vocab_size())
    params = init_params(config, jax.random.key(seed))
    save_model(folder, config, params, save_tokenizer=lambda fresh: _save(tokenizer, fresh))


def _save(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"chat_template": TEMPLATE, "eos_token": END, "pad_token": PAD}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def byte_tokenizer() -> Tokenizer:
    """256 tokens, one per byte, and the control tokens of the template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[])
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in CONTROLS])
    return tokenizer
