"""One of several hosts that share no folder, and write files into a workdir in a bucket.

python hosts_worker.py STORY URL HOST:PORT HOSTS HOST; it prints what it has seen as JSON.
"""

import json
import sys
import time
from pathlib import Path

import gcsfs

from selfevo_jax.parallel.cluster import Cluster
from selfevo_jax.parallel.distributed import agreed, barrier, first, joined, own_name
from selfevo_jax.remote import exchange, mirror

mirror.SAVE_SECONDS, exchange.AGAIN_SECONDS = 0.05, 0.2
# Without its half minute of trying again, so that an outage is seen at once.
gcsfs.GCSFileSystem._request = gcsfs.GCSFileSystem._request.__wrapped__


def below(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    return sorted(str(path.relative_to(folder)) for path in files)


def written(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def together(folder: Path) -> dict:
    """What is written is seen where it must be, and what is removed is gone."""
    seen = {}
    agreed(lambda: written(folder / "round_01/a/records.jsonl", "a"))
    agreed(lambda: written(folder / "round_01/train/checkpoints/4/state", "not for the others"))
    seen["after agreed"] = below(folder)
    with open(folder / own_name("log.jsonl"), "a") as journal:
        for number in range(3):  # one file all the time, though host 0 has it too
            journal.write(f"{number}\n")
            journal.flush()
            barrier()
            names = ("log.jsonl", "log-1.jsonl") if first() else ("log-1.jsonl",)
            seen[f"lines {number}"] = [len((folder / n).read_text().split()) for n in names]
            agreed(lambda: None)
    agreed((folder / "log-1.jsonl").unlink)
    agreed(lambda: str((folder / "round_01/a").rename(folder / "round_01/b")))
    seen["at the end"] = below(folder)
    written(folder / own_name("last"), "no barrier of its own brings it")
    return seen


def behind(folder: Path) -> dict:
    """Host 1 sees, one after the other, what host 0 replaced and saved anew long ago."""
    seen = []
    for number in range(5):
        agreed(lambda number=number: written(folder / "document", f"version {number}"))
        time.sleep(0.3 if first() else 0.0)
        if not first() and number == 0:
            time.sleep(4.0)
        seen.append((folder / "document").read_text())
    barrier()
    return {"seen": seen}


def killed(folder: Path) -> dict:
    """A journal that no barrier has brought to host 0; then nothing happens until a signal."""
    agreed(lambda: written(folder / "document", "of host 0"))
    with open(folder / own_name("records.part.jsonl"), "a") as journal:
        for _ in range(3):
            journal.write("line\n")
            journal.flush()
    time.sleep(600)
    return {}


def again(folder: Path) -> dict:
    """What is there before anything is done."""
    return {name: (folder / name).read_text() for name in below(folder)}


def away(folder: Path) -> dict:
    """Both see each other's files when the bucket is back, which goes when `ready` is said."""
    print("ready", flush=True)
    sys.stdin.readline()
    agreed(lambda: written(folder / "document", "of host 0"))
    written(folder / own_name("own"), "own")
    barrier()
    return {"seen": below(folder)}


def main(story: str, url: str, where: str, hosts: str, host: str) -> None:
    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    with joined(Cluster(where, int(hosts), int(host))), mirror.workplace(url, say) as folder:
        print(json.dumps(globals()[story](folder)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
