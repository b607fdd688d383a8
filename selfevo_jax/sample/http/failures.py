"""Why a call gave no answer, and what that means for the rest of the job."""

from __future__ import annotations

from selfevo_jax.errors import UserError


class CallFailed(Exception):
    """This request has no answer, and asking again would not help. Others may go on."""


class Passing(CallFailed):
    """A failure that may pass: the call is repeated.

    `billed`: the server may have done the work. `after`: seconds it asked us to wait.
    """

    def __init__(self, reason: str, *, billed: bool = False, after: float | None = None) -> None:
        super().__init__(reason)
        self.billed, self.after = billed, after


class ServerUnusable(UserError):
    """No request of this job can succeed: wrong key, unknown model, no credit, server gone."""


class RequestsFailed(UserError):
    """Raised at the end of a job when some of its requests have no answer.

    `failed` maps their ids to reasons. All other answers were yielded before.
    """

    def __init__(self, failed: dict[str, str], where: str) -> None:
        first, reason = next(iter(failed.items()))
        super().__init__(
            f"{where}: {len(failed)} requests have no answer, the first is {first!r}: {reason}; "
            "the others are kept, run again to ask for these alone"
        )
        self.failed = failed
