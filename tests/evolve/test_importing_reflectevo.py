"""ReflectEvo's published shapes, read and written; rows as in the authors' examples, shortened."""

import json

import pytest

from selfevo_jax import cli
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.importing.reading import read_file
from selfevo_jax.records import Pair, Prompt, Row, Sample, Verdict

ASKED = {"question": "Which motivated it?\nA. one\nB. two", "answer": "a", "id": 2}


def trial(number, answer, right, told=(), spelling="scratchpad"):
    seen = "Answer is CORRECT" if right else "Answer is INCORRECT"
    text = f"\nThought: because. \nAction: Finish[{answer}]\nObservation: {seen}"
    return {
        "generated_answer": answer, "reflections": list(told), spelling: text,
        "is_correct": right, "trail": number, "reasoning_source": "N/A",
        "reflection_source": "N/A",
    }  # fmt: skip


FIRST, MENDED = trial(1, "B", False), trial(2, "A", True, ["It was too narrow."])
FAILED = trial(2, "B", False, ["All was fine."])
RAW = ASKED | {"output": [FIRST, MENDED, FAILED]}
D_PLUS = ASKED | {
    "first_trial_reasoning": "I think B.", "first_trial_answer": "B",
    "second_trial_reasoning": "I think A.", "second_trial_answer": "A",
    "reflections": "It was too narrow.", "reason_prompt": ["try", "try again"],
    "reflect_prompt": "look back",
}  # fmt: skip
COMPARED = ASKED | {
    "first_trial_reasoning": "I think B.", "first_trial_answer": "B",
    "second_trial_reasoning_chosen": "I think A.", "second_trial_answer_chosen": "A",
    "reflection_chosen": "It was too narrow.",
    "second_trial_reasoning_rejected": "Still B.", "second_trial_answer_rejected": "B",
    "reflection_rejected": "All was fine.",
    "reason_prompt": "try", "reflection_prompt": "look back",
}  # fmt: skip
PREFERRED = COMPARED | {
    "second_trial_reasoning_rejected": "A, I think.", "second_trial_answer_rejected": "a"
}  # fmt: skip


def file_of(tmp_path, *rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def records(path, kind):
    return [record for record in read_file("reflectevo", path) if isinstance(record, kind)]


def rewritten(tmp_path, source, shape, name="written.jsonl"):
    path = tmp_path / name
    path.unlink(missing_ok=True)
    command = ["import", "--format=reflectevo", str(source), f"--to={shape}", f"--out={path}"]
    assert cli.main(command) == 0
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_raw_trials_become_a_tree_without_the_oracle_s_words(tmp_path):
    path = file_of(tmp_path, RAW)
    answer, said, second, other, third = records(path, Sample)
    (prompt,) = records(path, Prompt)
    assert (prompt.answer, prompt.meta["id"]) == ("a", 2)
    assert answer.text == "\nThought: because. \nAction: Finish[B]"
    assert not any("CORRECT" in sample.text for sample in (answer, second, third))
    parents = {prompt.id: 1, answer.id: 2, said.id: 1, other.id: 1}
    found = [s.parent_id for s in (answer, said, second, other, third)]
    assert {name: found.count(name) for name in found} == parents
    verdicts = {v.sample_id: (v.correct, v.parsed) for v in records(path, Verdict)}
    assert verdicts == {
        answer.id: (False, "B"), second.id: (True, "A"), third.id: (False, "B"),
    }  # fmt: skip


def test_raw_rows_go_round(tmp_path):
    """What is written reads as the same records; its rows differ in the newer spelling alone."""
    told = MENDED | {"reflection_prompt": "look", "reason_prompt": "try again", "error": "none"}
    told = told | {"reflection_source": "gpt", "reflections": ["an earlier one", "narrow"]}
    unaided = trial(2, "A", True)
    tested = RAW | {
        "id": "x",
        "question": "Code?",
        "test_list": ["assert f(1) == 2"],
        "output": [FIRST, told, unaided],
    }
    path = file_of(tmp_path, RAW, tested, ASKED | {"answer": "b", "output": [FIRST]})
    rows = rewritten(tmp_path, path, "raw")
    again = file_of(tmp_path, *rows, name="again.jsonl")
    assert list(read_file("reflectevo", again)) == list(read_file("reflectevo", path))
    assert rows[0]["output"][1] == {
        "generated_answer": "A", "reflections": ["It was too narrow."],
        "reasoning": MENDED["scratchpad"], "is_correct": True, "trial": 2,
        "reasoning_source": "published", "reflection_source": "published",
    }  # fmt: skip
    assert rows[1]["output"][1]["reflections"] == ["an earlier one", "narrow"]
    assert rows[1]["output"][1]["reflection_prompt"] == "look"
    assert rows[1]["output"][2]["reflections"] == []
    assert (rows[1]["id"], rows[1]["test_list"]) == ("x", ["assert f(1) == 2"])


@pytest.mark.parametrize(
    ("row", "shape"), [(D_PLUS, "d_plus"), (COMPARED, "d_plus_minus"), (PREFERRED, "d_pref")]
)
def test_training_sets_go_round_to_the_field(tmp_path, row, shape):
    assert rewritten(tmp_path, file_of(tmp_path, row), shape) == [row]


@pytest.mark.parametrize(
    ("gold", "chosen", "rejected", "right"),
    [
        ("a", "A", " a", True), ("a", "A", "B", False), ("a", "A", "", False),
        ("\\frac{1}{2}", "0.5", "1/2", True), ("5", "5", "-5", False), ("x", "-x", "x ", True),
    ],
)  # fmt: skip
def test_a_preference_is_of_the_set_that_its_rejected_answer_says(
    tmp_path, capsys, gold, chosen, rejected, right
):
    """Dpref where the rejected reflection led to a right answer too, else D+-; never in both."""
    answers = {"second_trial_answer_chosen": chosen, "second_trial_answer_rejected": rejected}
    path = file_of(tmp_path, COMPARED | {"answer": gold} | answers)
    told = {s.id: s.parent_id for s in records(path, Sample)}
    (pair,) = records(path, Pair)
    marks = {told[v.sample_id]: v.correct for v in records(path, Verdict)}
    assert (marks[pair.chosen_id], marks[pair.rejected_id]) == (True, right)
    shapes = ["d_plus_minus", "d_pref"]
    (row,) = rewritten(tmp_path, path, shapes.pop(right))
    assert row["second_trial_answer_rejected"] == rejected
    out = f"--out={tmp_path / 'none.jsonl'}"
    assert cli.main(["import", "--format=reflectevo", str(path), f"--to={shapes[0]}", out]) == 2
    assert "{'pairs of the other set': 1}" in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["d_plus_minus", "d_pref"])
