"""Published files to records: shapes as the systems' own repositories and READMEs show them."""

import json
from pathlib import Path

import pytest

from selfevo_jax import cli
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.importing.reading import KINDS, import_file


def write(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = rows if path.suffix == ".json" else "\n".join(json.dumps(row) for row in rows)
    path.write_text(json.dumps(lines, indent=1) if path.suffix == ".json" else lines)
    return path


@pytest.fixture
def read(tmp_path):
    """Imports rows (or the file at a path) and returns the records by kind."""

    def importing(form, rows, name="rows.jsonl", prompts=()):
        path = rows if isinstance(rows, Path) else write(tmp_path / "in" / name, rows)
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        report = import_file(form, path, out, prompts)
        found = {kind: [] for kind in KINDS}
        for file in out.iterdir():
            kind = KINDS[file.stem]
            lines = file.read_text().splitlines()
            found[file.stem] = [kind.from_json(json.loads(line)) for line in lines]
        assert {kind: len(rows) for kind, rows in found.items() if rows} == report.records
        return found

    return importing


def question(prompt):
    return prompt.messages[-1]["content"]


# ELITE ------------------------------------------------------------------------------------------

TASK = {
    "Definition": "Add the numbers.",
    "Emphasis & Caution": "-",
    "Examples": {
        "Positive Examples": [{"input": "1 1", "output": "2", "reason": "1 + 1 is 2."}],
        "Negative Examples": "-",
    },
    "Instances": [
        {"input": "2 3", "output": ["5", "five"], "answer_prediction": "6", "fb_pred": "Too much."},
        {"input": "4 4", "output": "8", "answer_prediction": "8", "fb_pred": "Right."},
    ],
    "Full clustering context": ["a", "b"],
}
CRITIQUED = {
    "task001_sum.json": TASK,
    "task002_sum.json": TASK | {"Instances": [TASK["Instances"][1] | {"input": "7 1"}]},
    "all_feedback_input_list": ["judge 2 3 -> 6", "judge 4 4 -> 8", "judge 7 1 -> 8"],
    "Feedback Label": ["Too much.", "Right.", "Right."],
    "all_task_feedback_gen_prompt_data": ["x", "y", "z"],
}


def test_elite_instances_answers_critiques_and_what_is_learned(read):
    found = read("elite", CRITIQUED, "feedback_dataset.json")
    assert [question(p) for p in found["prompts"]] == [
        "Add the numbers.\n\n2 3", "Add the numbers.\n\n4 4", "Add the numbers.\n\n7 1",
    ]  # fmt: skip
    assert [(p.task, p.answer) for p in found["prompts"]][::2] == [
        ("task001_sum", "5"), ("task002_sum", "8"),
    ]  # fmt: skip
    assert found["prompts"][0].meta == {"outputs": ["5", "five"]}
    answer, critique = found["samples"][:2]
    assert (answer.text, critique.text) == ("6", "Too much.")
    assert answer.parent_id == found["prompts"][0].id and critique.parent_id == answer.id
    lessons = [(e.prompt[0]["content"], e.completion) for e in found["examples"]]
    assert lessons == list(
        zip(CRITIQUED["all_feedback_input_list"], CRITIQUED["Feedback Label"], strict=True)
    )
    assert found["examples"][0].source_id == critique.id
    worked = [row.values for row in found["rows"] if "reason" in row.values]
    assert worked[0] == {
        "task": "task001_sum", "input": "1 1", "output": "2", "reason": "1 + 1 is 2.",
        "positive": True,
    }  # fmt: skip
    left = [row.values for row in found["rows"] if "reason" not in row.values]
    assert {"Full clustering context": ["a", "b"]} in left
    assert {"all_task_feedback_gen_prompt_data": ["x", "y", "z"]} in left


def test_elite_lists_that_are_not_aligned_are_refused(read):
    swapped = CRITIQUED | {"Feedback Label": ["Right.", "Too much.", "Right."]}
    with pytest.raises(UserError, match=r"feedback.json:1 Feedback Label\[1\]: not the 'fb_pred'"):
        read("elite", swapped, "feedback.json")
    short = CRITIQUED | {"Feedback Label": ["Too much."]}
    with pytest.raises(UserError, match="3 instances, 3 in .* and 1 in 'Feedback Label'"):
        read("elite", short, "feedback.json")


def test_elite_task_and_example_files(read):
    plain = {**TASK, "Instances": [{"input": "2 3", "output": "5", "id": 9}]}
    found = read("elite", plain, "task001_sum.json")
    assert found["samples"] == [] and found["prompts"][0].answer == "5"
    assert {"id": 9} in [row.values for row in found["rows"]]
    examples = {"task001_sum.json": [{"input": "2 3", "output": "6", "reason": "Too much."}]}
    (row,) = read("elite", examples, "prompt_examples.json")["rows"]
    assert row.values["task"] == "task001_sum" and row.values["reason"] == "Too much."


# METEOR -----------------------------------------------------------------------------------------

MARKS = [
    {"Answer": 1, "Accuracy": 9, "Completeness": 8, "Relevance": 10, "Coherence": 9,
     "Reliability": 9, "Justification": "The answer accurately explains overfitting..."},
    {"Answer": 2, "Accuracy": 7, "Completeness": 6, "Relevance": 8, "Coherence": 7,
     "Reliability": 7, "Justification": "The answer gives a basic definition..."},
]  # fmt: skip
EVALUATED = {
    "question": "Explain the concept of overfitting in machine learning.",
    "answers": {"meteor_trained_model": "When a model learns...", "baseline_model": "When a..."},
    "evaluation": MARKS,
}


@pytest.mark.parametrize("form", ["list", "text"])
def test_meteor_marks_of_the_published_example(read, form):
    said = EVALUATED if form == "list" else EVALUATED | {
        "evaluation": f"Here it is:\n```json\n{json.dumps(MARKS)}\n```"
    }  # fmt: skip
    found = read("meteor", [said])
    assert [s.policy for s in found["samples"]] == ["meteor_trained_model", "baseline_model"]
    assert [row.source_id for row in found["rows"]] == [s.id for s in found["samples"]]
    assert found["rows"][1].values["Completeness"] == 6


def test_meteor_distilled_answers_are_imitated_and_guidelines_kept(read):
    row = {"question_title": "PCA", "question_content": "What is it?", "guideline": "Define it.",
           "answer": "It is a projection."}  # fmt: skip
    found = read("meteor", [row, {**row, "score": 3}])
    guideline, answer = found["samples"]
    assert question(found["prompts"][0]) == "PCA\n\nWhat is it?"
    assert answer.parent_id == guideline.id and guideline.parent_id == found["prompts"][0].id
    assert [e.completion for e in found["examples"]] == ["It is a projection."]
    assert [row.values for row in found["rows"]] == [{"score": 3}]


@pytest.mark.parametrize(
    ("evaluation", "right"),
    [
        ("Correct", True),
        ("Evaluation:\n\nCorrect.\n\nThe revised answer accurately explains it.", True),
        ("This is not Correct.", False),
        ("The explanation is generally correct; however, there are some issues", False),
        ("Incorrect.", False),
    ],
)
def test_meteor_an_answer_is_learned_only_where_it_was_called_right(read, evaluation, right):
    """The published code searched the word anywhere, and kept answers never called right."""
    found = read("meteor", [{"question": "q", "answer": "a", "evaluation": evaluation}])
    assert [v.correct for v in found["verdicts"]] == [right]
    assert len(found["examples"]) == right
    assert found["samples"][1].text == evaluation


def test_meteor_guidelines_belong_to_the_questions_in_their_rows(read, tmp_path, capsys):
    """guidelines.jsonl has no question in a field; the request was decoded with the reply."""
    raw = [{"title": f"T {n}", "question_content": f"What is {n} (of a)?"} for n in range(3)]
    machine, vision = write(tmp_path / "ml.json", raw[:2]), write(tmp_path / "cv.json", raw[2:])
    said = ["Define it.", "T 1\nWhat is 1 (of a)?\nDefine 1.", "Look at T 2."]
    rows = [{"guideline": text} for text in said]
    found = read("meteor", rows, "guidelines.jsonl", [machine, vision])
    assert [question(p) for p in found["prompts"]] == [
        f"T {n}\n\nWhat is {n} (of a)?" for n in range(3)
    ]
    assert [s.text for s in found["samples"]] == ["Define it.", "Define 1.", "Look at T 2."]
    assert [s.parent_id for s in found["samples"]] == [p.id for p in found["prompts"]]
    distilled = [raw[1] | {"guideline": "Define 1.", "answer": "One."}]
    again = read("meteor", distilled)
    assert again["samples"][0].id == found["samples"][1].id  # one guideline in both files
    with pytest.raises(UserError, match="jsonl:1: a guideline names no question; give --prompts"):
        read("meteor", rows, "guidelines.jsonl")
    with pytest.raises(UserError, match="has 3 rows, .*ml.json 2: not aligned"):
        read("meteor", rows, "guidelines.jsonl", [machine])
    command = ["import", "--format=meteor", str(tmp_path / "in" / "guidelines.jsonl")]
    files = [f"--prompts={machine}", f"--prompts={vision}"]
    assert cli.main([*command, *files, f"--out={tmp_path / 'imported'}"]) == 0
    assert "3 rows of meteor (aligned with --prompts)" in capsys.readouterr().out


# RefEval ----------------------------------------------------------------------------------------


def turns(answer):
    return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]


