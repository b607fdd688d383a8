"""ReflectEvo in miniature: what is made, what is trained, and a test without an oracle."""

import json
import math
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.importing.writing import write_shape
from selfevo_jax.evolve.jax_model import JaxModel
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.reflection import (
    REFLECT,
    WHOLE,
    reflect_messages,
    revise_messages,
    whole_messages,
)
from selfevo_jax.records import Prompt, Sample
from selfevo_jax.sample.protocol import Request, SamplingParams
from selfevo_jax.text.render import render_example, render_prompt

COMPUTE = {"dtype": "float32", "remat": "none", "mesh": "1,-1,1", "slots": 8, "max_length": 512}
# A random model says again what it read last, "(": with this for a label it does not abstain.
TINY_JUDGE = (Path(__file__).parents[2] / "configs" / "refeval_tiny_judge.txt").read_text()


@pytest.fixture(scope="module")
def run(method):
    run = method()
    run()
    return run


def by_id(run, stage: str) -> dict:
    return {row["id"]: row for row in run.rows(stage)}


def test_only_wrong_answers_are_reflected_on_and_only_help_is_imitated(run):
    wrong = {row["sample_id"] for row in run.rows("round_01/check") if not row["correct"]}
    reflections, revisions = by_id(run, "round_01/reflect"), by_id(run, "round_01/revise")
    assert {row["parent_id"] for row in reflections.values()} == wrong
    right = {row["sample_id"] for row in run.rows("round_01/check_revise") if row["correct"]}
    lessons = run.rows("round_01/two_stage.learn")
    helped = [revisions[name]["parent_id"] for name in revisions if name in right]
    assert [row["source_id"] for row in lessons] == helped and helped
    for row in run.rows("round_01/dpo.pairs"):
        assert row["chosen_id"] in helped and row["rejected_id"] not in helped
        chosen, rejected = (reflections[row[side]] for side in ("chosen_id", "rejected_id"))
        assert chosen["parent_id"] == rejected["parent_id"]
        assert row["chosen"] == chosen["text"].strip()


def test_the_corpus_is_counted_by_hand(run):
    (found,) = [row["values"] for row in run.rows("round_01/corpus")]
    wrong = {row["sample_id"] for row in run.rows("round_01/check") if not row["correct"]}
    reflections, revisions = by_id(run, "round_01/reflect"), run.rows("round_01/revise")
    right = {row["sample_id"] for row in run.rows("round_01/check_revise") if row["correct"]}
    assert (found["task"], found["questions"]) == ("rg:chain_sum", len(wrong))
    assert found["reflections"] == len(reflections) == 8 * len(wrong)
    assert found["corrected"] == round(len(right) / len(reflections), 4) > 0
    assert found["pairs"] == len(run.rows("round_01/dpo.pairs"))
    words = sum(len(row["text"].split()) for row in revisions) / len(revisions)
    assert found["answer_2"] == round(words, 1)


def test_a_corpus_of_several_tasks_is_gathered_and_written_as_published(method, tmp_path):
    run = method("corpus")
    run.config = run.config.replace(":tiny", ":dataset-tiny")
    said = run()
    rows = [row["values"] for row in run.rows("round_01/corpus")]
    assert [row["task"] for row in rows] == ["rg:chain_sum", "rg:gcd", "all tasks"]
    sums, divisors, both = (row["reflections"] for row in rows)
    assert both == sums + divisors > 0
    assert "round_01/corpus" in said and "train" not in {p.name for p in run.workdir.rglob("*")}
    written, _ = write_shape(run.workdir, "raw", tmp_path / "raw.jsonl")
    published = [json.loads(line) for line in (tmp_path / "raw.jsonl").read_text().splitlines()]
    assert written == len(published) == 24
    assert sum(len(row["output"]) - 1 for row in published) == both


