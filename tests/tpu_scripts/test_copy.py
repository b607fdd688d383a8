"""copy.sh: what it brings, takes away and leaves."""

import os


def test_copy_takes_away_what_was_deleted_and_keeps_the_environment(cloud) -> None:
    cloud.done("up.sh", cloud.job(["true"]))
    (cloud.checkout / "a file with spaces.txt").unlink()
    cloud.done("copy.sh")
    assert not (cloud.worker(0) / "selfevo/a file with spaces.txt").exists()
    assert (cloud.worker(0) / "selfevo/.venv/installed").exists()


def test_copy_keeps_what_it_did_not_bring(cloud) -> None:
    """It removed all of ~/selfevo but the environment: the runs with it."""
    brought = ["deep/er/module.py", "-dash", "line\nbreak", "constraints/old.txt"]
    for name in brought:
        (cloud.checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (cloud.checkout / name).write_text("first")
    (cloud.checkout / "link").symlink_to("nowhere")
    cloud.done("up.sh", cloud.job(["true"]))
    there = cloud.worker(0) / "selfevo"
    assert all((there / name).read_text() == "first" for name in brought)
    assert os.readlink(there / "link") == "nowhere"
    own = [
        "runs/quickstart/log.jsonl",
        "data/task.jsonl",
        "constraints/mine.txt",
        "a b/\n",
        ".hidden",
    ]
    for name in own:
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_text("mine")
    for name in (*brought[:3], "link"):
        (cloud.checkout / name).unlink()
    (cloud.checkout / brought[3]).write_text("second")
    for _ in range(2):  # the second time, the first one's list is what counts
        cloud.done("copy.sh")
        assert all((there / name).read_text() == "mine" for name in own)
        assert not any((there / name).exists() for name in ("deep", "-dash", "line\nbreak"))
        assert not (there / "link").is_symlink()
        assert (there / brought[3]).read_text() == "second"


def test_copy_never_takes_a_folder_away(cloud) -> None:
    cloud.done("up.sh", cloud.job(["true"]))
    mine = cloud.worker(0) / "selfevo/a file with spaces.txt/mine"
    mine.parent.unlink()
    mine.parent.mkdir()
    mine.write_text("mine")
    assert cloud.run("copy.sh").returncode == 1
    (cloud.checkout / "a file with spaces.txt").unlink()
    cloud.done("copy.sh")
    assert mine.read_text() == "mine"


def test_a_broken_copy_is_mended_by_the_next(cloud) -> None:
    cloud.done("up.sh", cloud.job(["true"]))
    (cloud.checkout / "b1").write_text("new")
    (cloud.checkout / "b2").write_text("new")
    blocked = cloud.worker(0) / "selfevo/b2/mine"
    blocked.parent.mkdir()
    blocked.touch()
    assert cloud.run("copy.sh").returncode == 1
    assert (cloud.worker(0) / "selfevo/b1").exists()
    for name in ("b1", "b2"):
        (cloud.checkout / name).unlink()
    cloud.done("copy.sh")
    assert not (cloud.worker(0) / "selfevo/b1").exists() and blocked.exists()
