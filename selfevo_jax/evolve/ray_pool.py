"""Record stages on many machines: a pool of Ray actors, each with the whole model to itself.

With `--config.executor=ray` a run sends its questions to the actors in shards. An answer does not
depend on what is computed beside it, so records and their bytes are those of one machine. Where
actors run, and that a lost one is started again with what it was asked, is Ray's work. Training
and embeddings stay where the run was started; adapters and checkpoints must lie on storage that
all machines see.
"""

import os
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from selfevo_jax.config import plain
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.backend import JaxBackend
from selfevo_jax.evolve.policy import Policy
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.shards import PoolGenerator
from selfevo_jax.sample.protocol import Generator

TRIES = 3  # of a shard whose actors die, before the run gives up


class RayBackend(JaxBackend):
    """`JaxBackend` whose local models answer from a pool of Ray actors."""

    def __init__(
        self, config: FrozenConfigDict, progress: Progress, workdir: Path | None = None
    ) -> None:
        super().__init__(config, progress, workdir)
        if jax.process_count() > 1:
            raise UserError(
                "--config.executor=ray goes without --cluster: start the run on one machine, and "
                "Ray finds the others"
            )

    @cached_property
    def pool(self) -> "Pool":
        """The actors, started at first use."""
        with self.progress.busy("starting Ray's actors"):
            return Pool(self.config)

    def generator(self, policy: Policy) -> Generator:
        """See `Backend.generator`."""
        if policy.role is not None and policy.role.remote is not None:
            return super().generator(policy)
        return PoolGenerator(policy, self.config.ray.shard, lambda: self.pool)


class Pool:
    """Actors that answer shards of requests. Raises UserError where Ray is missing or not found."""

    def __init__(self, config: FrozenConfigDict) -> None:
        self._ray, settings = connected(config.ray.address), config.ray
        kind = self._ray.remote(
            num_cpus=settings.cpus,
            num_gpus=settings.gpus,
            resources={"TPU": settings.tpus} if settings.tpus else None,
            max_restarts=-1,
            max_task_retries=TRIES - 1,
        )(Worker)
        self.actors = [kind.remote(plain(config)) for _ in range(settings.actors)]

    def answers(self, what: str, policy: Policy, shards: Iterable[list]) -> Iterator[Any]:
        """The answers to all requests, a shard at a time as they come back."""
        from ray.util import ActorPool

        pool = ActorPool(self.actors)
        for shard in shards:
            if not pool.has_free():
                yield from self._next(pool)
            pool.submit(lambda actor, asked: actor.answers.remote(what, policy, asked), shard)
        while pool.has_next():
            yield from self._next(pool)

    def _next(self, pool: Any) -> list:
        try:
            return pool.get_next_unordered()
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayActorError as error:
            raise UserError(
                f"a Ray actor died {TRIES} times over the same requests ({error}); everything "
                "finished is kept: look at Ray's logs, or give each actor more memory"
            ) from error


class Worker:
    """What an actor does: it opens the run's models for itself, and answers."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._backend = JaxBackend(FrozenConfigDict(ConfigDict(config)), Progress(quiet=True))

    def answers(self, what: str, policy: Policy, requests: list) -> list:
        """The answers of `policy` to a shard of requests; `what` is a method of `Generator`."""
        return list(getattr(self._backend.generator(policy), what)(requests))


def connected(address: str) -> Any:
    """The module `ray`, connected to the cluster at `address` (empty: one of this machine alone).

    Raises UserError where Ray is not installed or no cluster is there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--config.executor=ray needs Ray: pip install 'selfevo_jax[ray]'"
        ) from error
    if not ray.is_initialized():
        try:
            ray.init(address=address or "local", log_to_driver=False, include_dashboard=False)
        except ConnectionError as error:
            raise UserError(
                f"--config.ray.address={address}: no Ray cluster answers there ({error}); start "
                "one with `ray start --head`, or leave the address out"
            ) from error
    return ray