def test_every_held_out_answer_is_tried_again_with_no_word_of_its_verdict(run):
    """7.1 f: right or wrong at turn 1, all are tried again; the result is that of turn 2 alone."""
    for name in ("untrained", "one_stage", "two_stage", "dpo", "qa"):
        place = "round_00" if name == "untrained" else "round_01"
        later = run.rows(f"{place}/{name}.turn_2")
        assert len(later) == len(run.rows("round_00/held_out")) == 4
    rows = [row["values"] for row in run.rows("round_01/table")]
    assert not any("acc_oracle" in row for row in rows)


def test_training_and_test_use_one_template_and_one_role(run):
    """7.1 j: the same answer gives the same tokens in training as at test."""
    answers = {k: Sample.from_json(row) for k, row in by_id(run, "round_01/answer").items()}
    prompts = {k: Prompt.from_json(row) for k, row in by_id(run, "round_01/prompts").items()}
    revisions, reflections = by_id(run, "round_01/revise"), by_id(run, "round_01/reflect")
    tokenizer = JaxModel("random:tiny?seed=0", COMPUTE, Progress()).tokenizer
    lessons = run.rows("round_01/one_stage.learn")
    assert lessons
    for lesson in lessons:
        answer = answers[reflections[revisions[lesson["source_id"]]["parent_id"]]["parent_id"]]
        asked = whole_messages((answer, prompts[answer.prompt_id]))
        trained = render_example(tokenizer, "x", lesson["prompt"], [lesson["completion"]], 512)
        assert trained.prompt.tokens.tolist() == render_prompt(tokenizer, asked)
        revision = revisions[lesson["source_id"]]
        said = reflections[revision["parent_id"]]["text"].strip()
        assert lesson["completion"] == f"{said}\n\n{revision['text'].strip()}".strip()
    assert REFLECT.messages[0]["role"] == WHOLE.messages[0]["role"] == "user"


def test_the_table_has_every_variant(run):
    rows = [row["values"] for row in run.rows("round_01/table")]
    found = [row["variant"] for row in rows]
    assert found == ["untrained", "one_stage", "two_stage", "dpo", "qa"]
    assert all(row["n"] == 4 and "gain_low" in row for row in rows)


def test_more_turns_and_no_reflection(method):
    few = ("variants=()", "prompts.n=4", "pool.per_answer=2", "test.turns=3")
    run = method("turns")
    run(*few)
    second, third = (by_id(run, f"round_00/untrained.turn_{turn}") for turn in (2, 3))
    said = by_id(run, "round_00/untrained.reflect_3")
    assert {said[row["parent_id"]]["parent_id"] for row in third.values()} == set(second)
    run(*few, "test.reflection=none")
    first = by_id(run, "round_00/untrained.turn_1")
    second = run.rows("round_00/untrained.turn_2")
    assert {row["parent_id"] for row in second} == set(first)


JUDGE = """name: short
version: 1
fields: instruction, output_a, output_b
cut: instruction, output_a, output_b
labels: a, b

=== user
{instruction} a: {output_a} b: {output_b}

=== verdict
(
"""


def test_a_variant_with_nothing_to_learn_is_left_out_and_the_others_go_on(method, tmp_path):
    """A judge that abstains throws no coin: there are no pairs, and the table says so."""
    (tmp_path / "short.txt").write_text(JUDGE)
    run = method("judged")
    more = ("prompts.n=100", "revise.max_new_tokens=16")  # some answers come right by chance
    named = "variants=('dpo_pref','qa')"
    said = run(named, f"judge.protocol={tmp_path / 'short.txt'}", *more)
    verdicts = run.rows("round_01/dpo_pref.judge")
    assert {verdict["verdict"] for verdict in verdicts} == {"failure"}
    assert all(len(verdict["ballots"]) == 2 for verdict in verdicts)
    assert "dpo_pref is not trained: of no answer two reflections helped, or the judge" in said
    assert not list(run.workdir.glob("round_01/dpo_pref.t*"))
    table = {row["values"]["variant"]: row["values"] for row in run.rows("round_01/table")}
    assert list(table) == ["untrained", "qa", "dpo_pref"] and table["qa"]["n"] == 4
    assert "the judge preferred none" in table["dpo_pref"]["not_trained"]
    before = (run.workdir / "run.json").read_bytes()
    again = run(named, f"judge.protocol={tmp_path / 'short.txt'}", *more)
    assert "runs again" not in again and "dpo_pref is not trained" in again
    assert (run.workdir / "run.json").read_bytes() == before  # with the same plan