PREFERENCE = {
    "prompt": "Hi", "chosen": turns("good"), "rejected": turns("bad"), "score_chosen": 0.8,
    "score_rejected": 0.2, "chosen_logprob": -3.5, "rejected_logprob": -2.5,
}  # fmt: skip


def test_refeval_preferences(read):
    found = read("refeval", [PREFERENCE])
    (pair,) = found["pairs"]
    assert (pair.chosen, pair.rejected) == ("good", "bad")
    assert pair.prompt == tuple(turns("good")[:1])
    assert found["rows"][0].source_id == pair.id
    assert found["rows"][0].values["score_chosen"] == 0.8
    with pytest.raises(UserError, match=r"rows.jsonl:1: chosen and rejected do not answer"):
        read("refeval", [PREFERENCE | {"prompt": "Ho"}])


def test_refeval_judged_pairs_are_joined_by_id(read):
    replies = [{"text": "Output (a)", "logprobs": [{"a": -0.1}], "tokens": ["a"], "winner": 0}] * 2
    row = {"prompt": "Hi", "predictions": replies, "pairs": [["x", "y"], ["y", "x"]]}
    found = read("refeval", [row])
    x, y = found["samples"]
    assert [s.text for s in (x, y)] == ["x", "y"]
    assert [(r.values["first"], r.values["second"]) for r in found["rows"]] == [
        (x.id, y.id), (y.id, x.id),
    ]  # fmt: skip
    with pytest.raises(UserError, match="2 pairs but 1 predictions"):
        read("refeval", [row | {"predictions": replies[:1]}])


