"""Which files count, and when a folder stood still."""

import os

from selfevo_jax.remote.listing import listing, still


def made(folder):
    (folder / "round_00").mkdir()
    (folder / "round_00" / "records.jsonl").write_text("one\n")
    (folder / "run.json").write_text("{}")
    return listing(folder)


def replaced(path, text):
    other = path.with_name("other.tmp")
    other.write_text(text)
    os.replace(other, path)


def test_what_is_not_whole_yet_is_passed_over(tmp_path):
    before = made(tmp_path)
    assert sorted(before) == ["round_00/records.jsonl", "run.json"]
    for name in (".lock", "run.json.tmp", "answers.sqlite-shm", ".run.json.x4f"):
        (tmp_path / name).write_text("x")
    unfinished = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp-12"
    unfinished.mkdir(parents=True)
    (unfinished / "array").write_text("x")
    (tmp_path / "link").symlink_to("run.json")
    assert listing(tmp_path) == before


def test_growing_is_standing_still_and_nothing_else_is(tmp_path):
    before = made(tmp_path)
    with open(tmp_path / "round_00" / "records.jsonl", "a") as file:
        file.write("two\n")
    grown = listing(tmp_path)
    assert still(before, grown) and before != grown
    with open(tmp_path / "run.json", "a") as file:  # its number may be used again by another
        file.write("more")
    assert not still(grown, listing(tmp_path))
    before = listing(tmp_path)
    replaced(tmp_path / "run.json", "{}")
    assert not still(before, listing(tmp_path))
    again = listing(tmp_path)
    (tmp_path / "round_00" / "records.jsonl").write_text("")
    assert not still(again, listing(tmp_path))
    again = listing(tmp_path)
    (tmp_path / "new").write_text("")
    assert not still(again, listing(tmp_path))
    again = listing(tmp_path)
    (tmp_path / "new").unlink()
    assert not still(again, listing(tmp_path))


def test_a_folder_that_goes_while_it_is_looked_at(tmp_path):
    assert listing(tmp_path / "gone") == {}