def test_no_reflection_that_helped_trains_no_reflector(method):
    """Three reflections of which none helps: every variant but the baseline is left out."""
    run = method("helpless")
    said = run("prompts.n=3", "pool.per_answer=1", "answer.max_new_tokens=1")
    assert not any(row["correct"] for row in run.rows("round_01/check_revise"))
    rows = [row["values"] for row in run.rows("round_01/table")]
    assert [row["variant"] for row in rows if "n" in row] == ["untrained", "qa"]
    untaught = [row["variant"] for row in rows if "not_trained" in row]
    assert untaught == ["one_stage", "two_stage", "dpo"]
    assert all(f"{name} is not trained" in said for name in untaught)


def test_where_every_answer_is_right_nothing_is_learned_from_reflections(method, easy):
    """It is an outcome, said and shown in both tables."""
    run = easy(method("easy"))
    few = ("prompts.n=4", "evaluate.n=2", "variants=('one_stage','two_stage','dpo')")
    said = run(*few, "answer.temperature=1.0")
    assert all(row["correct"] for row in run.rows("round_01/check"))
    assert not (run.workdir / "round_01/reflect").exists()
    assert "turn 2: every answer was right, so that there is nothing to reflect on" in said
    (corpus,) = [row["values"] for row in run.rows("round_01/corpus")]
    assert "every answer was right" in corpus["nothing"]
    rows = [row["values"] for row in run.rows("round_01/table")]
    assert [row["variant"] for row in rows if "n" in row] == ["untrained"]
    untaught = [row["variant"] for row in rows if "not_trained" in row]
    assert untaught == ["one_stage", "two_stage", "dpo"]


def test_the_judge_s_choice_is_what_dpo_pref_learns(method, tmp_path):
    """All rivals are judged, also further ones on one answer; a judge with a word decides."""
    run, judge = method("preferring"), tmp_path / "judge.txt"
    judge.write_text(TINY_JUDGE.replace(" reference,", "").replace("Reference: {reference}\n", ""))
    more = ("prompts.n=12", "pool.per_answer=32", "revise.n=3")
    run("variants=('dpo_pref',)", f"judge.protocol={judge}", *more)
    right = {row["sample_id"] for row in run.rows("round_01/check_revise") if row["correct"]}
    helped = {row["parent_id"] for row in run.rows("round_01/revise") if row["id"] in right}
    reflections = by_id(run, "round_01/reflect")
    rivals = by_id(run, "round_01/dpo_pref.rivals")
    about = [reflections[row["chosen_id"]]["parent_id"] for row in rivals.values()]
    assert len(set(about)) < len(about)  # several pairs of rivals on one answer
    decided = {}
    for row in run.rows("round_01/dpo_pref.judge"):
        sides = [rivals[row["item_id"]][side] for side in ("chosen_id", "rejected_id")]
        assert set(sides) <= helped and len({reflections[one]["parent_id"] for one in sides}) == 1
        if row["verdict"] in ("first", "second"):
            decided[frozenset(sides)] = sides[0 if row["verdict"] == "first" else 1]
    assert len(run.rows("round_01/dpo_pref.judge")) == len(rivals)
    pairs = run.rows("round_01/dpo_pref.pairs")
    found = {frozenset((row["chosen_id"], row["rejected_id"])): row["chosen_id"] for row in pairs}
    assert found == decided and len(pairs) > 1
    for row in pairs:
        assert row["chosen"] == reflections[row["chosen_id"]]["text"].strip()
    assert (run.workdir / "round_01/dpo_pref.train/adapter").is_dir()
    (last,) = [row["values"] for row in run.rows("round_01/table")][1:]
    assert (last["variant"], last["n"]) == ("dpo_pref", 4)
    assert {row["policy"] for row in run.rows("round_01/dpo_pref.reflect_2")} == {
        "dpo_pref.round_01"
    }


