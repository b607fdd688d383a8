"""Training on a file in miniature: every format's loss, sources that are the same, refusals."""

import json

import pytest

from selfevo_jax.errors import UserError

ASKED = [{"role": "user", "content": "What is 3 + 4?"}]
TALK = [
    {"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Good day."},
    {"role": "user", "content": "2 + 2?"},
]  # fmt: skip


@pytest.fixture
def fitted(method, tmp_path):
    """Runs on the rows of a file; gives the run and the metrics of its training."""

    def fit(rows, *overrides, source="{}"):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = method(tmp_path.name)
        run(f"data.source={source.format(file)}", *overrides)
        lines = (run.workdir / "round_01/train/metrics.jsonl").read_text().splitlines()
        return run, [json.loads(line) for line in lines]

    return fit


def pairs(n=12):
    return [
        {
            "id": f"p{i}",
            "prompt": f"What is {i} + 1?",
            "chosen": f"{i + 1}",
            "rejected": "Who asks?",
        }
        for i in range(n)
    ]


def weights(run):
    return (run.workdir / "round_01/train/adapter/adapter_model.safetensors").read_bytes()


def test_preferences_with_dpo(fitted):
    run, steps = fitted(pairs(), "learn.eval_share=0.25", "learn.epochs=4")
    assert steps[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert steps[-1]["margin"] > 0 and 0 < steps[-1]["eval_examples"] < 12
    assert [row["source_id"] for row in run.rows("round_01/data")] == [f"p{i}" for i in range(12)]
    assert len(run.rows("round_00/evaluate")) == len(run.rows("round_01/evaluate")) == 8


def test_labels_with_kto(fitted):
    rows = [
        {"prompt": f"What is {i} + 1?", "completion": f"{i}", "label": i % 3 == 0}
        for i in range(12)
    ]
    _, steps = fitted(rows, "objective.loss=kto", "learn.eval_share=0.0")
    assert steps[0]["loss"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("turns", "learned"), [("last", 1), ("all", 2)])
def test_conversations_with_sft(fitted, turns, learned):
    rows = [{"messages": [*TALK, {"role": "assistant", "content": f"{i}"}]} for i in range(8)]
    run, steps = fitted(
        rows, "objective.loss=sft", f"data.turns={turns}", "learn.eval_share=0.0",
        "learn.batch_size=8",
    )  # fmt: skip
    only = len([1 for row in run.rows("round_01/data") if row["completions"]])
    assert only == (8 if turns == "last" else 0)
    whole, last = (len(text.encode()) + 1 for text in ("Good day.", "0"))
    assert steps[0]["loss_tokens"] == 8 * (last if learned == 1 else whole + last)


def test_a_dataset_of_hugging_face_gives_what_its_file_gives(method, fitted, tmp_path):
    from_file, _ = fitted(pairs())
    folder = tmp_path / "dataset"
    folder.mkdir()
    (tmp_path / "rows.jsonl").rename(folder / "train.jsonl")
    other = method(f"{tmp_path.name}-hf")
    other(f"data.source=hf:{folder}:train")
    assert weights(other) == weights(from_file)


@pytest.mark.parametrize(
    ("rows", "overrides", "message"),
    [
        ([{"prompt": "Hello"}], (), "a prompt alone"),
        ([{"prompt": "Hello", "completion": "Hi"}], ("learn.eval_share=0.0",), "completion"),
        (pairs(), ("objective.loss=sft",), "record p0: it is a pair"),
        (pairs(), ("data.turns=first",), "did you mean|last, all|data.turns"),
        (pairs(2) + pairs(1), (), "is that of line 1 already"),
        (
            [{"prompt": "a", "chosen": "b", "rejected": "b"}],
            ("learn.eval_share=0.0",),
            "equal|same",
        ),
    ],
)
def test_what_cannot_be_learned_from_is_refused(fitted, rows, overrides, message):
    with pytest.raises(UserError, match=message):
        fitted(rows, *overrides)


def test_what_the_file_was_taken_for_is_said(method, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs()))
    said = method(tmp_path.name)(f"data.source={file}", dry_run=True)
    assert "rows in the format preference" in said.replace("\n", " ")


def test_a_file_must_be_given(method, tmp_path):
    with pytest.raises(UserError, match=r"config.data.source is not given: it must be FILE.jsonl"):
        method(tmp_path.name)("data.source=", f"model={tmp_path / 'not-opened'}")
