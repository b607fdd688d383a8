"""RefEval in miniature, every stage real: who was compared, scored, preferred, and kept."""

from pathlib import Path

import pytest

from selfevo_jax.config import load_config
from selfevo_jax.errors import UserError
from selfevo_jax.evolve import contests
from selfevo_jax.evolve.launch import check_config
from selfevo_jax.judge.pairwise import Comparison
from selfevo_jax.records import Pair, Prompt, Row, Sample, Vector
from selfevo_jax.sample.engine import JaxGenerator

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = (
    "judges=('refeval','rouge','embedding')",
    "betas=(0.05,0.5)",
    "sample.max_new_tokens=60",
    "compute.max_length=400",
)
END = 'Reply with "Output ((" for the first or with "Output ()" for the second.'


@pytest.fixture(scope="module")
def judged():
    """Every request for label probabilities."""
    asked, labels = [], JaxGenerator.labels

    def watched(self, requests):
        requests = list(requests)
        asked.extend(requests)
        return labels(self, requests)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JaxGenerator, "labels", watched)
        yield asked


@pytest.fixture(scope="module")
def run(method, judged):
    """One whole run with three judges; long answers, so that judges' inputs must be cut."""
    run = method()
    run.said = run(*SMALL)
    return run


def kept(run, stage: str, kind) -> dict:
    return {row["id"]: kind.from_json(row) for row in run.rows(stage)}


def test_references_are_learned_and_shown(run):
    """7.1 b: references by id, never by line, in lessons and contests."""
    prompts = kept(run, "round_01/prompts", Prompt)
    texts = {row["source_id"]: row["values"]["text"] for row in run.rows("round_01/references")}
    assert texts == {name: prompt.answer for name, prompt in prompts.items()}
    for lesson in run.rows("round_01/learn"):
        assert lesson["completion"] == texts[lesson["prompt_id"]]
    for row in run.rows("round_01/refeval.contests"):
        assert row["values"]["reference"] == texts[row["source_id"]]


