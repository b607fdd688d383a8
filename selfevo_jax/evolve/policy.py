"""Who speaks in a run: the base model, the base with a trained adapter, or a model in a role."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ml_collections.config_dict import placeholder

from selfevo_jax.errors import UserError
from selfevo_jax.sample.http.settings import ServerSettings

EMBEDDING = ("encoder",)  # the roles that embed text and never write any


@dataclass(frozen=True)
class Role(ServerSettings):
    """Another model than the one that is trained, and how its server is used, where it is on one.

    model       a source as in `config.model`, or `https://HOST/v1#NAME` for a model on an
                OpenAI-style server; empty: the run's own base; a role of `EMBEDDING` may also be
                a sentence encoder
    adapter     a PEFT folder on top of a local model
    key_env     the environment variable with the server's key

    A cap is one on what all who share the cache file have spent on the model, so roles with one
    model and one file share it. Raises UserError for settings of a server that cannot be.
    """

    model: str = ""
    adapter: str = ""
    key_env: str = ""

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except UserError as error:
            raise UserError(f"the role with model={self.model}: {error}") from error

    @property
    def bound(self) -> bool:
        """Whether the role has a model of its own; else the method's policy plays it."""
        return bool(self.model or self.adapter)

    @property
    def remote(self) -> tuple[str, str] | None:
        """(base URL, model name) of a model on a server."""
        if not self.model.startswith(("http://", "https://")):
            return None
        address, mark, name = self.model.partition("#")
        if not mark or not name:
            raise UserError(f"the role on {address} names no model; write https://HOST/v1#MODEL")
        if self.adapter:
            raise UserError(f"role model {self.model} is on a server; it takes no adapter here")
        return address, name


@dataclass(frozen=True)
class Policy:
    """`hash` covers base, tokenizer and adapter; None while a plan does not know it yet."""

    name: str
    hash: str | None
    adapter: Path | None = None
    parent: str | None = None
    role: Role | None = None

    def lineage(self, workdir: Path) -> dict[str, Any]:
        """What `run.json` keeps of it."""
        if self.role is not None:
            return {"hash": self.hash, "model": self.role.model, "from": self.role.adapter}
        adapter = None if self.adapter is None else str(self.adapter.relative_to(workdir))
        return {"hash": self.hash, "adapter": adapter, "parent": self.parent}


def role_defaults(*names: str) -> dict[str, Any]:
    """The `roles` settings of a method with these roles, all played by its own policy."""
    caps = {"cap_tokens": placeholder(int), "cap_money": placeholder(float)}
    return {"roles": {name: asdict(Role()) | caps for name in names}}
