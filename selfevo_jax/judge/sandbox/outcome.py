"""What a sandbox is asked to allow, what it can enforce, and what it says of a program."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from selfevo_jax.errors import UserError

OutcomeName = Literal["passed", "failed", "timeout", "memory", "crashed", "refused", "unsupported"]


@dataclass(frozen=True)
class Limits:
    """What one program may use; its tests, in a cage of their own, may use as much again."""

    wall_seconds: float = 10.0
    cpu_seconds: int = 10
    memory_bytes: int = 512 << 20  # address space of the process, the interpreter's ~30 MB included
    threads: int = 16  # beside the first; other processes cannot be started at all
    open_files: int = 32
    file_bytes: int = 8 << 20  # one file
    work_bytes: int = 16 << 20  # the whole temporary folder
    work_files: int = 256
    message_bytes: int = 8 << 20  # one result; what a program prints is thrown away
    source_bytes: int = 1 << 20  # program, or tests with their set-up

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 < value < 1 << 40:
                raise UserError(
                    f"sandbox limit {field.name}={value!r}: give a number above 0 and below 2**40"
                )


@dataclass(frozen=True)
class Outcome:
    """How a program did on its tests, and how long that took, start-up included.

    passed, failed: the tests ran and say so; a program that raises or ends itself has failed.
    timeout, memory: it met the time or memory limit. crashed: its process died otherwise.
    refused: it was not run. unsupported: the tests need what cannot cross between two processes.
    The last two are no verdict on the program: count them apart.
    """

    name: OutcomeName
    message: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return self.name == "passed"

    @property
    def judged(self) -> bool:
        """Whether the outcome says anything about the program."""
        return self.name not in ("refused", "unsupported")


@dataclass(frozen=True)
class Enforced:
    """What the platform enforces, as tried from inside a cage when the sandbox was made."""

    network: bool  # no address can be reached, the host's loopback included
    files: bool  # no file of the host's can be seen, none but /tmp written
    user: bool  # not root, and no way to become root or to mount
    processes: bool  # no process outside can be seen or signalled; all end with the cage
    memory: bool
    cpu_time: bool
    file_size: bool
    threads: bool
    forking: bool  # no new processes
    seccomp: bool  # system calls by list
    landlock: bool

    def report(self) -> str:
        """One line: what is enforced, and what is not."""
        state = dataclasses.asdict(self)
        yes = ", ".join(name for name, held in state.items() if held)
        no = ", ".join(name for name, held in state.items() if not held)
        return f"sandbox enforces {yes}; not {no}" if no else f"sandbox enforces {yes}"
