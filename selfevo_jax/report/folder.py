"""Read access to a run's folder, finished or not.

    workdir/{config.json, run.json}
    workdir/round_NN/BRANCH.BRANCH2.NAME/{records,timings,metrics,goodput}.jsonl

What a stage did is told by what its folder holds: metrics (it trained), records of one kind or
another. Its name tells the line of policies that it belongs to, and nothing else.

What is not there yet is simply absent; what is damaged is a UserError that names file and line.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from selfevo_jax.errors import UserError
from selfevo_jax.parallel.distributed import name_on
from selfevo_jax.weights.storage import sha256_of_file

Place = tuple[int, str]  # a stage: its round and its name


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
        """The stages of a round that have a folder, in the order of the plan."""
        names = [path.name for path in self._round(number).iterdir() if path.is_dir()]
        return sorted(names, key=lambda name: self._order((number, name)))

    def places(self) -> list[Place]:
        """All stages that have a folder, in the order of the plan, which may mix rounds.

        Those that no plan names come last, round by round.
        """
        found = [(number, name) for number in self.rounds() for name in self.stages(number)]
        return sorted(found, key=self._order)

    @cached_property
    def plan(self) -> Mapping[str, Mapping[str, Any]]:
        """What run.json says of every planned stage, by its label, in order."""
        return {step["stage"]: step for step in self.document("run.json").get("plan") or []}

    def decides(self, place: Place) -> bool:
        """Whether the run went by what a stage gave; not by one that measured or is not planned."""
        step = self.plan.get(label(place))
        return step is not None and not step.get("measuring")

    def inputs(self, place: Place) -> Mapping[str, str]:
        """What a finished stage read: a name to a content hash. {} before it is finished."""
        sealed = self.document(f"{label(place)}/stage.json")
        return sealed.get("stage", {}).get("inputs", {})

    def read_by(self, place: Place) -> list[Place]:
        """The stages whose records a finished stage read."""
        return [read for name in self.inputs(place) if (read := place_of(name)) is not None]

    def behind(self, place: Place) -> list[Place]:
        """The stages of its round that a finished stage depends on by records, nearest first."""
        found: dict[Place, None] = {}
        waiting = [place]
        while waiting:
            read = [r for r in self.read_by(waiting.pop(0)) if r[0] == place[0] and r not in found]
            found |= dict.fromkeys(read)
            waiting += read
        return list(found)

    def _order(self, place: Place) -> tuple[int, int, int, str]:
        number, name = place
        planned = self._positions.get(label(place), len(self._positions))
        usual = STAGE_ORDER.index(name) if name in STAGE_ORDER else len(STAGE_ORDER)
        return planned, number, usual, name

    @cached_property
    def _positions(self) -> Mapping[str, int]:
        return {stage: i for i, stage in enumerate(self.plan)}

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

    def timings(self, number: int, stage: str) -> list[list[dict[str, Any]]]:
        """The lines of timings.jsonl of each host that worked at a stage, host 0 first."""
        others = sorted((self._round(number) / stage).glob(name_on("*", "timings.jsonl")))
        names = ["timings", *(path.stem for path in others)]
        return [list(self.rows(number, stage, name)) for name in names]

    def seconds(self, number: int, stage: str) -> float:
        """Seconds of work in a stage, over all its interrupted attempts.

        Hosts work side by side, so it is the time of the one that was longest at it.
        """
        hosts = self.timings(number, stage)
        return max(sum(float(line.get("seconds", 0.0)) for line in lines) for lines in hosts)

    def _round(self, number: int) -> Path:
        padded, bare = self.path / f"round_{number:02d}", self.path / f"round_{number}"
        return bare if bare.is_dir() else padded


STAGE_ORDER = ("prompts", "sample", "judge", "reflect", "check", "pair", "train", "evaluate")


REMEDY = "delete that folder and run again to remake it"


def label(place: Place) -> str:
    """A stage as run.json and other stages call it: "round_01/refeval.pair"."""
    return f"round_{place[0]:02d}/{place[1]}"


def place_of(name: str) -> Place | None:
    """The stage with a label; None for a name that is no stage's."""
    match = re.fullmatch(r"round_(\d+)/(.+)", name)
    return (int(match[1]), match[2]) if match else None


def line_of(stage: str) -> str:
    """The branch of a stage: "dpo" of "round_01/dpo.train" or "dpo.train", "" of "train"."""
    return stage.rpartition("/")[2].rpartition(".")[0]


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
