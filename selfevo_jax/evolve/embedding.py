"""Sentence embeddings: hidden states averaged over the tokens of a text, scaled to length one.

Padding never counts, and cosine similarity is then a dot product. The states are those of a
`SentenceEncoder`, a BERT that was trained for it (Reimers & Gurevych, 2019, arXiv:1908.10084), or
the last ones of any decoder, which were not.
"""

import functools
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.models import bert
from selfevo_jax.models.attention import Layout
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.llama import forward
from selfevo_jax.models.lora import Adapter
from selfevo_jax.parallel.distributed import one_after_another
from selfevo_jax.records import content_id
from selfevo_jax.text.tokenizer import Tokenizer, load_tokenizer
from selfevo_jax.weights.encoder_files import EncoderFiles, open_encoder

CHUNK = 8  # texts that are embedded together
STEP = 64  # lengths are rounded up to powers of two from here on


class SentenceEncoder:
    """A sentence encoder, opened for its hash, loaded at first use; float32 on one device."""

    def __init__(self, source: str, progress: Progress) -> None:
        self.source, self.progress = source, progress
        self._told = False

    @cached_property
    def files(self) -> EncoderFiles:
        """The opened files; no weights are read."""
        return one_after_another(lambda: open_encoder(self.source))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The encoder's tokenizer. Raises UserError when the two do not go together."""
        found, known = load_tokenizer(self.files.path), self.files.config.vocab_size
        if found.vocab_size > known:
            raise UserError(
                f"{self.source}: its tokenizer has {found.vocab_size} tokens, the encoder {known}: "
                "the files are of two models"
            )
        frame_of(found)
        return found

    @property
    def hash(self) -> str:
        """Hash of the weights, of how much of a text is read, and of the tokenizer."""
        return content_id(self.files.hash, self.tokenizer.hash)

    @cached_property
    def params(self) -> dict:
        """The parameters, see `models.bert`."""
        with self.progress.busy(f"loading {self.source}"):
            return self.files.load()

    @cached_property
    def frame(self) -> tuple[list[int], list[int]]:
        """The ids that its tokenizer puts before and after a text: [CLS] and [SEP]."""
        return frame_of(self.tokenizer)

    def embed(self, texts: list[str]) -> np.ndarray:
        """Unit vectors, float32 [n, d], of at most `CHUNK` texts.

        Of a longer text than `files.max_tokens` its first tokens, as sentence-transformers does,
        which is said once.
        """
        before, after = self.frame
        room = self.files.max_tokens - len(before) - len(after)
        found = [self.tokenizer.encode(text) for text in texts]
        self._tell(max(map(len, found)), room)
        rows = [[*before, *ids[:room], *after] for ids in found]
        batch = padded(rows, self.files.config.max_position)
        return np.asarray(_encoded(self.files.config, self.params, *batch))[: len(texts)]

    def _tell(self, longest: int, room: int) -> None:
        if longest > room and not self._told:
            self._told = True
            self.progress.say(
                f"{self.source} reads the first {room} tokens of a text: of a longer one (here "
                f"{longest}) the rest does not count"
            )


def frame_of(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that a tokenizer.json puts before and after a single text. Raises UserError."""
    if "tokenizer.json" not in tokenizer.files:
        raise UserError(
            "a sentence encoder needs its tokenizer.json, which says what frames a text"
        )
    spec = tokenizer.files["tokenizer.json"]
    try:
        engine = tokenizers.Tokenizer.from_str(spec.decode("utf-8-sig"))
    except Exception as error:  # the Rust library raises bare Exception
        raise UserError(f"tokenizer.json cannot be read by `tokenizers`: {error}") from error
    engine.no_padding()
    engine.no_truncation()
    framed = engine.encode("a")
    marks = framed.special_tokens_mask
    if marks[:1] != [1] or marks[-1:] != [1] or 0 not in marks:
        raise UserError("tokenizer.json puts no [CLS] and [SEP] around a text, as a BERT needs")
    first, last = marks.index(0), len(marks) - marks[::-1].index(0)
    return framed.ids[:first], framed.ids[last:]


def embed_texts(
    config: ModelConfig,
    params: dict,
    adapter: Adapter | None,
    compute: Compute,
    tokenizer: Tokenizer,
    texts: list[str],
    max_length: int,
) -> np.ndarray:
    """Unit vectors, float32 [n, d], of at most `CHUNK` texts; of a longer text its first tokens."""
    ids = [tokenizer.encode(text)[:max_length] or [tokenizer.pad_id] for text in texts]
    pooled_bd = _pooled(config, params, adapter, *padded(ids), compute)
    return np.asarray(pooled_bd)[: len(texts)]


def padded(rows: list[list[int]], most: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and which of them are real, [CHUNK, t]; t is a power of two, or `most`."""
    longest = max(map(len, rows))
    width = STEP
    while width < longest:
        width *= 2
    width = width if most is None else min(width, most)
    tokens_bt = np.zeros((CHUNK, width), np.int32)
    valid_bt = np.zeros((CHUNK, width), np.bool_)
    for number, row in enumerate(rows):
        tokens_bt[number, : len(row)] = row
        valid_bt[number, : len(row)] = True
    return tokens_bt, valid_bt


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _pooled(config, params, adapter, tokens_bt, valid_bt, compute) -> jax.Array:
    layout = Layout.plain(valid_bt)
    hidden_btd = forward(config, params, tokens_bt, layout, compute=compute, adapter=adapter)
    return _unit_mean(hidden_btd, valid_bt)


@functools.partial(jax.jit, static_argnames=("config",))
def _encoded(config, params, tokens_bt, valid_bt) -> jax.Array:
    return _unit_mean(bert.forward(config, params, tokens_bt, valid_bt), valid_bt)


def _unit_mean(hidden_btd: jax.Array, valid_bt: jax.Array) -> jax.Array:
    """The mean over real tokens, scaled to length one: float32 [b, d]."""
    weight_bt1 = valid_bt[:, :, None].astype(jnp.float32)
    mean_bd = (hidden_btd.astype(jnp.float32) * weight_bt1).sum(1) / jnp.maximum(
        weight_bt1.sum(1), 1
    )
    return mean_bd / jnp.maximum(jnp.linalg.norm(mean_bd, axis=-1, keepdims=True), 1e-9)