def test_refeval_samples_are_aligned_with_their_prompts(read, tmp_path):
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "Hi"}, {"prompt": "Ho"}])
    reply = {"text": "x", "logprobs": [{"x": -1.0}], "tokens": ["x"]}
    failed = {"text": "dummy", "logprobs": [{"dummy": 0}], "tokens": ["dummy"]}
    found = read("refeval", [[reply, reply], [failed, reply]], "samples.jsonl", [prompts])
    assert [s.prompt_id for s in found["samples"]] == [
        found["prompts"][n].id for n in (0, 0, 1)
    ]  # fmt: skip
    assert [s.text for s in found["samples"]] == ["x"] * 3
    assert {"failed": 0} in [row.values for row in found["rows"]]
    texts = [{"text": "one"}, {"text": "two"}]
    found = read("refeval", texts, "references.jsonl", [prompts])
    assert [s.policy for s in found["samples"]] == ["reference"] * 2
    with pytest.raises(UserError, match="samples and references name no prompt; give --prompts"):
        read("refeval", texts, "references.jsonl")
    with pytest.raises(UserError, match="has 1 rows, .* 2: not aligned"):
        read("refeval", texts[:1], "references.jsonl", [prompts])


# Active selection -------------------------------------------------------------------------------


def test_active_what_was_acquired_and_how(read, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="the published sets are Parquet")
    import pyarrow

    folder = tmp_path / "acquired_dataset_min_margin_budget25000_iter2"
    folder.mkdir()
    table = pyarrow.table({"inputs": ["q1", "q2"], "targets": ["a1", "a2"]})
    parquet.write_table(table, folder / "data.parquet")
    found = read("active", folder / "data.parquet")
    assert [(e.prompt[0]["content"], e.completion) for e in found["examples"]] == [
        ("q1", "a1"), ("q2", "a2"),
    ]  # fmt: skip
    assert found["rows"][0].values == {
        "strategy": "min_margin", "budget": 25000, "iteration": 2,
    }  # fmt: skip


