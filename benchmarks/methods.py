"""Every method's `:cpu` config on real questions, seed by seed, and the tables of docs/results.md.

Run:  python benchmarks/methods.py run --out=DIR [--seeds=0,1,2] [--methods=active,elite]
      python benchmarks/methods.py table --out=DIR     renews docs/results.md from what is finished

`run` does all methods of a seed before the next seed, leaves out what is finished, and goes on with
what was interrupted. The table names the seeds that are missing.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfevo_jax.evaluate.stats import Difference, paired_difference
from selfevo_jax.report.folder import RunFolder, read_document

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Side:
    """Who answered the held-out questions: a stage, and its field that says what was right."""

    name: str
    stage: str
    field: str = "correct"


@dataclass(frozen=True)
class Claim:
    """`after` is better than `before`."""

    text: str
    before: Side
    after: Side


BASE = Side("untrained", "round_00/evaluate")
ELITE = Side("ELITE, 2 rounds", "round_02/evaluate")
GOLD = Side("SFT on gold answers", "round_02/sft.evaluate")
VOTED = Side("SFT on majority votes", "round_02/majority.evaluate")
DISTILLED = Side("SFT on gold answers", "round_01/evaluate")
ITERATED = Side("and iteration", "round_03/evaluate")
SELF_TRAINED = Side("and self-training", "round_04/evaluate")
FIRST_TRY = Side("untrained, first try", "round_00/untrained.outcome_2", "first")
UNTRAINED = Side("untrained, second try", "round_00/untrained.outcome_2", "later")
ONE_STAGE = Side("one stage, second try", "round_01/one_stage.outcome_2", "later")
QA = Side("SFT on gold answers, second try", "round_01/qa.outcome_2", "later")
IMITATED = Side("SFT on references", "round_01/evaluate_sft")
REFEVAL = Side("judge with references", "round_01/refeval.evaluate")
NO_REFERENCE = Side("judge without references", "round_01/base.evaluate")
RANDOM = Side("random, m = 1", "round_01/random-1.evaluate")
ENTROPY = Side("entropy, m = 1", "round_01/entropy-1.evaluate")
ENTROPY_2 = Side("entropy, m = 2", "round_02/entropy-2.evaluate")
RANDOM_2 = Side("random, m = 2", "round_02/random-2.evaluate")

# The first claim of a method is the one that its paper is about.
CLAIMS = {
    "active": (
        Claim("questions of high entropy teach more than random ones", RANDOM, ENTROPY),
        Claim("so they do when chosen in two steps", RANDOM_2, ENTROPY_2),
        Claim("choosing in two steps is better than in one", ENTROPY, ENTROPY_2),
        Claim("96 answers help at all", BASE, RANDOM),
    ),
    "elite": (
        Claim("learning one's own critiques beats SFT on gold answers", GOLD, ELITE),
        Claim("it beats the untrained model", BASE, ELITE),
        Claim("it beats self-improvement by majority vote", VOTED, ELITE),
        Claim("SFT on gold answers helps at all", BASE, GOLD),
    ),
    "refeval": (
        Claim("a judge that sees references teaches more than one without", NO_REFERENCE, REFEVAL),
        Claim("it improves on SFT on the references", IMITATED, REFEVAL),
        Claim("the whole beats the untrained model", BASE, REFEVAL),
    ),
    "reflectevo": (
        Claim("learning to reflect and answer makes second tries better", UNTRAINED, ONE_STAGE),
        Claim("learning to reflect beats SFT on gold answers", QA, ONE_STAGE),
        Claim("untrained, a second try is better than the first", FIRST_TRY, UNTRAINED),
    ),
    "meteor": (
        Claim("the three stages beat SFT on gold answers", DISTILLED, SELF_TRAINED),
        Claim("iteration adds to distillation", DISTILLED, ITERATED),
        Claim("self-training adds to iteration", ITERATED, SELF_TRAINED),
        Claim("distillation (here: SFT on gold answers) helps at all", BASE, DISTILLED),
    ),
}
TITLES = {
    "active": "Active selection", "elite": "ELITE", "meteor": "METEOR", "refeval": "RefEval",
    "reflectevo": "ReflectEvo",
}  # fmt: skip
COST_HEAD = (
    "| seed | commit | minutes | tokens generated | tokens trained on | examples of each fit |\n"
    "| --- | --- | --- | --- | --- | --- |"
)
MARK = "<!-- What follows is written by benchmarks/methods.py. -->\n"
SEED_HEAD = (
    "| comparison | seed | n | before | after | gain, 95 % |\n| --- | --- | --- | --- | --- | --- |"
)


def run(out: Path, methods: Sequence[str], seeds: Sequence[int]) -> int:
    """Makes every run that is not finished; 1 if one failed."""
    failed = []
    for seed in seeds:
        for method in methods:
            if not finished(out, method, seed) and attempt(out, method, seed):
                failed.append(f"{method}, seed {seed}")
    print(f"failed: {'; '.join(failed)}" if failed else "all runs are finished", flush=True)
    return bool(failed)


def attempt(out: Path, method: str, seed: int) -> int:
    """One start of a run, whatever is there already; notes its commit and CPU seconds."""
    options = [f"--config=configs/{method}.py:cpu", f"--config.seed={seed}"]
    options.append(f"--workdir={workdir(out, method, seed)}")
    before = children_seconds()
    print(f"{method}, seed {seed}", flush=True)
    status = subprocess.run(
        [sys.executable, "-m", "selfevo_jax.cli", "run", *options], cwd=ROOT
    ).returncode
    note = {"commit": commit(), "status": status, "seconds": children_seconds() - before}
    with notes(out, method, seed).open("a") as stream:
        stream.write(json.dumps(note) + "\n")
    return status


def workdir(out: Path, method: str, seed: int) -> Path:
    """Where a run is."""
    return out / f"{method}-{seed}"


def notes(out: Path, method: str, seed: int) -> Path:
    """What is kept of a run's starts."""
    return out / f"{method}-{seed}.starts.jsonl"


