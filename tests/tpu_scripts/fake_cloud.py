"""A stand-in for the `gcloud` and `sbatch` programs, which the tests put on PATH.

It writes every call down, keeps the state of one machine in files, and really runs what is sent to
a worker: each worker is a folder that the command gets as its HOME. `created` has the states of a
new request, one a line, a paragraph for each request. `fail.json` names calls that must fail, and
how often.

Run as: gcloud ...      with FAKE_CLOUD naming the folder of the state
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

CLOUD = Path(os.environ["FAKE_CLOUD"])


def record(program: str, argv: list[str]) -> None:
    with open(CLOUD / "calls.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps([program, *argv]) + "\n")


def must_fail(line: str) -> bool:
    """Whether a rule of `fail.json` matches this call; each match uses the rule up by one."""
    path = CLOUD / "fail.json"
    rules = json.loads(path.read_text()) if path.exists() else {}
    for part, times in rules.items():
        if part in line and times > 0:
            path.write_text(json.dumps({**rules, part: times - 1}))
            return True
    return False


def option(argv: list[str], name: str) -> str:
    return next(word.split("=", 1)[1] for word in argv if word.startswith(f"--{name}="))


def workers(argv: list[str]) -> list[Path]:
    which = option(argv, "worker")
    everyone = sorted((CLOUD / "workers").iterdir())
    return everyone if which == "all" else [everyone[int(which)]]


def next_state(name: str) -> str:
    """The first line of a state file; earlier lines are used up, the last one stays."""
    path = CLOUD / name
    lines = path.read_text().split() if path.exists() else ["ABSENT"]
    path.write_text("\n".join(lines[1:] or lines))
    if lines[0] == "ABSENT":
        sys.exit("ERROR: (gcloud) NOT_FOUND: the resource was not found")
    return lines[0]


def create() -> None:
    states, *more = (CLOUD / "created").read_text().split("\n\n")
    (CLOUD / "queue").write_text(states)
    (CLOUD / "created").write_text("\n\n".join(more or [states]))
    (CLOUD / "machine").write_text("READY")
    for number in range(2):
        (CLOUD / "workers" / str(number)).mkdir(parents=True, exist_ok=True)


def end_processes() -> None:
    """Nothing runs on a machine that is gone."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another user's, or it has ended
            if f"HOME={CLOUD}/workers/".encode() in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)


def delete() -> None:
    end_processes()
    shutil.rmtree(CLOUD / "workers")
    (CLOUD / "queue").unlink()
    (CLOUD / "machine").unlink()


def describe(kind: str, argv: list[str]) -> None:
    if "networkEndpoints" in option(argv, "format"):
        print(" ".join(f"10.0.0.{number}" for number, _ in enumerate(workers(["--worker=all"]))))
    else:
        print(next_state("queue" if kind == "queued-resources" else "machine"))


def ssh(argv: list[str]) -> int:
    codes = []
    for home in workers(argv):
        environment = {"HOME": str(home), "PATH": os.environ["PATH"], "FAKE_CLOUD": str(CLOUD)}
        command = ["bash", "-c", option(argv, "command")]
        codes.append(subprocess.run(command, env=environment, cwd=home).returncode)
    return max(codes)


def scp(argv: list[str]) -> None:
    source, target = (word for word in argv if not word.startswith("--"))
    for home in workers(argv):
        shutil.copyfile(source, home / target.split(":", 1)[1])


def gcloud(argv: list[str]) -> int:
    kind, verb, rest = argv[2], argv[3], argv[4:]
    if must_fail(" ".join(argv)):
        print("ERROR: (gcloud) the service is unavailable", file=sys.stderr)
        return 1
    if verb == "ssh":
        return ssh(rest)
    if verb == "scp":
        scp(rest)
    elif verb == "describe":
        describe(kind, rest)
    else:
        {"create": create, "delete": delete}[verb]()
    return 0


def main() -> int:
    program, argv = Path(sys.argv[0]).name, sys.argv[1:]
    record(program, argv)
    if program == "sbatch":
        (CLOUD / "batch.sh").write_text(sys.stdin.read())
        return 0
    return gcloud(argv)


if __name__ == "__main__":
    sys.exit(main())