def test_active_options_are_shown_and_the_answer_is_a_letter(read):
    row = {"question": "2 + 2?", "subject": "maths", "choices": ["3", "4", "5", "6"], "answer": 1}
    (prompt,) = read("active", [row])["prompts"]
    assert question(prompt) == "2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6"
    assert prompt.answer == "B" and prompt.meta == {"subject": "maths"}


def test_active_outputs_of_the_baseline(read, tmp_path):
    text = "Q: not ( True ) is\nA: It is False.\nSo False.\n\nQ: True is\nA: True\n\n"
    (tmp_path / "boolean_expressions_m.txt").write_text(text)
    found = read("active", tmp_path / "boolean_expressions_m.txt")
    assert [s.text for s in found["samples"]] == ["It is False.\nSo False.", "True"]
    assert found["samples"][0].policy == "boolean_expressions_m"
    (tmp_path / "aqua_m.tsv").write_text("Prompt\tAnswer\tExplanation\nWhich?\t(A)\t\n")
    found = read("active", tmp_path / "aqua_m.tsv")
    assert [s.text for s in found["samples"]] == ["(A)"]
    (tmp_path / "odd_m.txt").write_text("Q: one\nno answer\n")
    with pytest.raises(UserError, match=r"odd_m.txt:1: no published row; .* lacks A"):
        read("active", tmp_path / "odd_m.txt")


# All formats ------------------------------------------------------------------------------------


def test_every_bad_row_is_named_and_nothing_is_written(tmp_path, capsys):
    good = {"question": "q", "answer": "a", "evaluation": "Correct"}
    rows = [good, {"question": "q"}, good | {"answer": 3}, good, {"odd": 1}]
    path = write(tmp_path / "rows.jsonl", rows)
    command = ["import", "--format=meteor", str(path), f"--out={tmp_path / 'out'}"]
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert f"{path}:2: no published row; for iterative it lacks answer, evaluation" in said
    assert f"2 more bad rows: {path}:3, {path}:5" in said
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]
    assert cli.main([*command[:2], str(tmp_path / "nowhere"), command[3]]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_rows_of_an_array_are_named_by_their_line(tmp_path):
    path = tmp_path / "ml.json"
    path.write_text('[\n {"title": "t",\n  "question_content": "c"},\n\n {"title": "u"}\n]')
    with pytest.raises(UserError, match=r"ml.json:5#2: no published row; for raw it lacks"):
        import_file("meteor", path, tmp_path / "out")


def test_the_command_counts_what_it_wrote(tmp_path, capsys):
    row = {"question": "q", "answer": "a", "evaluation": "Correct"}
    path = write(tmp_path / "rows.jsonl", [row, row])
    out = tmp_path / "out"
    command = ["import", "--format=meteor", str(path), f"--out={out}"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert f"{path}: 2 rows of meteor (iterative)" in said
    assert f"{out}/prompts.jsonl: 1, 1 repeated" in said
    assert cli.main(["data", "check", str(out / "examples.jsonl")]) == 0
    assert cli.main(command) == 2
    assert "exists already" in capsys.readouterr().err
