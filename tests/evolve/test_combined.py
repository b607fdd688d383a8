"""RefEval with stages of other methods, in miniature: each borrowed stage's output is used."""

import json
from pathlib import Path

import pytest

from selfevo_jax.config import load_config
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.launch import check_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def run(method):
    """Selection and reflection at once, two rounds."""
    run = method()
    run("betas=(0.05,)")
    return run


def ids(run, stage: str, field: str = "id") -> list[str]:
    return [row[field] for row in run.rows(stage)]


def test_refeval_samples_the_prompts_that_selection_picks(run):
    pool = set(ids(run, "round_00/pool"))
    picked = []
    for number in (1, 2):
        chosen = ids(run, f"round_0{number}/acquire", "source_id")
        assert set(ids(run, f"round_0{number}/prompts")) == set(chosen) <= pool
        assert set(ids(run, f"round_0{number}/sample", "prompt_id")) == set(chosen)
        picked += chosen
    assert len(set(picked)) == len(picked) == 6  # none is taken twice
    unsure = {r["source_id"]: r["values"] for r in run.rows("round_01/uncertainty")}
    entropy = {
        reply["prompt_id"]: unsure[reply["id"]]["mean_entropy"]
        for reply in run.rows("round_01/reply")
    }
    least = min(entropy[name] for name in picked[:3])
    assert least >= max(value for name, value in entropy.items() if name not in picked[:3])
    assert {row["policy"] for row in run.rows("round_02/reply")} <= {"base", "beta_0.05.round_01"}


def test_answers_after_reflection_are_judged_beside_samples(run):
    reflections = set(ids(run, "round_01/reflection.reflect"))
    candidates = {row["id"]: row for row in run.rows("round_01/candidates")}
    revised = {name for name, row in candidates.items() if row["parent_id"] in reflections}
    assert revised == set(ids(run, "round_01/reflection.revise"))
    assert set(candidates) - revised == set(ids(run, "round_01/sample"))
    order = [row["prompt_id"] for row in candidates.values()]
    assert sum(a != b for a, b in zip(order, order[1:], strict=False)) == len(set(order)) - 1
    met = [row["values"] for row in run.rows("round_01/contests")]
    mixed = [v for v in met if len({v["first_id"], v["second_id"]} & revised) == 1]
    assert mixed
    for v in met:
        assert candidates[v["first_id"]]["text"] == v["first"]
    scores = {k for row in run.rows("round_01/score") for k in row["values"]["scores"]}
    assert scores & revised
    pairs = run.rows("round_01/pair")
    assert pairs and {row["chosen_id"] for row in pairs} <= set(candidates)


def test_each_round_is_accepted_or_rolled_back(run):
    for number in (1, 2):
        (decided,) = [row["values"] for row in run.rows(f"round_0{number}/accept")]
        assert decided["policy"] == f"beta_0.05.round_0{number}" and decided["n"] == 2


def test_a_second_start_writes_the_same_plan(run):
    """Though it knows by then which policy was chosen and which round was accepted."""
    before = (run.workdir / "run.json").read_bytes()
    run("betas=(0.05,)")
    assert (run.workdir / "run.json").read_bytes() == before


@pytest.mark.parametrize("size", ("cpu", "tiny"))
@pytest.mark.parametrize("which", ("selection-", "reflection-", "both-", ""))
def test_every_variant_is_whole(which, size):
    config = load_config(f"{CONFIGS / 'combined.py'}:{which}{size}")
    check_config(config)
    wanted = {
        "selection-": ("entropy", "samples"),
        "reflection-": ("all", "reflection"),
    }.get(which, ("entropy", "reflection"))
    assert (config.prompts_by, config.candidates) == wanted


def test_an_unknown_combination_names_the_known():
    with pytest.raises(UserError, match="use selection, reflection or both with -cpu or -tiny"):
        load_config(f"{CONFIGS / 'combined.py'}:7b")


def test_a_round_with_nothing_to_reflect_on_goes_on_with_its_samples(method, easy):
    """Every answer is right: the samples alone are candidates, and are learned."""
    run = easy(method("easy"))
    few = ("rounds=1", "evaluate.n=2", "accept.questions=0", "gauges.questions=0")
    said = run("prompts_by=all", "betas=(0.05,)", "answer.temperature=1.0", *few)
    assert all(row["correct"] for row in run.rows("round_01/reflection.check"))
    assert not (run.workdir / "round_01/candidates").exists()
    assert set(ids(run, "round_01/pair", "chosen_id")) <= set(ids(run, "round_01/sample"))
    assert "nothing to reflect on" in said
    assert json.loads((run.workdir / "run.json").read_text())["finished"]