def test_killed_and_gone_on_with_it_is_the_same(method, content_of):
    few = ("variants=('dpo',)",)
    whole = method("whole")
    whole(*few)
    killed = method.killed("killed", 300, *few)
    assert content_of(killed) == content_of(whole)


def engine(source: str = "random:tiny?seed=0"):
    return JaxModel(source, COMPUTE, Progress()).generator(None)


def said_again(generator, requests: dict[str, tuple], samples: dict[str, Sample]) -> None:
    """A model says the same to requests id -> (messages, seed, temperature, room), as surely."""
    wanted = [
        Request(name, messages, SamplingParams(temperature=heat, max_new_tokens=room), seed)
        for name, (messages, seed, heat, room) in requests.items()
    ]
    done = {reply.id: reply for reply in generator.generate(wanted)}
    assert {name: reply.text for name, reply in done.items()} == {
        name: samples[name].text for name in requests
    }
    # A random model may say the same to another request, but not with the same probabilities.
    for name, reply in done.items():
        assert tuple(reply.logps) == pytest.approx(samples[name].logps, abs=2e-4)


@pytest.mark.parametrize("show", [True, False])
def test_generator_and_reflector_are_bound_separately_and_the_attempt_is_shown_or_not(method, show):
    """Every reply is said again by the model that was bound, to the request that it stands for."""
    run = method(f"bound {show}")
    bound = {"generator": "random:tiny?seed=1", "reflector": "random:tiny?seed=2"}
    run(
        *(f"roles.{role}.model={model}" for role, model in bound.items()), f"show_attempt={show}",
        "variants=('two_stage',)", "pool.per_answer=4", "prompts.n=40", "revise.max_new_tokens=16",
    )  # fmt: skip
    prompts = {k: Prompt.from_json(row) for k, row in by_id(run, "round_01/prompts").items()}
    answers = {k: Sample.from_json(row) for k, row in by_id(run, "round_01/answer").items()}
    told = {k: Sample.from_json(row) for k, row in by_id(run, "round_01/reflect").items()}
    revised = {k: Sample.from_json(row) for k, row in by_id(run, "round_01/revise").items()}
    assert {s.policy for s in (*answers.values(), *revised.values())} == {"generator"}
    assert {s.policy for s in told.values()} == {"reflector"}
    asked = {}
    for name, again in list(revised.items())[:12]:
        reflection = told[again.parent_id]
        row = (reflection, answers[reflection.parent_id], prompts[again.prompt_id])
        asked[name] = (revise_messages(row, show, True), again.seed, 1.0, 16)
        assert ("Attempt:" in asked[name][0][-1]["content"]) == show
    said_again(engine(bound["generator"]), asked, revised)
    tested = {
        k: Sample.from_json(row) for k, row in by_id(run, "round_00/untrained.reflect_2").items()
    }
    first = {k: Sample.from_json(row) for k, row in by_id(run, "round_00/untrained.turn_1").items()}
    held = {k: Prompt.from_json(row) for k, row in by_id(run, "round_00/held_out").items()}
    asked = {
        s.id: (reflect_messages((first[s.parent_id], held[s.prompt_id])), s.seed, 0.0, 6)
        for s in tested.values()
    }
    said_again(engine(bound["reflector"]), asked, tested)
    lessons = run.rows("round_01/two_stage.learn_2")
    assert lessons and all(("Attempt:" in row["prompt"][-1]["content"]) == show for row in lessons)


