"""How unsure a policy is of a reply, token by token: entropy and margin of its distributions.

Exact over the whole vocabulary, from one forward pass over prompt and reply; logits exist for one
row at a time.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from selfevo_jax.models.attention import Layout
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.llama import forward, logits
from selfevo_jax.models.lora import Adapter
from selfevo_jax.text.render import TokenExample

ROWS = 4  # replies that are looked at together
STEP = 64  # lengths are powers of two from here on


def token_statistics(
    config: ModelConfig,
    params: dict,
    adapter: Adapter | None,
    compute: Compute,
    examples: list[TokenExample],
) -> list[dict[str, np.ndarray]]:
    """{"entropy", "margin", "logp"} of at most `ROWS` replies, float32 [tokens of the reply].

    In nats; margin is the probability of the likeliest token less that of the second. The last
    token is the end of the turn.
    """
    texts = [[*e.prompt.tokens.tolist(), *e.completions[0].tokens.tolist()] for e in examples]
    width = STEP
    while width < max(map(len, texts)):
        width *= 2
    tokens_bt = np.zeros((ROWS, width), np.int32)
    valid_bt = np.zeros((ROWS, width), np.bool_)
    for row, text in enumerate(texts):
        tokens_bt[row, : len(text)], valid_bt[row, : len(text)] = text, True
    found = jax.device_get(_statistics(config, params, adapter, tokens_bt, valid_bt, compute))
    spans = [
        (len(e.prompt.tokens) - 1, len(text) - 1) for e, text in zip(examples, texts, strict=True)
    ]
    return [
        {name: value_bt[row, start:stop] for name, value_bt in found.items()}
        for row, (start, stop) in enumerate(spans)
    ]


@functools.partial(jax.jit, static_argnames=("config", "compute"))
def _statistics(config, params, adapter, tokens_bt, valid_bt, compute) -> dict[str, jax.Array]:
    """What position t says of token t + 1; arrays [b, t]."""
    layout = Layout.plain(valid_bt)
    hidden_btd = forward(config, params, tokens_bt, layout, compute=compute, adapter=adapter)
    next_bt = jnp.roll(tokens_bt, -1, axis=1)

    def row(pair):
        hidden_td, next_t = pair
        logps_tv = jax.nn.log_softmax(logits(config, params, hidden_td[None])[0], axis=-1)
        top_t2 = jnp.exp(jax.lax.top_k(logps_tv, 2)[0])
        return {
            "entropy": -jnp.sum(jnp.exp(logps_tv) * logps_tv, axis=-1),
            "margin": top_t2[:, 0] - top_t2[:, 1],
            "logp": jnp.take_along_axis(logps_tv, next_t[:, None], axis=-1)[:, 0],
        }

    return jax.lax.map(row, (hidden_btd, next_bt))
