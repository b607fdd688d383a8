"""Read access to a run's folder, finished or not.

    workdir/{config.json, run.json}
    workdir/round_NN/{prompts,sample,check,pair,train,evaluate}/{records,timings,metrics}.jsonl
    workdir/round_NN/train/goodput.jsonl

What is not there yet is simply absent; what is damaged is a UserError that names file and line.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.weights.storage import sha256_of_file


class RunFolder:
    """The rounds, stages and rows below one workdir. Raises UserError where there is no run."""

    def __init__(self, workdir: str | Path):
        self.path = Path(workdir)
        self._checked: set[Path] = set()
        if not any(self.path.glob("round_[0-9]*")):
            raise UserError(
                f"{self.path} holds no run (no round_00 folder): give the workdir of `selfevo run`"
            )

    def rounds(self) -> list[int]:
        """Round numbers in order; round 0 is the model before training."""
        names = [path.name for path in self.path.glob("round_*") if path.is_dir()]
        return sorted(int(name[6:]) for name in names if name[6:].isdigit())

    def stages(self, number: int) -> list[str]:
        """The stages of a round that have a folder, by the time that their files were made."""
        folders = [path for path in self._round(number).iterdir() if path.is_dir()]
        order = {name: i for i, name in enumerate(STAGE_ORDER)}
        return sorted((f.name for f in folders), key=lambda n: (order.get(n, len(order)), n))

    def document(self, name: str) -> dict[str, Any]:
        """A JSON object at the top of the workdir, {} where it is absent."""
        path = self.path / name
        return read_document(path) if path.is_file() else {}

    def rows(
        self, number: int, stage: str, name: str = "records", needs: Sequence[str] = ()
    ) -> Iterator[dict[str, Any]]:
        """The objects of `round_NN/stage/name.jsonl` in order; nothing where there is no file.

        Metrics and timings grow line by line, so the beginning of a last line there is not read
        yet; records appear whole. Raises UserError for a line that is no object or lacks one of
        the fields `needs`.
        """
        path = self._round(number) / stage / f"{name}.jsonl"
        if not path.is_file():
            return
        self._check(path)
        with path.open("rb") as lines:
            for line_number, line in enumerate(lines, start=1):
                if name != "records" and not line.endswith(b"\n"):
                    return
                where = f"{path}:{line_number}"
                row = _parsed(line, where)
                lacking = [field for field in needs if field not in row]
                if lacking:
                    raise UserError(f"{where} lacks {', '.join(lacking)}; {REMEDY}")
                yield row

    def _check(self, path: Path) -> None:
        """Compares a finished stage's file with its checksum, once."""
        sealed = path.with_name("stage.json")
        if path in self._checked or not sealed.is_file():
            return
        expected = read_document(sealed).get("files", {}).get(path.name)
        if expected not in (None, sha256_of_file(path)):
            raise UserError(f"{path} is corrupt: its checksum is another; {REMEDY}")
        self._checked.add(path)

    def seconds(self, number: int, stage: str) -> float:
        """Seconds of work in a stage, over all its interrupted attempts."""
        rows = self.rows(number, stage, "timings")
        return sum(float(row.get("seconds", 0.0)) for row in rows)

    def _round(self, number: int) -> Path:
        padded, bare = self.path / f"round_{number:02d}", self.path / f"round_{number}"
        return bare if bare.is_dir() else padded


STAGE_ORDER = ("prompts", "sample", "judge", "reflect", "check", "pair", "train", "evaluate")


REMEDY = "delete that folder and run again to remake it"


def read_document(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError for anything else."""
    return _parsed(path.read_bytes(), str(path))


def _parsed(content: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged ({error}); {REMEDY}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} holds no JSON object; {REMEDY}")
    return value