def test_code_that_differs_says_nothing_of_the_set(tmp_path, shape):
    """Other code may be right too: the set is the one that is asked for."""
    code = {"second_trial_answer_chosen": "def f():\n    return 1"}
    row = COMPARED | code | {"second_trial_answer_rejected": "def f():\n    return 2"}
    path = file_of(tmp_path, row)
    assert len(records(path, Verdict)) == 2
    assert rewritten(tmp_path, path, shape) == [row]


def test_trials_of_later_turns_go_round(tmp_path):
    """A third trial hangs below the reflection on the second; without reflections, below it."""
    third = trial(3, "A", True, ["All was fine.", "It was not."])
    unaided = [trial(2, "B", False), trial(3, "A", True)]
    rows = [RAW | {"output": [FIRST, FAILED, third]}, RAW | {"id": 3, "question": "Q?", "output": [
        FIRST, *unaided]}]  # fmt: skip
    path = file_of(tmp_path, *rows)
    first, said, second, again, last, *_ = records(path, Sample)
    parents = [sample.parent_id for sample in (said, second, again, last)]
    assert parents == [first.id, said.id, second.id, again.id]
    written = rewritten(tmp_path, path, "raw")
    assert [[t["trial"] for t in row["output"]] for row in written] == [[1, 2, 3], [1, 2, 3]]
    assert written[0]["output"][2]["reflections"] == ["All was fine.", "It was not."]
    again = file_of(tmp_path, *written, name="again.jsonl")
    assert list(read_file("reflectevo", again)) == list(read_file("reflectevo", path))
    (plus,) = rewritten(tmp_path, path, "d_plus", "plus.jsonl")
    assert (plus["first_trial_answer"], plus["reflections"]) == ("B", "It was not.")


def test_rows_of_one_question_share_its_records(tmp_path):
    other = D_PLUS | {"reflections": "Read again.", "second_trial_reasoning": "A, of course."}
    path = file_of(tmp_path, D_PLUS, other)
    assert rewritten(tmp_path, path, "d_plus") == [D_PLUS, other]
    (raw,) = rewritten(tmp_path, path, "raw")
    assert [len(t["reflections"]) for t in raw["output"]] == [0, 1, 1]


def test_a_preference_is_complete_for_training(tmp_path):
    (pair,) = records(file_of(tmp_path, COMPARED), Pair)
    assert (pair.chosen, pair.rejected) == ("It was too narrow.", "All was fine.")
    assert pair.prompt == ({"role": "user", "content": "look back"},)
    bare = {k: v for k, v in COMPARED.items() if k not in ("reflection_prompt", "reason_prompt")}
    (pair,) = records(file_of(tmp_path, bare), Pair)
    assert "I think B." in pair.prompt[-1]["content"]
    assert ASKED["question"] in pair.prompt[-1]["content"]