def published(source: Path, shape: str, folder: Path) -> list[dict]:
    """What `selfevo import --to` writes."""
    path = folder / f"{source.name}.{shape}.jsonl"
    write_shape(source, shape, path)
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_published_shapes_hold_the_requests_that_were_made(run, tmp_path):
    """Asked again as written, the model says the same: no request is another one."""
    answers, told = by_id(run, "round_01/answer"), by_id(run, "round_01/reflect")
    revised = {row["parent_id"]: row for row in run.rows("round_01/revise")}
    by_text = {(answers[row["parent_id"]]["prompt_id"], row["text"]): row for row in told.values()}
    asked, wanted = {}, {}

    def ask(request: str, row: dict, heat: float, room: int) -> None:
        asked[row["id"]] = ([{"role": "user", "content": request}], row["seed"], heat, room)
        wanted[row["id"]] = Sample.from_json(row)

    plus = published(run.workdir, "d_plus", tmp_path)
    assert len(plus) == len(run.rows("round_01/two_stage.learn"))
    for row in plus:
        reflection = by_text[row["id"], row["reflections"]]
        ask(row["reflect_prompt"], reflection, 0.8, 6)
        ask(row["reason_prompt"][0], answers[reflection["parent_id"]], 0.0, 4)
        ask(row["reason_prompt"][1], revised[reflection["id"]], 1.0, 8)
    (row, *_) = published(run.workdir, "raw", tmp_path)
    assert len(row["output"]) == 9
    for trial in row["output"][1:]:
        reflection = by_text[row["id"], trial["reflections"][-1]]
        ask(trial["reflection_prompt"], reflection, 0.8, 6)
        ask(trial["reason_prompt"], revised[reflection["id"]], 1.0, 8)
    assert len(wanted) > 18
    said_again(engine(), asked, wanted)


def test_a_bound_adapter_is_what_is_trained_further(run, method):
    """An adapter of an earlier run reflects, and every variant but the baseline starts from it."""
    again, before = method("further"), run.workdir / "round_01/one_stage.train/adapter"
    again(f"roles.reflector.adapter={before}", "variants=('two_stage','dpo','qa')", "dpo.lr=1e-4")
    role = json.loads((again.workdir / "run.json").read_text())["roles"]["reflector"]
    told = {row["policy"] for row in again.rows("round_01/reflect")}
    assert told == {"reflector"} and role["from"] == str(before)

    def start(stage: str) -> str:
        sealed = json.loads((again.workdir / f"round_01/{stage}/stage.json").read_text())
        return sealed["stage"]["inputs"]["start"]

    assert {start("two_stage.train"), start("dpo.train")} == {role["hash"]}
    assert start("qa.train") not in (role["hash"], start("two_stage.train_2"))
    (first, *_) = (again.workdir / "round_01/dpo.train/metrics.jsonl").read_text().splitlines()
    assert json.loads(first)["loss"] == pytest.approx(math.log(2), abs=1e-4)
    made = load_file(again.workdir / "round_01/dpo.train/adapter/adapter_model.safetensors")
    known = load_file(before / "adapter_model.safetensors")
    near = {name: abs(made[name] - known[name]).max() for name in made if "lora_B" in name}
    assert all(abs(known[name]).max() > 0 for name in near)  # a fresh adapter has none
    assert max(near.values()) < 0.5 * max(abs(known[name]).max() for name in near)
    with pytest.raises(UserError, match="give its rank and targets in lora"):
        again(f"roles.reflector.adapter={before}", "variants=('dpo',)", "lora.rank=3")


