"""ELITE in miniature, every stage real: what is learned, shown and evaluated."""

import json

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.backend import JaxModel
from selfevo_jax.evolve.elite import critique_messages
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.records import Prompt, Sample
from selfevo_jax.sample.engine import JaxGenerator
from selfevo_jax.sample.protocol import ScoreRequest

COMPUTE = {"dtype": "float32", "remat": "none", "mesh": "1,-1,1", "slots": 8, "max_length": 512}


@pytest.fixture(scope="module")
def seen():
    """Every request that engines were asked, and every adapter that they were made with."""
    asked, made = [], []
    generate, generator = JaxGenerator.generate, JaxModel.generator

    def watched(self, requests):
        return generate(self, (asked.append(request) or request for request in requests))

    def opened(self, folder):
        made.append(folder)
        return generator(self, folder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JaxGenerator, "generate", watched)
        patch.setattr(JaxModel, "generator", opened)
        yield asked, made


@pytest.fixture(scope="module")
def run(method, seen):
    """One whole run, with both baselines."""
    run = method()
    run.said = run()
    return run


def kept(run, stage: str, kind) -> dict:
    return {row["id"]: kind.from_json(row) for row in run.rows(stage)}


def test_the_lesson_is_the_voted_critique_of_that_answer(run):
    """7.1 b: each stage's output reaches the next by its declared fields."""
    prompts = kept(run, "round_01/prompts", Prompt)
    answers, critiques = (kept(run, f"round_01/{s}", Sample) for s in ("answer", "critique"))
    voted, lessons = run.rows("round_01/vote"), run.rows("round_01/learn")
    assert len(lessons) == len(voted) == len(answers) == 6 and len(critiques) == 30
    for row, lesson in zip(voted, lessons, strict=True):
        critique = critiques[row["id"]]
        answer = answers[critique.parent_id]
        assert lesson["completion"] == critique.text.strip()
        asked = critique_messages((answer, prompts[answer.prompt_id]))
        assert lesson["prompt"] == list(asked)
        assert answer.text.strip() in asked[-1]["content"]


def test_training_teaches_the_critique(run):
    """7.1 a: after training, the critiques (not the prompts) are likelier."""
    model = JaxModel("random:tiny?seed=0", COMPUTE, Progress())
    adapter = run.workdir / "round_01/train/adapter"
    lessons = run.rows("round_01/learn")

    def score(folder) -> float:
        requests = [ScoreRequest(x["id"], x["prompt"], x["completion"]) for x in lessons]
        return sum(sum(s.logps) for s in model.generator(folder).score(requests))

    assert score(adapter) > score(None) + 1.0
    for line in (run.workdir / "round_01/train/metrics.jsonl").read_text().splitlines():
        step = json.loads(line)
        assert step["loss_tokens"] < step["tokens"] / 4  # the prompts are longer than that


def test_examples_chosen_by_clustering_stand_in_the_next_prompts(run, seen):
    """7.1 c: in round 2, in the requests for answers and for critiques alike."""
    (example,) = [row["values"] for row in run.rows("round_01/next_examples")]
    shown = f"Task: {example['input']}\n\nAnswer: {example['output']}"
    texts = [request.messages[-1]["content"] for request in seen[0]]
    with_example = [text for text in texts if shown in text and example["reason"] in text]
    answers, critiques = run.rows("round_02/answer"), run.rows("round_02/critique")
    assert len(with_example) == len(answers) + len(critiques)
    lessons = run.rows("round_02/learn")
    assert not any(shown in lesson["prompt"][-1]["content"] for lesson in lessons)


