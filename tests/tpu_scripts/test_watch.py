"""watch.sh: jobs that fail or hang, users' mistakes, machines that are taken or cannot be made."""

import re
import subprocess
from pathlib import Path

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.files import locked

REPO = Path(__file__).resolve().parents[2]


def test_watch_makes_a_preempted_machine_anew(cloud) -> None:
    taken = f"echo SUSPENDED >'{cloud.state}/queue'; echo PREEMPTED >'{cloud.state}/machine'"
    job = cloud.counting_job(f"[ $n -gt 2 ] || {{ {taken}; sleep 8; }}")
    cloud.done("up.sh", job)
    cloud.done("watch.sh", job)
    steps = [step for step in cloud.steps() if step in ("create", "delete")]
    assert steps == ["create", "delete", "create", "delete", "create"]
    assert cloud.starts() == 3


def test_watch_starts_a_failed_job_again_on_the_same_machine(cloud) -> None:
    job = cloud.counting_job("[ $n -gt 2 ]")
    cloud.done("up.sh", job)
    cloud.done("watch.sh", job)
    assert "delete" not in cloud.steps()
    assert cloud.starts() == 3


def test_watch_gives_up(cloud) -> None:
    job = cloud.counting_job("exit 9")
    cloud.done("up.sh", job)
    result = cloud.run("watch.sh", job, MAX_RESTARTS="2")
    assert result.returncode == 1 and "started again 2 times" in result.stderr
    assert cloud.starts() == 3


def test_an_unanswered_question_is_no_preemption(cloud) -> None:
    job = cloud.job(["true"])
    cloud.done("up.sh", job)
    cloud.wait_for_end()
    cloud.fail("describe", 3)
    result = cloud.run("watch.sh", job)
    assert result.returncode == 0 and "no clear answer" in result.stderr
    assert "delete" not in cloud.steps()


def test_another_process_with_the_jobs_number_is_not_the_job(cloud) -> None:
    """After a reboot the number that was written down read as running, and was killed."""
    job = cloud.job(["sleep", "600"])
    cloud.done("up.sh", job)
    assert cloud.status() == ["trial running"] * 2
    cloud.end()  # what a reboot does: no status is left
    other = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        (cloud.worker(0) / ".selfevo/trial.pid").write_text(f"{other.pid}\n")
        assert cloud.status() == ["trial lost"] * 2
        result = cloud.run("watch.sh", cloud.job(["true"]))
        assert result.returncode == 0 and "start 1 of 20" in result.stderr
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


# Worker 0 needs a lock, as a job needs the chips; at its first start it does FIRST. Worker 1 fails
# once, when worker 0 is ready.
HELD = """
    n=$(cat ~/n 2>/dev/null || echo 0); echo $((n + 1)) >~/n
    if [ "${HOME##*/}" = 1 ]; then
        [ $n = 0 ] || exit 0
        while [ ! -e "$0/ready" ]; do sleep 0.05; done; exit 3
    fi
    if [ $n = 0 ]; then FIRST; fi
    flock -n "$0/chips" true || exit 9
"""
HOLD = 'trap "" TERM; touch "$1/ready"; while :; do sleep 0.1; done'


@pytest.mark.parametrize(
    "first",
    ['flock -n "$0/chips" HOLD', 'setsid flock -n "$0/chips" HOLD & exit 3'],
    ids=["ignores TERM", "left behind in a session of its own"],
)
def test_watch_ends_a_process_that_does_not_want_to(cloud, first: str) -> None:
    """It was told to end, forgotten at once, and kept the chips from every later start."""
    (cloud.state / "hold.sh").write_text(HOLD)
    script = HELD.replace("FIRST", first).replace("HOLD", 'bash "$0/hold.sh" "$0"')
    job = cloud.job(["bash", "-c", script, str(cloud.state)])
    cloud.done("up.sh", job)
    result = cloud.run("watch.sh", job, MAX_RESTARTS="2")
    assert result.returncode == 0, result.stderr
    assert "start 1 of 2" in result.stderr and "start 2" not in result.stderr
    assert cloud.processes() == []


def test_a_job_that_is_stopped_has_time_to_save(cloud) -> None:
    saves = """trap 'sleep 1.5; touch "$0/saved"; exit 143' TERM
        touch "$0/ready"; while :; do sleep 0.1; done"""
    job = cloud.job(["bash", "-c", HELD.replace("FIRST", saves), str(cloud.state)])
    cloud.done("up.sh", job)
    cloud.done("watch.sh", job, STOP_SECONDS="20")
    assert (cloud.state / "saved").exists()


@pytest.mark.parametrize("states", ["FAILED", "DELETING\nDELETING\nABSENT"])
def test_watch_outlives_a_machine_that_cannot_be_made(cloud, states: str) -> None:
    taken = f"echo SUSPENDED >'{cloud.state}/queue'"
    job = cloud.counting_job(f"[ $n -gt 1 ] || {{ {taken}; sleep 8; }}")
    (cloud.state / "created").write_text(f"ACTIVE\n\n{states}\n\nACTIVE")
    cloud.done("up.sh", job)
    result = cloud.run("watch.sh", job)
    assert result.returncode == 0, result.stderr
    assert "start 1 failed; looking again" in result.stderr
    assert cloud.starts() == 2


