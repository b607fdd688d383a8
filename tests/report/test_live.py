"""The page of a running run: served to this machine alone, and made again when files change."""

import contextlib
import http.client
import json
import shutil
from pathlib import Path

import pytest

from selfevo_jax import cli
from selfevo_jax.evolve.journal import Entry, Journal
from selfevo_jax.report import live
from selfevo_jax.report.live import LiveServer, version_of
from selfevo_jax.report.now import progress


@pytest.fixture
def workdir(run_folder, tmp_path):
    """The run as it was before its second round."""
    copy = shutil.copytree(run_folder, tmp_path / "run")
    shutil.move(copy / "round_02", tmp_path / "round_02")
    return copy


@pytest.fixture
def server(workdir, serving):
    with serving(workdir) as server:
        yield server


def get(server, path="/", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_page_follows_the_files(server, workdir, tmp_path):
    before = get(server)[1]
    assert get(server)[1] == before
    version = get(server, "/version")[1]
    assert f'"version":"{version}"' in before and "connect-src 'self'" in before
    shutil.move(tmp_path / "round_02", workdir / "round_02")
    assert get(server, "/version")[1] != version
    assert get(server)[1] != before


def test_only_this_machine_and_two_paths(server, workdir):
    assert server.server_address[0] == "127.0.0.1"
    assert get(server, host=f"localhost:{server.server_port}")[0] == 200
    assert get(server, host=f"evil.example:{server.server_port}")[0] == 403
    for path in ("/config.json", "/../run.json", "/%2e%2e/", "//etc/passwd", "/version?x"):
        assert get(server, path)[0] == 404


def test_a_run_that_has_nothing_yet_is_waited_for(server, workdir):
    shutil.rmtree(workdir)
    workdir.mkdir()
    status, page = get(server)
    assert status == 200 and "holds no run" in page and '"version":"' in page


def test_a_line_that_is_being_written_is_not_damage(server, workdir):
    with (workdir / "round_01/train/metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 60, "lo')
    assert "Accuracy" in get(server)[1]
    version = version_of(workdir)
    with (workdir / "round_01/evaluate/records.jsonl").open("a") as records:
        records.write('{"id": "<b>')
    assert version_of(workdir) != version
    page = get(server)[1]
    assert "is damaged" in page and "<b>" not in page


HEAD = '{"key":"0","crc":"0"}\n'


def entry(records):
    """A journal's line of an input that gave so many records."""
    return json.dumps({"n": 0, "id": "a", "out": [{}] * records, "crc": "0"}) + "\n"


def test_a_real_journal_is_counted(tmp_path):
    with contextlib.closing(Journal(tmp_path / "round_00/a/records.part.jsonl", "k")) as journal:
        for n in range(3):
            journal.append(Entry(n, str(n), [{"id": str(n)}]))
        plan = [{"stage": "round_00/a", "amount": "3 answers"}]
        assert progress(tmp_path, {"plan": plan, "finished": False})["lines"] == 3


def test_a_stage_that_is_set_aside_while_it_is_read_stops_nothing(server, workdir, monkeypatch):
    """Between the look whether a file is there and its opening, a run may move its folder."""
    real, moved = live.build_page, []

    def racing(*args, **kwargs):
        if not moved:
            moved.append(shutil.move(workdir / "round_01/train", workdir / "superseded"))
            (workdir / "round_01/train/metrics.jsonl").open()
        return real(*args, **kwargs)

    monkeypatch.setattr(live, "build_page", racing)
    status, page = get(server)
    assert status == 200 and "making a stage anew" in page
    assert f'"version":"{get(server, "/version")[1]}"' not in page  # so that it looks again
    assert "Accuracy" in get(server)[1]


def test_a_folder_that_goes_while_it_is_listed_stops_nothing(server, monkeypatch):
    def gone(self, pattern):
        raise FileNotFoundError(2, "No such file or directory", "round_01/train")

    monkeypatch.setattr(Path, "glob", gone)
    assert get(server, "/version")[0] == 200


def test_how_far_a_run_is(tmp_path):
    plan = [{"stage": f"round_00/{name}", "amount": "9 answers"} for name in "abc"]
    run = {"plan": plan, "finished": False}
    (tmp_path / "round_00/a").mkdir(parents=True)
    (tmp_path / "round_00/a/stage.json").write_text("{}")
    (tmp_path / "round_00/b").mkdir()
    journal = tmp_path / "round_00/b/records.part.jsonl"
    journal.write_text(HEAD + entry(1) * 4 + entry(1)[:9])
    found = progress(tmp_path, run)
    assert found == {
        "done": 1, "planned": 3, "stage": "round_00/b", "amount": "9 answers", "lines": 4,
    }  # fmt: skip
    journal.with_name("records-1.part.jsonl").write_text(HEAD + entry(1) * 2)
    assert progress(tmp_path, run)["lines"] == 6  # of two hosts
    journal.write_text(HEAD + entry(4) * 2)  # four replies each
    assert progress(tmp_path, run)["lines"] == 2 * 4 + 2
    journal.write_text(HEAD + entry(0) * 5)  # votes on what was made before: inputs count
    assert progress(tmp_path, run)["lines"] == 7
    (tmp_path / "round_00/b/metrics.jsonl").write_text('{"step": 0}\n' * 3)
    assert progress(tmp_path, run)["lines"] == 3
    assert progress(tmp_path, run | {"finished": True}) is None
    assert progress(tmp_path, {}) is None


def test_the_command_says_where_it_serves(workdir, monkeypatch, capsys):
    monkeypatch.setattr(LiveServer, "serve_forever", lambda self: None)
    assert cli.main(["report", str(workdir), "--live"]) == 0
    assert "http://127.0.0.1:" in capsys.readouterr().out
    with LiveServer(workdir) as taken:
        assert cli.main(["report", str(workdir), "--live", f"--port={taken.server_port}"]) == 2
    assert "give another" in capsys.readouterr().err
    assert cli.main(["report", str(workdir / "none"), "--live"]) == 2


def test_the_page_says_how_far_it_is(server, workdir):
    run = json.loads((workdir / "run.json").read_text())
    run |= {"finished": False, "plan": [{"stage": "round_02/sample", "amount": "240 replies"}]}
    (workdir / "run.json").write_text(json.dumps(run))
    assert '"now":{"done":0,"planned":1,"stage":"round_02/sample"' in get(server)[1]
