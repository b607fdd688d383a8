"""Owners, states and pieces in a bucket of a server that we did not write."""

import os

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.remote import bucket as module
from selfevo_jax.remote.bucket import Bucket, Lost, State


def quiet(_):
    pass


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(module, "SILENT_SECONDS", 1.0)


def saved(bucket, owner, folder, *, left=False):
    """Saves the files of a folder as the state of `owner`."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    pieces = {str(p.relative_to(folder)): bucket.put(p, p.stat().st_size) for p in paths}
    bucket.save(State(owner, pieces, left))
    return bucket.newest()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files of no, one and several pieces."""
    monkeypatch.setattr(module, "PIECE_BYTES", 1000)
    (tmp_path / "work" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "work" / "empty").write_bytes(b"")
    (tmp_path / "work" / "small").write_bytes(b"\0\xff\n" * 33)
    (tmp_path / "work" / "deep" / "er" / "large").write_bytes(os.urandom(3500))
    (tmp_path / "work" / "exact").write_bytes(os.urandom(2000))
    return tmp_path / "work"


def test_what_was_saved_is_fetched(url, folder, tmp_path, files):
    bucket = Bucket(url)
    assert bucket.newest() is None
    owner, base = bucket.claim(quiet)
    assert (owner, base) == (1, None)
    saved(bucket, owner, folder)
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "small").write_bytes(b"what was here before")
    (copy / "stranger").write_bytes(b"x")
    Bucket(url).fetch(Bucket(url).newest(), copy)
    assert files(copy) == files(folder)


def test_only_what_changed_is_sent_and_what_is_not_needed_goes(url, folder):
    bucket = Bucket(url)
    owner, _ = bucket.claim(quiet)
    first = saved(bucket, owner, folder)
    with open(folder / "deep" / "er" / "large", "ab") as file:
        file.write(b"more")
    sent = []
    write = bucket._fs.pipe_file
    bucket._fs.pipe_file = lambda path, *a, **k: (sent.append(path), write(path, *a, **k))
    second = saved(bucket, owner, folder)
    assert sum("/pieces/" in path for path in sent) == 1  # the last piece of the file that grew
    there = {path.rpartition("/")[2] for path in bucket._paths("pieces")}
    assert there == second.pieces != first.pieces


def test_a_second_run_is_refused_while_the_first_lives(url, folder, impatient, another_process):
    first = Bucket(url)
    owner, _ = first.claim(quiet)
    about = module.here() | {"process": another_process, "since": "now"}
    first._write("owners", owner, about)
    said = []

    def say(text):
        said.append(text)
        saved(first, owner, folder)  # it lives

    with pytest.raises(UserError, match=f"in use by another run .process {another_process} on"):
        Bucket(url).claim(say)
    assert len(said) == 1 and "waiting" in said[0]


def test_a_run_that_fell_silent_is_taken_over_and_finds_out(
    url, folder, impatient, another_process
):
    first, said = Bucket(url), []
    owner, _ = first.claim(quiet)
    first._write("owners", owner, {"host": "gone", "process": 1, "since": "then"})
    state = saved(first, owner, folder)
    second = Bucket(url)
    assert second.claim(said.append) == (2, state)
    assert "another run (process 1 on gone)" in said[0]
    (folder / "small").write_bytes(b"late")
    with pytest.raises(Lost, match="was taken over by process"):
        saved(first, owner, folder)
    assert second.newest() == State(2, state.files, False)  # the late one changed nothing
    for name in state.files:
        (folder / name).unlink()
    second.fetch(second.newest(), folder)  # every piece is still there


@pytest.mark.parametrize("how", ["left", "killed here"])
def test_a_run_that_is_over_is_followed_at_once(url, folder, how, another_process):
    first = Bucket(url)
    owner, _ = first.claim(quiet)
    if how == "killed here":
        about = module.here() | {"process": 2**22 + 1, "since": "then"}
        first._write("owners", owner, about)
    saved(first, owner, folder, left=how == "left")
    said = []
    assert Bucket(url).claim(said.append)[0] == 2
    assert said == []


def test_of_two_that_claim_at_once_one_gets_it(url):
    one, other = Bucket(url), Bucket(url)
    assert one._made("owners", 1, {"host": "a", "process": 1})
    assert not other._made("owners", 1, {"host": "b", "process": 1})
    assert one._read("owners", 1)["host"] == "a"


def test_pieces_that_a_killed_run_left_are_removed(url, folder):
    first = Bucket(url)
    owner, _ = first.claim(quiet)
    state = saved(first, owner, folder, left=True)
    first.put(__file__, 900)
    assert len(first._paths("pieces")) > len(state.pieces)
    second = Bucket(url)
    owner, base = second.claim(quiet)
    second.save(State(owner, base.files, False))
    assert {path.rpartition("/")[2] for path in second._paths("pieces")} == state.pieces


@pytest.mark.parametrize("content", [b"\n", b"a\r", b"a\r\n\r", b"\r\n--==0==\n", b"\0\n\n"])
def test_bytes_come_back_as_they_were(url, tmp_path, content):
    """Whatever they end in: the emulator behind the tests once took line ends away."""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "file").write_bytes(content)
    bucket = Bucket(url)
    state = saved(bucket, bucket.claim(quiet)[0], folder)
    bucket.fetch(state, tmp_path / "copy")
    assert (tmp_path / "copy" / "file").read_bytes() == content


@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_a_damaged_piece_is_named(url, folder, tmp_path, how):
    bucket = Bucket(url)
    owner, _ = bucket.claim(quiet)
    state = saved(bucket, owner, folder)
    piece = bucket._path(f"pieces/{state.files['small'][0]}")
    if how == "flipped":
        content = bytearray(bucket._fs.cat_file(piece))
        content[7] ^= 1
        bucket._fs.pipe_file(piece, bytes(content))
    else:
        bucket._fs.rm_file(piece)
    with pytest.raises(UserError, match="small is missing or corrupt"):
        bucket.fetch(state, tmp_path / "copy")


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", "a/../../outside", ""])
def test_no_file_is_written_outside(url, tmp_path, name):
    bucket = Bucket(url)
    bucket._write("saved", 1, {"left": True, "files": {name: []}})
    with pytest.raises(UserError, match="outside the workdir"):
        bucket.newest()


def test_a_process_of_another_container_is_not_known_to_be_dead(url, impatient):
    """Its host name may be the same, its number means nothing here."""
    first, said = Bucket(url), []
    owner, _ = first.claim(quiet)
    first._write("owners", owner, module.here() | {"process": 2**22 + 1, "processes": "pid:[7]"})
    assert Bucket(url).claim(said.append)[0] == 2
    assert "waiting" in said[0]