def starts(out: Path, method: str, seed: int) -> list[dict[str, Any]]:
    """Commit, exit status and CPU seconds of every start of a run that came to an end."""
    path = notes(out, method, seed)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def finished(out: Path, method: str, seed: int) -> bool:
    """Whether a run has come to its end."""
    return any(start["status"] == 0 for start in starts(out, method, seed))


def children_seconds() -> float:
    """CPU time of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def commit() -> str:
    """The commit of this checkout, with a mark if something is changed."""
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    return subprocess.run(
        asked, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def table(out: Path) -> None:
    """Writes the second part of docs/results.md from the runs that are finished."""
    done = {m: [seed for seed in SEEDS if finished(out, m, seed)] for m in CLAIMS}
    parts = list(summary(out, done))
    for method, seeds in done.items():
        parts += [f"\n## {TITLES[method]}\n", *section(out, method, seeds)]
    head, mark, _ = PAGE.read_text().partition(MARK)
    PAGE.write_text(head + mark + "\n" + "\n".join(parts) + "\n")


def summary(out: Path, done: dict[str, list[int]]) -> Iterator[str]:
    """What is missing, and one line per method: does its paper's direction hold?"""
    owed = {m: [str(s) for s in SEEDS if s not in found] for m, found in done.items()}
    missing = [f"{TITLES[m]} (seeds {', '.join(seeds)})" for m, seeds in owed.items() if seeds]
    yield f"**Missing:** {', '.join(missing)}.\n" if missing else "All runs are here.\n"
    yield "| method | the paper's direction | at this scale |\n| --- | --- | --- |"
    for method, seeds in done.items():
        claim = CLAIMS[method][0]
        found = [measured(workdir(out, method, seed), claim) for seed in seeds]
        yield f"| {TITLES[method]} | {claim.text} | {verdict(found)} |"