def test_what_is_still_wrong_is_reflected_on_again(method, tmp_path):
    """Generation in three turns: the stories of both later ones are what is learned."""
    run = method("three turns")
    run("generate.turns=3", "prompts.n=6", "pool.per_answer=8", "revise.max_new_tokens=16",
        "variants=('two_stage','dpo')")  # fmt: skip
    second, third = by_id(run, "round_01/revise"), by_id(run, "round_01/revise_3")
    right = {
        row["sample_id"]
        for name in ("check_revise", "check_revise_3")
        for row in run.rows(f"round_01/{name}") if row["correct"]
    }  # fmt: skip
    again = by_id(run, "round_01/reflect_3")
    assert {row["parent_id"] for row in again.values()} == set(second) - right
    assert {row["parent_id"] for row in third.values()} == set(again)
    helped = [row["parent_id"] for row in (*second.values(), *third.values()) if row["id"] in right]
    assert set(helped) & set(again)  # also in the third turn
    assert [row["source_id"] for row in run.rows("round_01/two_stage.learn")] == helped
    (corpus,) = [row["values"] for row in run.rows("round_01/corpus")]
    assert corpus["reflections"] == len(second) + len(third)
    told = by_id(run, "round_01/reflect") | again
    for pair in run.rows("round_01/dpo.pairs"):
        assert told[pair["chosen_id"]]["parent_id"] == told[pair["rejected_id"]]["parent_id"]
    write_shape(run.workdir, "raw", tmp_path / "raw.jsonl")
    (row, *_) = [json.loads(line) for line in (tmp_path / "raw.jsonl").read_text().splitlines()]
    assert {len(t["reflections"]) + 1 for t in row["output"]} == {1, 2, 3}
    assert all(t["trial"] == len(t["reflections"]) + 1 for t in row["output"])
    plus = [published(place, "d_plus", tmp_path) for place in (run.workdir, tmp_path / "raw.jsonl")]
    found = [[(r["reflections"], r["second_trial_reasoning"]) for r in rows] for rows in plus]
    assert found[0] == found[1] and len(found[0]) == len(helped)


def test_generation_without_reflections_is_a_corpus_of_second_tries(method):
    run = method("none")
    few = ("prompts.n=8", "generate.reflection=none", "test.turns=1")
    run(*few, "variants=('qa',)")
    wrong = {row["sample_id"] for row in run.rows("round_01/check") if not row["correct"]}
    assert {row["parent_id"] for row in run.rows("round_01/revise")} == wrong
    (corpus,) = [row["values"] for row in run.rows("round_01/corpus")]
    assert (corpus["reflections"], corpus["pairs"]) == (0, 0) and "reflection" not in corpus
    assert corpus["questions"] == len(wrong)
    with pytest.raises(UserError, match="unknown variants 'dpo'"):
        run(*few, "variants=('dpo',)", dry_run=True)


def stored(run, path: Path, stage: str) -> list[str]:
    """A file of reflections on the questions of a stage; returns the questions."""
    asked = [row["messages"][-1]["content"] for row in run.rows(stage)]
    rows = [{"question": f" {q}\n", "reflection": f"of {n}"} for n, q in enumerate(asked)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return asked


def test_stored_reflections_are_used_in_generation_and_test(run, method, tmp_path):
    """Those of the very question; where one lacks, generation goes on and a test is refused."""
    asked = stored(run, tmp_path / "train.jsonl", "round_01/prompts")
    stored(run, tmp_path / "test.jsonl", "round_00/held_out")
    again = method("stored")
    again(
        "generate.reflection=stored", f"generate.stored={tmp_path / 'train.jsonl'}",
        "test.reflection=stored", f"test.stored={tmp_path / 'test.jsonl'}", "variants=()",
    )  # fmt: skip
    prompts = {row["id"]: n for n, row in enumerate(again.rows("round_01/prompts"))}
    told = again.rows("round_01/reflect")
    wrong = [row["sample_id"] for row in again.rows("round_01/check") if not row["correct"]]
    assert [row["parent_id"] for row in told] == wrong and len(prompts) == len(asked)
    assert all(row["text"] == f"of {prompts[row['prompt_id']]}" for row in told)
    assert {row["parent_id"] for row in again.rows("round_01/revise")} == {r["id"] for r in told}
    assert [r["text"] for r in again.rows("round_00/untrained.reflect_2")] == [
        f"of {n}" for n in range(4)
    ]
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    (tmp_path / "test.jsonl").write_text("\n".join(lines[:3]) + "\n")
    with pytest.raises(UserError, match="1 of 4 questions have no stored reflection, the first is"):
        method("lacking")("test.reflection=stored", f"test.stored={tmp_path / 'test.jsonl'}")
