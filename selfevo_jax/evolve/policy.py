"""A policy: the base model, or the base with an adapter that a round trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Policy:
    """`hash` covers base, tokenizer and adapter; None while a plan does not know it yet."""

    name: str
    hash: str | None
    adapter: Path | None = None
    parent: str | None = None

    def lineage(self, workdir: Path) -> dict[str, Any]:
        """What `run.json` keeps of it."""
        adapter = None if self.adapter is None else str(self.adapter.relative_to(workdir))
        return {"hash": self.hash, "adapter": adapter, "parent": self.parent}