def section(out: Path, method: str, seeds: Sequence[int]) -> Iterator[str]:
    """A method's comparisons, and what its runs cost."""
    if not seeds:
        yield "Not finished yet."
        return
    yield SEED_HEAD
    said = []
    for claim in CLAIMS[method]:
        found = [measured(workdir(out, method, seed), claim) for seed in seeds]
        said.append(f"- {claim.text}: {verdict(found)}")
        for seed, d in zip(seeds, found, strict=True):
            sides = f"{claim.before.name} → {claim.after.name}"
            shares = f"{100 * d.before:.1f} % | {100 * d.after:.1f} %"
            yield f"| {sides} | {seed} | {d.n} | {shares} | {points(d)} |"
    yield "\n" + "\n".join(said) + "\n"
    yield COST_HEAD
    for seed in seeds:
        yield cost(out, method, seed)


def measured(folder: Path, claim: Claim) -> Difference:
    """The gain of a claim's second side over its first on the same questions."""
    before, after = (answers(RunFolder(folder), side) for side in (claim.before, claim.after))
    assert before.keys() == after.keys(), f"{folder}: {claim.text}: not the same questions"
    return paired_difference(list(before.values()), [after[name] for name in before])


def answers(folder: RunFolder, side: Side) -> dict[str, float]:
    """Held-out question -> 1 for a right answer, else 0."""
    number, _, stage = side.stage.removeprefix("round_").partition("/")
    found = {}
    for row in folder.rows(int(number), stage):
        values: dict[str, Any] = row.get("values", row)
        found[row.get("prompt_id") or row["source_id"]] = float(values[side.field])
    assert found, f"{folder.path} has no {side.stage}"
    return found


def verdict(found: Sequence[Difference]) -> str:
    """In how many seeds an interval lies above zero, or below it."""
    if not found:
        return "not measured yet"
    n, above, below = len(found), sum(d.low > 0 for d in found), sum(d.high < 0 for d in found)
    seeds = f"{n} seed{'s' * (n > 1)}"
    mean = f"mean gain {100 * sum(d.gain for d in found) / n:+.1f} points, {seeds}"
    if above and below:
        return f"both directions were seen ({mean})"
    if not (above or below):
        return f"not seen: no interval leaves out zero ({mean})"
    word = "holds" if above else "the opposite was seen"
    return f"{word} in {above or below} of {seeds} ({mean})"


def points(d: Difference) -> str:
    """A gain with its interval, in points."""
    return f"{100 * d.gain:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})"


def cost(out: Path, method: str, seed: int) -> str:
    """A run's commits, CPU minutes and tokens."""
    made = starts(out, method, seed)
    commits = ", ".join(dict.fromkeys(start["commit"] for start in made))
    minutes = sum(start["seconds"] for start in made) / 60
    spent = read_document(workdir(out, method, seed) / "summary.json")["cost"]
    tokens = f"{spent['generated_tokens']:,} | {spent['trained_tokens']:,}"
    examples = learned_from(RunFolder(workdir(out, method, seed)))
    return f"| {seed} | {commits} | {minutes:.1f} | {tokens} | {examples} |"


def learned_from(folder: RunFolder) -> str:
    """How many examples each fit had: of the method itself, and by the name of each branch."""
    fits: dict[str, list[str]] = {}
    for number in folder.rounds():
        for stage in folder.stages(number):
            branch, _, last = stage.rpartition(".")
            if last.partition("_")[0] == "train":  # train_1, train_2: METEOR's bursts
                sealed = read_document(folder.path / f"round_{number:02d}" / stage / "stage.json")
                fits.setdefault(branch, []).append(str(sealed["counts"]["examples"]))
    named = (f"{branch} {' + '.join(counts)}".strip() for branch, counts in sorted(fits.items()))
    return ", ".join(named)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--out", type=Path, required=True, help="where the runs are")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(CLAIMS))
    arguments = parser.parse_args()
    if arguments.what == "table":
        table(arguments.out)
        return 0
    arguments.out.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    return run(arguments.out.absolute(), arguments.methods.split(","), seeds)


if __name__ == "__main__":
    sys.exit(main())
