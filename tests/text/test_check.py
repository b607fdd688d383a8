"""`check` finds what is wrong, and datasets of other libraries read like files."""

import json

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.text.check import check, report
from selfevo_jax.text.datasets import detected, read_examples

PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}


def written(folder, rows):
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_sound_file(tmp_path):
    rows = [PAIR, {**PAIR, "prompt": "3+3?", "chosen": "six"}]
    found = check(written(tmp_path, rows))
    assert found.sound and found.rows == 2 and found.kinds == {2: 2}
    assert found.lengths == {"prompt": [4, 4], "chosen": [1, 3], "rejected": [1, 1]}
    assert report("x", found).endswith("all sound")


def test_every_fault_is_counted_with_its_lines(tmp_path):
    rows = [
        {**PAIR, "id": "a"},
        {**PAIR, "id": "a", "rejected": "6"},
        {**PAIR, "chosen": "5"},
        {**PAIR, "chosen": " "},
        {"prompt": "only"},
        {**PAIR, "chosen": "4" * 50},
        {**PAIR, "id": "b"},
        {**PAIR, "chosen": 4},
    ]
    found = check(written(tmp_path, rows), max_length=40)
    faults = {fault: places for fault, places in found.faults.items()}
    assert faults.pop("an id that came before") == ["2"]
    assert faults.pop("equal chosen and rejected") == ["3"]
    assert faults.pop("an empty completion") == ["4"]
    assert faults.pop("a prompt-only row in a file of preference rows") == ["5"]
    assert faults.pop("more than 40 in prompt and completion") == ["6"]
    assert list(faults.values()) == [["8"]] and "'chosen'" in next(iter(faults))
    assert found.notes["rows whose content came before"] == 1
    assert found.notes["rows whose prompt came before"] == 5
    text = report("x", found)
    assert "WRONG: equal chosen and rejected (1: lines 3)" in text and "not sound" in text


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"instruction": "Add.", "input": "2 + 2", "output": "4"}, "alpaca"),
        ({"conversations": [{"from": "human", "value": "2 + 2?"},
                            {"from": "gpt", "value": "4"}]}, "sharegpt"),
        (PAIR, "preference"),
    ],
)  # fmt: skip
def test_what_the_rows_were_taken_for_is_said(tmp_path, row, name):
    path = written(tmp_path, [row])
    found = check(path)
    assert found.format == name == detected(path)
    assert f"1 rows in the format {name}: 1 " in report("x", found)


def test_a_line_that_is_not_json_ends_the_reading(tmp_path):
    path = written(tmp_path, [PAIR])
    path.write_text(path.read_text() + "{\n")
    with pytest.raises(UserError, match="jsonl:2: not JSON"):
        check(path)


def test_hugging_face_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([PAIR, {**PAIR, "rejected": "7"}]).to_parquet(
        tmp_path / "train.parquet"
    )
    rows = list(read_examples(f"hf:{tmp_path}"))
    assert [row["completions"] for row in rows] == [["4", "5"], ["4", "7"]]
    with pytest.raises(UserError, match="cannot be read"):
        list(read_examples(f"hf:{tmp_path}:nosuchsplit"))


def test_tfds(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets", reason="extra tfds")

    class Pairs(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {name: tfds.features.Text() for name in PAIR}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield "0", PAIR

    Pairs(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    (row,) = read_examples(f"tfds:{tmp_path}/pairs/1.0.0")
    assert row["completions"] == ["4", "5"]
    with pytest.raises(UserError, match="cannot be read"):
        list(read_examples(f"tfds:{tmp_path}/pairs/1.0.0:nosuchsplit"))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install selfevo_jax\[tfds\]"):
        list(read_examples("tfds:something"))
