"""Active selection in miniature: budgets, logs, retraining, and the table of the study."""

import json

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.tasks import get_task
from selfevo_jax.evolve.jax_model import JaxModel
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.sample.protocol import LabelRequest

COMPUTE = {"dtype": "float32", "remat": "none", "mesh": "1,-1,1", "slots": 8, "max_length": 1024}


@pytest.fixture(scope="module")
def run(method):
    run = method()
    run()
    return run


def test_the_budget_is_spent_in_parts_on_different_questions(run):
    pool = {row["id"]: row for row in run.rows("round_00/pool")}
    for strategy in ("random", "entropy", "k_centre"):
        first, second = (run.rows(f"round_0{i}/{strategy}-2.acquire") for i in (1, 2))
        bought = [row["source_id"] for row in (*first, *second)]
        assert len(first) == len(second) == 2 and len(set(bought)) == 4 and set(bought) <= set(pool)
        assert {row["values"]["strategy"] for row in first} == {strategy}


def test_only_the_answers_that_were_bought_are_learned(run):
    pool = {row["id"]: row for row in run.rows("round_00/pool")}
    for part in (1, 2):
        chosen = [row["source_id"] for row in run.rows(f"round_0{part}/entropy-2.acquire")]
        lessons = run.rows(f"round_0{part}/entropy-2.reveal")
        assert [row["prompt_id"] for row in lessons] == chosen
        assert all(row["completion"] == pool[row["prompt_id"]]["answer"] for row in lessons)
    counts = json.loads((run.workdir / "round_02/entropy-2.train/stage.json").read_text())["counts"]
    assert counts["examples"] == 4


def test_the_second_part_is_scored_by_the_retrained_policy(run):
    replies = run.rows("round_02/entropy-2.reply")
    assert {row["policy"] for row in replies} == {"entropy-2.round_01"}
    bought = {row["source_id"] for row in run.rows("round_01/entropy-2.acquire")}
    assert len(replies) == 10 and not bought & {row["prompt_id"] for row in replies}


def test_the_most_uncertain_were_taken(run):
    """The log's scores are the pool's largest, as the uncertainty stage found them."""
    scores = [row["values"]["mean_entropy"] for row in run.rows("round_01/entropy-2.uncertainty")]
    taken = [row["values"]["score"] for row in run.rows("round_01/entropy-2.acquire")]
    assert taken == pytest.approx(sorted(scores, reverse=True)[:2], abs=1e-4)


def test_the_pool_can_be_of_middling_difficulty(method):
    """By replies that are drawn for this, since the strategies draw one or none."""
    run = method("band")
    probe = ("difficulty.probe.n=8", "difficulty.probe.max_new_tokens=3")
    run("difficulty.between=(0.0,1.0)", "acquire.strategies=('random',)", "acquire.budget=2",
        "pool.n=40", *probe)  # fmt: skip
    right = {row["sample_id"] for row in run.rows("round_00/check_band") if row["correct"]}
    shares: dict[str, list[bool]] = {}
    for row in run.rows("round_00/probe"):
        shares.setdefault(row["prompt_id"], []).append(row["id"] in right)
    middling = [row["id"] for row in run.rows("round_00/pool") if 0 < sum(shares[row["id"]]) < 8]
    assert [row["id"] for row in run.rows("round_00/probed")] == middling
    assert {len(found) for found in shares.values()} == {8} and 2 <= len(middling) < 40
    bought = {row["source_id"] for row in run.rows("round_01/random-2.acquire")}
    assert bought and bought <= set(middling)


def test_letters_are_weighed_and_not_written(method, tmp_path):
    """Multiple choice: what is answered is the likeliest of the letters shown, and nothing else."""
    rows = [
        {"question": f"Which is {n}?", "choices": [f"{n}", "p", "q", "r"], "answer": n % 4}
        for n in range(40)
    ]
    for name, part in (("auxiliary_train/train", rows[:30]), ("anatomy/test", rows[30:])):
        path = tmp_path / f"mmlu/{name}.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    config = tmp_path / "letters.py"
    config.write_text(
        "from selfevo_jax.config import load_config\n"
        "from ml_collections import ConfigDict\n\n\n"
        "def get_config(arg=None):\n"
        f"    config = ConfigDict(load_config({str(method('x').config)!r}).to_dict())\n"
        "    config.task.name = 'mmlu'\n"
        f"    config.task.args = {{'data_dir': {str(tmp_path)!r}}}\n"
        "    return config.lock()\n"
    )
    run = method("letters")
    run.config = str(config)
    run("weigh_letters=true", "acquire.strategies=('random',)", "acquire.budget=2", "pool.n=8")
    answers = run.rows("round_00/evaluate")
    assert {row["tokens"] for row in answers} == {0} and len(answers) == 4
    assert all(row["parsed"] in "ABCD" and row["text"] == f"Answer: ({row['parsed']})"
               for row in answers)  # fmt: skip
    model = JaxModel("random:tiny?seed=0", COMPUTE, Progress())
    prompts = {p.id: p for p in get_task("mmlu", data_dir=tmp_path).prompts("test", 4, 0)}
    asked = [
        LabelRequest(
            row["prompt_id"], prompts[row["prompt_id"]].messages, tuple("ABCD"), "Answer: ("
        )
        for row in answers
    ]
    weighed = {one.id: one.logps for one in model.generator(None).labels(asked)}
    for row in answers:
        logps = weighed[row["prompt_id"]]
        assert "ABCD".index(row["parsed"]) == logps.index(max(logps))


def test_the_study_is_one_table(run):
    rows = [row["values"] for row in run.rows("round_02/table")]
    names = ["base", "random-2.round_02", "entropy-2.round_02", "k_centre-2.round_02"]
    assert [row["policy"] for row in rows] == names
    assert [(row.get("strategy"), row.get("m")) for row in rows[1:]] == [
        ("random", 2), ("entropy", 2), ("k_centre", 2),
    ]  # fmt: skip
    assert all("over_random" in row for row in rows[2:])


def test_killed_and_gone_on_with_it_is_the_same(method, content_of):
    few = ("acquire.strategies=('entropy',)", "pool.n=8", "evaluate.n=2")
    whole = method("whole")
    whole(*few)
    killed = method.killed("killed", 24, *few)
    assert content_of(killed) == content_of(whole)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("acquire.iterations=(1,0)", r"iterations=\(1, 0\): 0 must be from 1 to 4"),
        ("acquire.iterations=(5,)", r"iterations=\(5,\): 5 must be from 1 to 4"),
        ("acquire.iterations=()", "acquire.iterations is not given"),
        ("acquire.strategies=()", "acquire.strategies is not given"),
        ("acquire.budget=0", "budget=0: 0 must be at least 1"),
        ("acquire.budget=13", "budget=13: 13 must be from 1 to 12"),
    ],
)
def test_a_study_that_cannot_be_is_refused_before_any_work(method, override, message):
    run = method("refused")
    with pytest.raises(UserError, match=message):
        run(override)
    assert not list(run.workdir.glob("round_*"))


def test_a_budget_above_what_near_copies_left_is_refused_as_soon_as_known(method):
    run = method("alike")
    with pytest.raises(UserError, match=r"budget=12: 12 must be from 1 to \d"):
        run("pool.most_similar=0.5", "acquire.budget=12", "acquire.strategies=('random',)")
    assert not (run.workdir / "round_01").exists()


def test_an_unknown_strategy_names_the_nearest(method):
    with pytest.raises(UserError, match="acquire.strategies 'entrop'; did you mean entropy"):
        method("wrong")("acquire.strategies=('entrop',)")