def test_evaluation_uses_the_adapter_just_trained(run, seen):
    """7.1 d."""
    made = [None if path is None else str(path.relative_to(run.workdir)) for path in seen[1]]
    for number in (1, 2):
        trained = f"round_{number:02d}/train/adapter"
        assert trained in made
        stage = json.loads((run.workdir / f"round_{number:02d}/evaluate/stage.json").read_text())
        policies = json.loads((run.workdir / "run.json").read_text())["policies"]
        assert stage["stage"]["inputs"]["policy"] == policies[f"round_{number:02d}"]["hash"]
        assert {row["policy"] for row in run.rows(f"round_{number:02d}/evaluate")} == {
            f"round_{number:02d}"
        }


def test_baselines_and_rounds_stand_in_one_table(run):
    rows = [row["values"] for row in run.rows("round_02/table")]
    assert [row["policy"] for row in rows] == [
        "base", "round_01", "sft.round_01", "majority.round_01", "round_02", "sft.round_02",
        "majority.round_02",
    ]  # fmt: skip
    assert all(row["n"] == 4 for row in rows) and "gain" in rows[-1] and "gain" not in rows[0]
    assert "majority.round_02" in run.said.rpartition("table")[2]
    gold = {row["id"]: row["answer"] for row in run.rows("round_01/prompts")}
    for lesson in run.rows("round_01/sft.learn"):
        assert lesson["completion"] == gold[lesson["prompt_id"]]


def test_killed_and_gone_on_with_it_is_the_same(run, method, content_of):
    one = ("rounds=1", "baselines=()")
    whole = method("whole")
    whole(*one)
    killed = method.killed("killed", 20, *one)
    assert content_of(killed) == content_of(whole)


def test_ties_human_critiques_and_learning_the_answer(method, tmp_path):
    """The variants that the default run does not have."""
    people, shown = tmp_path / "people.jsonl", tmp_path / "examples.jsonl"
    first = method("variants")
    first("rounds=1", "baselines=()", "evaluate.n=2")
    question = first.rows("round_01/prompts")[0]["messages"][-1]["content"]
    people.write_text(json.dumps({"question": question, "feedback": "It is fine."}) + "\n")
    shown.write_text(json.dumps({"input": "1+1", "output": "2", "reason": "right"}) + "\n")
    first(
        "baselines=()", "evaluate.n=2", f"human.file={people}", "human.share=1.0",
        f"examples.file={shown}", "examples.from_critiques=false", "adapters=ties",
        "accept.questions=2", "accept.tolerance=1.0", "accept.lost=1.0",
    )  # fmt: skip
    mixed = first.rows("round_01/mix")
    assert [row["text"] for row in mixed if row["policy"] == "human"] == ["It is fine."]
    assert len(mixed) == 6
    assert (first.workdir / "round_02/merge/adapter/adapter_model.safetensors").exists()
    assert {row["policy"] for row in first.rows("round_02/evaluate")} == {"round_02.merge"}


def test_a_refused_adapter_is_not_merged(method):
    """With a tolerance below zero every round has to gain, and a random model gains nothing."""
    run = method("refused")
    run(
        "rounds=2", "prompts.n=2", "baselines=()", "evaluate.n=2", "adapters=ties",
        "accept.questions=2", "accept.tolerance=-1.0",
    )  # fmt: skip
    (decided,) = [row["values"] for row in run.rows("round_02/accept")]
    assert (decided["policy"], decided["accepted"]) == ("round_02", False)
    assert not (run.workdir / "round_02/merge").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("vote.contamination=0.6", "contamination=0.6: 0.6 must be from 0.0 to 0.5"),
        ("vote.contamination=-0.1", "contamination=-0.1: .* must be from 0.0 to 0.5"),
        ("examples.clusters=0", "clusters=0: 0 must be at least 1"),
    ],
)
def test_a_share_or_number_that_cannot_be_is_refused_before_any_work(method, override, message):
    with pytest.raises(UserError, match=message):
        method("wrong")(override, dry_run=True)


def test_a_wrong_choice_is_one_message(method):
    with pytest.raises(UserError, match="learn_to 'critic'.*critique"):
        method("wrong")("learn_to=critic")