def test_raw_trials_are_sorted_into_the_training_sets(tmp_path, capsys):
    right = ASKED | {"id": 4, "question": "Easy?", "output": [trial(1, "A", True)]}
    path = file_of(tmp_path, RAW, right)
    (plus,) = rewritten(tmp_path, path, "d_plus")
    assert "not written: 1 reflections that did not mend an answer" in capsys.readouterr().out
    assert plus["reflections"] == "It was too narrow."
    assert (plus["first_trial_answer"], plus["second_trial_answer"]) == ("B", "A")
    (pair,) = rewritten(tmp_path, path, "d_plus_minus")
    assert (pair["reflection_chosen"], pair["reflection_rejected"]) == (
        "It was too narrow.", "All was fine.",
    )  # fmt: skip
    out = f"--out={tmp_path / 'none.jsonl'}"
    assert cli.main(["import", "--format=reflectevo", str(path), "--to=d_pref", out]) == 2
    assert "holds nothing for d_pref" in capsys.readouterr().err


def test_the_first_release_named_its_trials(tmp_path):
    row = ASKED | {"trail1": FIRST, "trail2_true": MENDED, "trail2_false": FAILED}
    (pair,) = records(file_of(tmp_path, row), Pair)
    assert (pair.chosen, pair.rejected) == ("It was too narrow.", "All was fine.")
    path = file_of(tmp_path, ASKED | {"trail1": FIRST, "trail2": MENDED})
    assert records(path, Pair) == [] and len(records(path, Sample)) == 3
    both = ASKED | {"trail1": FIRST, "trail2_true": MENDED, "trail2_false": MENDED | {
        "reflections": ["Also narrow."]}}  # fmt: skip
    (pref,) = rewritten(tmp_path, file_of(tmp_path, both), "d_pref")
    assert pref["reflection_rejected"] == "Also narrow."


def test_what_the_files_say_besides_is_kept(tmp_path):
    path = file_of(tmp_path, RAW | {"source": "logiqa", "output": [FIRST | {"error": "timeout"}]})
    values = [row.values for row in records(path, Row)]
    assert {"source": "logiqa"} in values
    assert {"observation": "Answer is INCORRECT", "error": "timeout"} in values


def test_a_run_is_written_in_the_published_shapes(tmp_path):
    """The stages of a run hold the same tree of records."""
    stages = {"prompts": Prompt, "answer": Sample, "check": Verdict, "reflect": Sample}
    found = list(read_file("reflectevo", file_of(tmp_path, RAW)))
    answer, reflection = [r for r in found if isinstance(r, Sample)][:2]
    named = {
        "prompts": [r for r in found if isinstance(r, Prompt)],
        "answer": [answer],
        "reflect": [r for r in found if isinstance(r, Sample) and r.parent_id == answer.id],
        "check": [r for r in found if isinstance(r, Verdict) and r.sample_id == answer.id],
        "check_revise": [r for r in found if isinstance(r, Verdict) and r.sample_id != answer.id],
    }
    named["revise"] = [
        r for r in found if isinstance(r, Sample) and r not in [answer, *named["reflect"]]
    ]
    for name, rows in named.items():
        folder = tmp_path / "run" / "round_01" / name
        folder.mkdir(parents=True)
        lines = [json.dumps(record.to_json()) for record in rows]
        (folder / "records.jsonl").write_text("\n".join(lines))
    assert stages.keys() <= named.keys() and reflection in named["reflect"]
    (row,) = rewritten(tmp_path, tmp_path / "run", "d_plus")
    assert row["reflections"] == "It was too narrow." and row["question"] == ASKED["question"]
    assert "Action: Finish[B]" in row["reflect_prompt"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "output": []}, "lacks answer"),
        (RAW | {"output": [FIRST | {"is_correct": "no"}]}, r"output\[1\]: the field 'is_correct'"),
        (RAW | {"output": [1]}, r"output\[1\]: a int where an object must be"),
        (ASKED | {"output": [{"is_correct": True}]}, "the field 'reasoning' is missing"),
    ],
)
def test_a_bad_row_says_where(tmp_path, row, message):
    with pytest.raises(UserError, match=r"rows.jsonl:2.*" + message):
        list(read_file("reflectevo", file_of(tmp_path, RAW, row)))


def test_only_reflectevo_is_written(tmp_path, capsys):
    path, out = file_of(tmp_path, RAW), f"--out={tmp_path / 'o'}"
    assert cli.main(["import", "--format=elite", str(path), "--to=raw", out]) == 2
    assert "--format=reflectevo only" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    source = str(tmp_path / "empty")
    assert cli.main(["import", "--format=reflectevo", source, "--to=raw", out]) == 2
    assert "holds no records of an import or of a run" in capsys.readouterr().err