def test_watch_gives_up_on_a_machine_that_cannot_be_made(cloud) -> None:
    cloud.done("create.sh")
    (cloud.state / "queue").write_text("SUSPENDED")
    (cloud.state / "created").write_text("FAILED")
    result = cloud.run("watch.sh", cloud.job(["true"]), MAX_RESTARTS="2", RETRY_SECONDS="1")
    assert result.returncode == 1 and "started again 2 times" in result.stderr
    assert re.findall(r"looking again in (\d) s", result.stderr) == ["1", "2"]


def test_watch_asks_nobody(cloud) -> None:
    cloud.done("create.sh")
    (cloud.state / "queue").write_text("SUSPENDED")
    assert cloud.on_a_terminal("no", "watch.sh", cloud.job(["true"])) == 0
    assert cloud.steps()[:3] == ["create", "delete", "create"]


def test_watch_sets_up_what_a_broken_attempt_left(cloud) -> None:
    """A machine that has never had the job has nothing that could be launched."""
    cloud.done("create.sh")
    result = cloud.run("watch.sh", cloud.job(["true"]))
    assert result.returncode == 0 and "trial is absent from a worker" in result.stderr
    assert "delete" not in cloud.steps()


def test_a_failed_job_finds_its_worker_set_up(cloud) -> None:
    """A worker that was started again has lost its mount."""
    job = cloud.counting_job("[ $n -gt 1 ]")
    cloud.done("up.sh", job)
    cloud.done("watch.sh", job)
    assert sum("constraints/install.sh" in call[-1] for call in cloud.calls()) == 2


@pytest.mark.parametrize("queue", ["WAITING_FOR_RESOURCES", "DELETING"])
def test_watch_waits_for_a_request_that_is_on_its_way(cloud, queue: str) -> None:
    job = cloud.job(["true"])
    cloud.done("up.sh", job)
    cloud.wait_for_end()
    (cloud.state / "queue").write_text(f"{queue}\n{queue}\nACTIVE")
    (cloud.state / "machine").write_text("ABSENT\nABSENT\nREADY")
    cloud.done("watch.sh", job)
    assert cloud.steps().count("create") == 1 and "delete" not in cloud.steps()


def test_a_users_mistake_ends_the_watch_with_its_message(cloud) -> None:
    said = "error: unknown setting --config.lr; did you mean --config.learn.lr?"
    waits = "case $HOME in */1) sleep 600 ;; esac"
    job = cloud.job(["bash", "-c", f"{waits}; echo x >>~/count; echo '{said}'; exit 2"])
    cloud.done("up.sh", job)
    result = cloud.run("watch.sh", job)
    assert result.returncode == 2 and said in result.stdout + result.stderr
    assert "a new start does not mend" in result.stderr
    assert (cloud.worker(0) / "count").read_text() == "x\n"
    assert cloud.processes() == [] and "delete" not in cloud.steps()


def test_a_mistake_on_this_side_ends_the_watch(cloud) -> None:
    secrets, calls = cloud.state / "secrets", cloud.state / "calls.jsonl"
    secrets.touch(0o600)
    watched = f"until grep -q 'trial end[e]d' '{calls}'; do sleep 0.1; done"
    taken = f"rm '{secrets}'; echo SUSPENDED >'{cloud.state}/queue'; sleep 8"
    job = cloud.counting_job(f"{watched}; {taken}")
    cloud.done("up.sh", job)
    result = cloud.run("watch.sh", job, SECRETS_FILE=str(secrets))
    assert result.returncode == 2 and "there is no such file" in result.stderr
    assert result.stderr.count("of 20") == 1


def lock_of_a_dead_machine(folder: Path) -> str:
    with locked(folder), pytest.raises(UserError) as caught, locked(folder):
        pass
    return f"error: {caught.value}"


def test_a_lock_that_a_dead_machine_left_is_no_mistake(cloud, tmp_path: Path) -> None:
    """Shared storage keeps a lock for a while after the machine that held it is gone."""
    said = lock_of_a_dead_machine(tmp_path / "workdir")
    job = cloud.counting_job(f"[ $n -gt 1 ] || {{ echo '{said}'; exit 2; }}")
    cloud.done("up.sh", job)
    result = cloud.run("watch.sh", job)
    assert result.returncode == 0 and "trial failed on a worker" in result.stderr


def test_what_passes_is_what_the_package_says() -> None:
    (passing,) = re.findall("^PASSING='(.*)'$", (REPO / "tpu_scripts/watch.sh").read_text(), re.M)
    said = "".join(path.read_text() for path in (REPO / "selfevo_jax").rglob("*.py"))
    assert all(words in said for words in passing.split("|"))