def test_all_pairs_of_different_texts_meet(run):
    samples = kept(run, "round_01/refeval.sample", Sample)
    met = run.rows("round_01/refeval.contests")
    texts: dict[str, set] = {}
    for sample in samples.values():
        texts.setdefault(sample.prompt_id, set()).add(sample.text.strip())
    assert len(met) == sum(len(found) * (len(found) - 1) // 2 for found in texts.values())
    for row in met:
        for side in ("first", "second"):
            sample = samples[row["values"][f"{side}_id"]]
            assert (sample.prompt_id, sample.text) == (row["source_id"], row["values"][side])


def test_pairs_are_the_best_over_the_worst_by_mean_win_probability(run):
    """7.1 e: recomputed by hand from the comparisons, joined by id."""
    said = {row["item_id"]: row for row in run.rows("round_01/refeval.judge")}
    chances: dict[str, dict[str, list[float]]] = {}
    for row in run.rows("round_01/refeval.contests"):
        p, mine = said[row["id"]]["p_first"], chances.setdefault(row["source_id"], {})
        mine.setdefault(row["values"]["first_id"], []).append(p)
        mine.setdefault(row["values"]["second_id"], []).append(1 - p)
    samples = kept(run, "round_01/refeval.sample", Sample)
    pairs = kept(run, "round_01/refeval.pair", Pair)
    assert pairs
    for pair in pairs.values():
        means = {name: sum(p) / len(p) for name, p in chances[pair.prompt_id].items()}
        assert means[pair.chosen_id] == pytest.approx(max(means.values()), abs=1e-5)
        assert means[pair.rejected_id] == pytest.approx(min(means.values()), abs=1e-5)
        assert samples[pair.chosen_id].text == pair.chosen != pair.rejected
        assert samples[pair.rejected_id].prompt_id == pair.prompt_id


def test_the_judge_reads_to_the_end_of_its_request(run, judged):
    """7.1 g: long answers are cut in their own places, in both orders; the end stays."""
    rows = run.rows("round_01/refeval.judge")
    assert any(row["cut"] for row in rows) and judged
    assert all(request.messages[-1]["content"].endswith(END) for request in judged)
    assert all([ballot["order"] for ballot in row["ballots"]] == ["ab", "ba"] for row in rows)
    scorings = {r["values"]["judge"]: r["values"] for r in run.rows("round_01/scorings")}
    failed = sum(row["verdict"] == "failure" for row in rows)
    assert scorings["refeval 1"]["failed"] == failed
    assert scorings["refeval 1"]["comparisons"] == len(rows)


def test_likeness_judges_score_without_comparing(run):
    prompts = kept(run, "round_01/prompts", Prompt)
    for judge in ("rouge", "embedding"):
        scores = {
            row["source_id"]: row["values"]["scores"] for row in run.rows(f"round_01/{judge}.score")
        }
        samples = kept(run, f"round_01/{judge}.sample", Sample)
        assert {samples[name].prompt_id for found in scores.values() for name in found} <= set(
            prompts
        )
        assert not (run.workdir / f"round_01/{judge}.judge").exists()
    assert any(value != 0 for found in scores.values() for value in found.values())


def test_the_grid_shares_all_and_the_best_on_validation_is_evaluated(run):
    """The test split decides nothing: validation questions are neither trained on nor reported."""
    names = "prompts", "refeval.validation"
    training, validation = ({row["id"] for row in run.rows(f"round_01/{n}")} for n in names)
    held_out = {row["id"] for row in run.rows("round_01/held_out")}
    assert not training & validation and not (training | validation) & held_out
    assert len(validation) == 2
    values = [run.rows(f"round_01/refeval.beta_{b}.value")[0]["values"] for b in (0.05, 0.5)]
    best = run.rows("round_01/refeval.best")[0]["values"]
    assert best["value"] == max(v["value"] for v in values)
    assert {a["policy"] for a in run.rows("round_01/refeval.evaluate")} == {best["policy"]}
    assert {row["prompt_id"] for row in run.rows("round_01/refeval.pair")} <= training


def test_win_rates_are_over_the_bases_answers(run):
    rows = {row["values"]["policy"]: row["values"] for row in run.rows("round_01/arena")}
    assert len(rows) == 4 and all(0 <= row["win_rate"] <= 1 for row in rows.values())
    assert {row["n"] for row in rows.values()} == {4}
    duels = kept(run, "round_01/arena.sft", Sample)
    others = kept(run, "round_01/arena.first", Sample)
    assert {s.parent_id for s in duels.values()} == set(others)
    assert "arena" in run.said


def test_a_policy_that_stands_for_two_names_fights_once(method):
    """All candidates are refused here, so that what came of every judge is the start itself."""
    run = method("refused")
    run(
        "judges=('refeval','rouge')", "betas=(0.05,)", "accept.questions=2", "accept.tolerance=-2.0"
    )
    stages = {path.name for path in (run.workdir / "round_01").iterdir()}
    assert {name for name in stages if name.startswith("arena.")} == {
        "arena.first", "arena.sft", "arena.sft.judge",
    }  # fmt: skip
    assert len(run.rows("round_01/arena")) == 1


def test_a_finished_run_does_nothing_again(run):
    assert "loading" not in run(*SMALL)


def test_killed_and_gone_on_with_gives_the_same_bytes(method, content_of):
    small = (
        "judges=('refeval',)", "betas=(0.05,0.5)", "validation.by=preference", "sft.use=false",
        "comparisons=2", "sample.n=4",
    )  # fmt: skip
    whole = method("whole")
    whole(*small)
    assert content_of(method.killed("killed", 45, *small)) == content_of(whole)


@pytest.mark.parametrize(("n", "comparisons"), [(5, 2), (8, 3), (8, 4), (7, 3), (9, 6)])
def test_a_tournament_is_connected_and_fair(n, comparisons):
    edges = contests.drawn(n, comparisons, "seed")
    degrees = [sum(place in edge for edge in edges) for place in range(n)]
    odd = n % 2 and comparisons % 2
    assert set(degrees) <= ({comparisons, comparisons + 1} if odd else {comparisons})
    reached, grown = {0}, True
    while grown:
        more = {v for edge in edges for v in edge if reached & set(edge)}
        grown, reached = not more <= reached, reached | more
    assert reached == set(range(n))
    assert edges == contests.drawn(n, comparisons, "seed") != contests.drawn(n, comparisons, "b")


def test_without_a_limit_everyone_meets_everyone():
    assert contests.drawn(3, 0, "s") == [(0, 1), (0, 2), (1, 2)] == contests.drawn(3, 2, "s")


def sample(text: str, seed: int = 0, finish: str = "stop") -> Sample:
    return Sample.make(
        prompt_id=PROMPT.id, parent_id=PROMPT.id, text=text, tokens=(seed,), logps=(-1.0,),
        finish=finish, seed=seed, policy="x",
    )  # fmt: skip


PROMPT = Prompt.make(
    task="t", messages=({"role": "user", "content": "2 + 2?"},), answer="4", meta={}
)


def test_equal_blank_and_unfinished_answers_do_not_compete():
    found = [sample("4", 1), sample(" 4 ", 2), sample("", 3), sample("5", 4, "length")]
    assert [s.text for s in contests.candidates(found, finished=True)] == ["4"]
    assert [s.text for s in contests.candidates(found, finished=False)] == ["4", "5"]


def comparison(item: str, p: float | None) -> Comparison:
    ballots = [
        {"reference": 0, "order": o, "p": p, "mass": 1.0, "failure": None} for o in ("ab", "ba")
    ]
    verdict = "failure" if p is None else "first" if p > 0.5 else "second" if p < 0.5 else "tie"
    return Comparison.make(
        item_id=item, judge="j", protocol="base", prompt="h", ballots=tuple(ballots), p_first=p,
        verdict=verdict, failure=None if p is not None else "none", margin=0.0, cut={},
        neutralised=(),
    )  # fmt: skip


def test_a_failed_comparison_is_counted_and_votes_for_nobody():
    """7.1 g: no coin is tossed where a judge gives no verdict."""
    row = Row.make(source_id="q", values={"first_id": "a", "second_id": "b"})
    other = Row.make(source_id="q", values={"first_id": "a", "second_id": "c"})
    rows = [(row, comparison("1", None)), (other, comparison("2", 0.9))]
    (scored,) = contests.judged_scores(rows)
    assert scored.values == {"scores": {"a": 0.9, "c": 0.1}, "comparisons": 2, "failed": 1}


def test_a_gap_that_is_too_small_makes_no_pair():
    one, two = sample("4", 1), sample("5", 2)
    scores = {one.id: 0.6, two.id: 0.4}
    row = Row.make(source_id=PROMPT.id, values={"scores": scores})
    rows = [(one, PROMPT), (two, PROMPT)]
    (pair,) = contests.best_against_worst(rows, [row], least_gap=0.1)
    assert (pair.chosen, pair.rejected) == ("4", "5")
    assert contests.best_against_worst(rows, [row], least_gap=0.3) == []


def test_rejected_answers_of_round_0_are_the_worst_of_the_bases():
    def drawn(policy: str, seed: int) -> Sample:
        return Sample.make(
            prompt_id=PROMPT.id, parent_id=PROMPT.id, text=f"{policy} {seed}", tokens=(seed,),
            logps=(-1.0,), finish="stop", seed=seed, policy=policy,
        )  # fmt: skip

    new, old = ([drawn(policy, n) for n in (1, 2)] for policy in ("round_01", "base"))
    scores = dict(zip((s.id for s in [*new, *old]), (0.1, 0.7, 0.9, 0.3), strict=True))

    def texts(samples: list[Sample], rejected_by: str) -> list[tuple[str, str]]:
        rows = [(sample, PROMPT) for sample in samples]
        mine = {s.id: scores[s.id] for s in samples}
        scored = [Row.make(source_id=PROMPT.id, values={"scores": mine})]
        made = contests.best_against_worst(rows, scored, 0.0, rejected_by)
        return [(pair.chosen, pair.rejected) for pair in made]

    assert texts([*new, *old], "base") == [("round_01 2", "base 2")]
    assert texts([*new, *old], "policy") == [("base 1", "round_01 1")]
    assert texts(old, "base") == [("base 1", "base 2")]  # the policy is still the base
    assert texts([new[0], *old], "base") == []  # nothing of the policy's is better


def test_likeness_is_to_the_reference():
    one, two = sample("four", 1), sample("it is 4", 2)
    reference = Row.make(source_id=PROMPT.id, values={"text": "it is 4"})
    (scored,) = contests.rouge_scores(([one, two], PROMPT, reference), finished=True)
    assert scored.values["scores"] == {one.id: 0.0, two.id: 1.0}

    def vector(name: str, *values: float) -> Vector:
        return Vector.make(source_id=name, policy="x", values=values)

    placed = [(one, vector(one.id, 1.0, 0.0)), (two, vector(two.id, 0.6, 0.8))]
    row = (placed, PROMPT, vector(PROMPT.id, 0.0, 1.0))
    (scored,) = contests.embedding_scores(row, finished=True)
    assert scored.values["scores"] == {one.id: 0.0, two.id: 0.8}


def test_win_rates_know_failures_ties_and_length():
    base = sample("x", 1)
    chances = [0.9, 0.5, None, 0.2]
    answers = [sample("y" * (1 + 9 * (p == 0.9)), 10 + n) for n, p in enumerate(chances)]
    rows = [(a, base, PROMPT, comparison(a.id, p)) for a, p in zip(answers, chances, strict=True)]
    (row,) = contests.win_rates(rows)
    assert (row.values["n"], row.values["failed"], row.values["ties"]) == (4, 1, 1)
    assert row.values["win_rate"] == 0.5
    assert row.values["chance"] == pytest.approx((0.9 + 0.5 + 0.2) / 3)
    assert row.values["length_controlled"] < row.values["chance"]  # it won by being longer


def test_references_of_a_file_are_found_by_their_question():
    rows = [
        contests.file_reference({"question": q, "reference": r})
        for q, r in (("1 + 1?", "2"), ("2 + 2?", "4"))
    ]
    (found,) = contests.found_reference(PROMPT, rows)
    assert found.values == {"text": "4"} and found.source_id == PROMPT.id
    with pytest.raises(UserError, match="0 references"):
        contests.found_reference(PROMPT, rows[:1])
    with pytest.raises(UserError, match="question and reference"):
        contests.file_reference({"text": "4"})


@pytest.mark.parametrize("variant", ("llama3_8b", "qwen2_7b", "cpu", "tiny"))
def test_every_variant_is_whole(variant):
    config = load_config(f"{CONFIGS / 'refeval.py'}:{variant}")
    check_config(config)
    assert config.model.startswith("hf:") == (variant not in ("cpu", "tiny"))
    with pytest.raises(UserError, match="use llama3_8b, qwen2_7b, cpu or tiny"):
        load_config(f"{CONFIGS / 'refeval.py'}:8b")


def test_a_teacher_of_references_has_to_be_named(method):
    run = method("no teacher")
    with pytest.raises(UserError, match=r"roles\.teacher\.model is not given"):
        run("references.by=teacher", dry_run=True)
    run("references.by=teacher", "roles.teacher.model=random:tiny?seed=0", dry_run=True)
