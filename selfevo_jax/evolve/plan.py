"""The plan of a run, shown and kept before anything is computed.

A method is run once against a `Run` that only takes notes: what each stage starts from, which
reference, which data, how much, and what an earlier run of the same workdir has already done.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.console import Console

from selfevo_jax.models.config import ModelConfig
from selfevo_jax.records import Row
from selfevo_jax.text.terminal import PlainTable

GIB = 2.0**30
MILLION = 1_000_000


@dataclass(frozen=True)
class Step:
    """One stage as planned; `measuring`: it looks at the test split, and decides nothing."""

    stage: str
    model: str
    data: str
    amount: str
    state: str
    measuring: bool = False

    def kept(self) -> dict[str, Any]:
        """What `run.json` holds of it: all but the state, which depends on when one looks."""
        return {
            "stage": self.stage,
            "model": self.model,
            "data": self.data,
            "amount": self.amount,
            "measuring": self.measuring,
        }


@dataclass(frozen=True)
class Bill:
    """The most that unfinished stages ask of a model on a server: replies, and their tokens."""

    replies: int = 0
    tokens: int = 0

    def plus(self, replies: int, tokens: int) -> "Bill":
        """The bill with so many replies more, of at most so many tokens each."""
        return Bill(self.replies + replies, self.tokens + replies * tokens)

    def text(self, price_out: float) -> str:
        """It in words; `price_out` is money for a million tokens, 0 where it was not given.

        Prompts are not in it: they hold replies that are not known yet.
        """
        money = self.tokens * price_out / MILLION
        paid = f", at most {money:.4f} in money" if price_out else ", prices not given"
        counted = f"at most {self.replies} replies of {self.tokens} tokens in all{paid}"
        return f"{counted}; their prompts, which later replies may be part of, are not counted"


def print_plan(console: Console, steps: list[Step], memory: Mapping[str, float]) -> None:
    """The plan as a table, and the memory that it is expected to need."""
    table = PlainTable(title="plan", title_justify="left", box=SIMPLE, padding=0)
    for name in ("stage", "model", "data", "amount", "state"):
        table.add_column(name, overflow="fold", no_wrap=name == "stage")
    for step in steps:
        table.add_row(step.stage, step.model, step.data, step.amount, step.state)
    console.print(table)
    parts = ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in memory.items())
    console.print(f"expected memory, all devices together: {parts}", markup=False)


def print_table(console: Console, title: str, rows: Iterable[Row]) -> None:
    """A method's conclusions: a column for every name that some row has; `x_low` and `x_high` are
    shown beside x."""
    values = [row.values for row in rows]
    names = list(dict.fromkeys(name for row in values for name in row))
    names = [name for name in names if name.removesuffix("_low").removesuffix("_high") == name]
    table = PlainTable(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name, overflow="fold", no_wrap=name == names[0])
    for row in values:
        table.add_row(*(_shown(row, name) for name in names))
    console.print(table)


def _shown(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    text = f"{value:.{3 if abs(value) < 10 else 1}f}" if isinstance(value, float) else str(value)
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return text if low is None or high is None else f"{text} [{low:.3f}, {high:.3f}]"


def expected_memory(
    config: ModelConfig,
    *,
    value_bytes: int,
    kernel_bytes: float,
    slots: int,
    max_length: int,
    train_tokens: int,
    rank: int,
    remat: str,
) -> dict[str, float]:
    """Bytes of weights (but the norms'), of the key-value cache and of training an adapter.

    A value of a layer's projections takes `kernel_bytes`, any other `value_bytes`.
    A layer keeps what `Compute.remat` says. An estimate, good to a factor two.
    """
    per_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    products = 2 * config.head_dim * (config.num_heads + config.num_kv_heads)
    products += config.hidden_size + 2 * config.intermediate_size
    kept = (
        config.hidden_size
        + {
            "full": 0,
            "dots": products,
            "none": products + 4 * config.hidden_size + 4 * config.intermediate_size,
        }[remat]
    )
    activations = train_tokens * config.num_layers * kept
    sides = config.hidden_size * 7 + config.intermediate_size * 3
    adapter = config.num_layers * rank * sides
    return {
        "weights": layer_parameters(config) * kernel_bytes + table_parameters(config) * value_bytes,
        "cache while sampling": float(slots * max_length * per_token * value_bytes),
        "training beside the weights": float(activations * value_bytes + adapter * 16),
    }


def layer_parameters(config: ModelConfig) -> int:
    """Parameters of the layers' projections."""
    heads = config.head_dim * (config.num_heads + config.num_kv_heads)
    return config.num_layers * config.hidden_size * (2 * heads + 3 * config.intermediate_size)


def table_parameters(config: ModelConfig) -> int:
    """Parameters of embedding and head."""
    return config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
