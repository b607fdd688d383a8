"""A folder that is saved in a bucket while others write in it."""

import itertools
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.remote import bucket
from selfevo_jax.remote import mirror as module
from selfevo_jax.remote.bucket import Bucket
from selfevo_jax.remote.mirror import MARK, Mirror, copy_of, fetch, workplace


def quiet(_):
    pass


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(module, "SAVE_SECONDS", 0.05)


def write_whole(path, text):
    part = path.with_name(path.name + ".tmp")
    part.write_text(text)
    os.replace(part, path)


def test_a_plain_folder_is_itself(tmp_path):
    with workplace(str(tmp_path), quiet) as folder:
        assert folder == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_another_machine_goes_on_with_what_was_saved(url, tmp_path, files, monkeypatch):
    with workplace(url, quiet) as folder:
        (folder / "round_00").mkdir()
        (folder / "round_00" / "records.jsonl").write_text("1\n")
        write_whole(folder / "run.json", "{}")
        kept = files(folder)
    monkeypatch.setenv("SELFEVO_CACHE", str(tmp_path / "another machine"))
    with workplace(url, quiet) as folder:
        assert folder.is_relative_to(tmp_path / "another machine")
        assert files(folder) == kept
        with open(folder / "round_00" / "records.jsonl", "a") as file:
            file.write("2\n")
    assert fetch(url, tmp_path / "copy")
    assert (tmp_path / "copy" / "round_00" / "records.jsonl").read_text() == "1\n2\n"


def test_on_the_same_machine_the_folder_is_ahead_of_the_bucket(url):
    """After a kill: what was written since the last save is still here, and nothing is fetched."""
    with workplace(url, quiet) as folder:
        write_whole(folder / "run.json", "{}")
    (folder / "since").write_text("not saved")
    with workplace(url, quiet) as again:
        assert again == folder and (again / "since").read_text() == "not saved"


def test_a_folder_that_another_machine_has_left_behind_is_not_used(url, tmp_path, monkeypatch):
    with workplace(url, quiet) as folder:
        write_whole(folder / "run.json", "1")
    (folder / "since").write_text("not saved, and done again elsewhere")
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("SELFEVO_CACHE", str(tmp_path / "another machine"))
        with workplace(url, quiet) as other:
            write_whole(other / "run.json", "2")
    with workplace(url, quiet) as again:
        assert again == folder and (again / "run.json").read_text() == "2"
        assert not (again / "since").exists()


def test_a_fetch_that_was_killed_is_begun_anew(url, tmp_path, monkeypatch):
    with workplace(url, quiet) as folder:
        for number in range(20):
            (folder / str(number)).write_text(str(number))
    monkeypatch.setenv("SELFEVO_CACHE", str(tmp_path / "another machine"))
    monkeypatch.setattr(bucket, "SILENT_SECONDS", 0.2)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(Bucket, "_fetch", killed)
        with workplace(url, quiet):
            pass
    with workplace(url, quiet) as folder:
        assert (folder / "19").read_text() == "19"
        assert json.loads((folder / MARK).read_text()) == 3


def test_a_saved_state_is_one_moment(url, tmp_path, often):
    """A writer appends to a journal, says how much there is in a document that it replaces, ends
    the journal as a whole file, and begins the next: no copy has a document that promises more
    than there is."""
    bad, copies = [], 0
    stop = threading.Event()

    def work(folder):
        for stage in itertools.count():
            journal = folder / f"{stage % 7}.jsonl"
            for count in range(1, 30):
                if stop.is_set():
                    return
                with open(journal, "a") as file:
                    file.write("line\n")
                write_whole(folder / f"{stage % 7}.json", str(count))
                time.sleep(0.002)
            write_whole(folder / f"{stage % 7}.whole", journal.read_text())
            (folder / f"{stage % 7}.json").unlink()
            journal.unlink()
            write_whole(folder / f"{stage % 7}.seal", str(stage))
            shutil.rmtree(folder / "old", ignore_errors=True)
            (folder / "old").mkdir()
            (folder / "old" / str(stage)).write_text("x")
            for kind in ("whole", "seal"):
                (folder / f"{(stage + 3) % 7}.{kind}").unlink(missing_ok=True)

    with workplace(url, quiet) as folder:
        writer = threading.Thread(target=work, args=(folder,))
        writer.start()
        while copies < 30:
            assert fetch(url, tmp_path / "copy")
            copies += 1
            for document in (tmp_path / "copy").glob("*.json"):
                journal = document.with_suffix(".jsonl")
                lines = journal.read_text().count("line\n") if journal.exists() else 0
                if lines < int(document.read_text()):
                    bad.append((document.name, lines, document.read_text()))
        stop.set()
        writer.join()
    assert bad == []


def test_a_bucket_that_is_away_for_a_while_costs_nothing(url, server, often, tmp_path, until):
    said = []
    with workplace(url, said.append) as folder:
        (folder / "a").write_text("a")
        server.stop()
        (folder / "b").write_text("b")
        try:
            until(lambda: any("nothing saved for" in text for text in said))
        finally:
            server.start()
    assert fetch(url, tmp_path / "copy")
    assert (tmp_path / "copy" / "b").read_text() == "b"


def test_an_end_that_cannot_be_saved_is_told_and_kept(url, server, monkeypatch):
    monkeypatch.setattr(bucket, "SILENT_SECONDS", 0.2)
    try:
        with pytest.raises(UserError, match="could not be saved.*start the same command"):
            with workplace(url, quiet) as folder:
                (folder / "a").write_text("a")
                server.stop()
        assert (folder / "a").read_text() == "a"
    finally:
        server.start()
    with workplace(url, quiet) as again:
        assert (again / "a").read_text() == "a"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_saving_is_not_a_success(url, often, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(Mirror, "save", broken)
    with pytest.raises(AssertionError, match="thread that saves has died"):
        with workplace(url, quiet):
            pass


def test_a_bucket_that_is_not_there_is_a_mistake(server):
    with pytest.raises(UserError, match="gs://nobody/x cannot be used"):
        with workplace("gs://nobody/x", quiet):
            pass


def test_an_unknown_scheme_is_a_mistake():
    with pytest.raises(UserError, match="cannot be opened"):
        with workplace("gopher://b/x", quiet):
            pass


def test_nothing_there_is_an_empty_copy(url):
    assert not fetch(url, Path("unused"))
    with copy_of(url, quiet) as folder:
        assert list(folder.iterdir()) == []
    assert not folder.exists()


def test_a_failed_save_keeps_what_was_put(url, tmp_path):
    """The same bytes are not sent twice because of a moment without a network."""
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a").write_text("a")
    kept = Bucket(url)
    owner, _ = kept.claim(quiet)
    mirror = Mirror(kept, tmp_path / "work", owner)
    sent, write = [], kept._fs.pipe_file

    def pipe(path, *args, **options):
        sent.append(path)
        if path.endswith(".json") and len(sent) < 3:
            raise OSError("no network")
        return write(path, *args, **options)

    kept._fs.pipe_file = pipe
    with pytest.raises(OSError, match="no network"):
        mirror.save()
    mirror.save()
    assert sum("/pieces/" in path for path in sent) == 1


def test_a_copy_never_takes_the_place_of_something_else(url, tmp_path):
    with workplace(url, quiet) as folder:
        (folder / "config.json").write_text("{}")
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text(name)
    with pytest.raises(UserError, match="no copy of"):
        fetch(url, model)
    assert (model / "model.safetensors").read_text() == "model.safetensors"
    assert fetch(url, tmp_path / "copy") and fetch(url, tmp_path / "copy")
