"""The TPU scripts against a fake `gcloud` that really runs what is sent to a worker."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from selfevo_jax.cli.run import PREFIX
from selfevo_jax.config import load_config

REPO = Path(__file__).resolve().parents[2]
FAKE = Path(__file__).parent / "fake_cloud.py"
AWKWARD = ["two words", "it's", "$HOME", "a\nb", '"quoted"', "*", "back\\slash", ""]
SHELL_FILES = [
    *sorted(REPO.glob("tpu_scripts/**/*.sh")),
    *sorted(REPO.glob("constraints/*.sh")),
    REPO / ".ci/run",
]


class Cloud:
    """One fake cloud, one small checkout whose path has a space in it, and a way to run scripts."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "cloud"
        self.checkout = folder / "check out"
        self._make_programs(folder / "bin")
        self._make_checkout()
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "FAKE_CLOUD": str(self.state),
            "TPU_NAME": "pod",
            "TPU_PROJECT": "science",
            "TPU_ZONE": "zone-a",
            "RETRY_SECONDS": "0",
            "POLL_SECONDS": "0.2",
            "WAIT_POLLS": "5",
        }

    def _make_programs(self, folder: Path) -> None:
        folder.mkdir()
        (self.state / "workers").mkdir(parents=True)
        (self.state / "created").write_text("ACTIVE")
        for name in ("gcloud", "sbatch"):
            program = folder / name
            program.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
            program.chmod(0o755)

    def _make_checkout(self) -> None:
        shutil.copytree(REPO / "tpu_scripts", self.checkout / "tpu_scripts")
        (self.checkout / "constraints").mkdir()
        for name, body in (
            ("find_python.sh", "echo python"),
            ("install.sh", 'mkdir -p "$1" && echo "$@" >"$1/installed"'),
        ):
            script = self.checkout / "constraints" / name
            script.write_text(f"#!/usr/bin/env bash\n{body}\n")
            script.chmod(0o755)
        (self.checkout / "a file with spaces.txt").write_text("kept whole")
        subprocess.run(["git", "init", "-q", str(self.checkout)], check=True)

    def run(self, script: str, *argv: str, **settings: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(self.checkout / "tpu_scripts" / script), *argv],
            env=self.environment | settings,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    def done(self, script: str, *argv: str, **settings: str) -> str:
        result = self.run(script, *argv, **settings)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def job(self, command: list[str]) -> str:
        """A job file that runs `command`, its arguments quoted by Python."""
        quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in command)
        path = self.checkout / "tpu_scripts/jobs/trial.sh"
        path.write_text(f"JOB=trial\nCOMMAND=({quoted})\n")
        return str(path)

    def calls(self) -> list[list[str]]:
        path = self.state / "calls.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def steps(self) -> list[str]:
        """The verbs that changed something, in order."""
        return [call[4] for call in self.calls() if call[4] not in ("describe",)]

    def fail(self, part: str, times: int) -> None:
        (self.state / "fail.json").write_text(json.dumps({part: times}))

    def worker(self, number: int) -> Path:
        return self.state / "workers" / str(number)

    def wait_for_end(self, job: str = "trial") -> None:
        deadline = time.monotonic() + 20
        while any(not (self.worker(n) / f".selfevo/{job}.rc").exists() for n in (0, 1)):
            assert time.monotonic() < deadline, "the job did not end"
            time.sleep(0.05)


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: str(path.relative_to(REPO)))
def test_shell_is_clean(path: Path) -> None:
    command = ["shellcheck", "-x", "-P", str(REPO / "tpu_scripts"), str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_up_runs_the_steps_in_order_on_all_workers(cloud: Cloud) -> None:
    cloud.done("up.sh", cloud.job(["true"]))
    assert cloud.steps() == ["create", "ssh", "scp", "ssh", "ssh", "ssh"]
    remote = [call for call in cloud.calls() if call[4] in ("ssh", "scp")]
    assert all("--worker=all" in call for call in remote)
    assert all({"--project=science", "--zone=zone-a"} <= set(call) for call in cloud.calls())
    cloud.wait_for_end()
    for number in (0, 1):
        home = cloud.worker(number)
        assert (home / "selfevo/a file with spaces.txt").read_text() == "kept whole"
        assert (home / "selfevo/.venv/installed").read_text() == ".venv tpu,gcs\n"
        assert (home / ".selfevo/trial.rc").read_text() == "0\n"


def test_dry_run_prints_every_command_and_calls_nothing(cloud: Cloud) -> None:
    printed = cloud.done("up.sh", "--dry-run", cloud.job(["echo", *AWKWARD]))
    verbs = [line.split()[4] for line in printed.splitlines() if line.startswith("gcloud")]
    assert verbs == ["create", "ssh", "scp", "ssh", "ssh", "ssh"]
    for script in ("watch.sh", "slurm.sh"):
        cloud.done(script, "--dry-run", cloud.job(["true"]))
    for script in ("status.sh", "logs.sh"):
        assert cloud.done(script, "--dry-run", "trial").startswith("gcloud")
    assert cloud.done("delete.sh", "--dry-run").startswith("gcloud compute tpus queued-resources")
    assert cloud.calls() == []


def test_a_shared_folder_is_mounted_where_one_is_given(cloud: Cloud) -> None:
    assert "mount" not in cloud.done("setup.sh", "--dry-run")
    printed = cloud.done("setup.sh", "--dry-run", TPU_NFS="10.0.0.2:/runs of all")
    words = subprocess.run(
        ["bash", "-c", f'set -- {printed.splitlines()[-1]}; printf "%s" "${{!#}}"'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    script = words.stdout.removeprefix("--command=")
    assert (
        "mount -t nfs -o actimeo=1,lookupcache=none 10.0.0.2:/runs\\ of\\ all /mnt/selfevo"
        in script
    )
    subprocess.run(["bash", "-n", "-c", script], check=True)


def test_spot_is_the_default_and_can_be_switched_off(cloud: Cloud) -> None:
    assert "--spot" in cloud.done("create.sh", "--dry-run").split()
    assert "--spot" not in cloud.done("create.sh", "--dry-run", TPU_SPOT="0").split()


def test_arguments_arrive_whole(cloud: Cloud) -> None:
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    cloud.done("up.sh", cloud.job([sys.executable, "-c", code, *AWKWARD]))
    cloud.wait_for_end()
    assert json.loads((cloud.worker(1) / ".selfevo/trial.log").read_text()) == AWKWARD


def test_create_waits_until_the_machine_is_ready(cloud: Cloud) -> None:
    (cloud.state / "created").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE")
    result = cloud.run("create.sh")
    assert result.returncode == 0
    assert "pod: WAITING_FOR_RESOURCES" in result.stderr and "pod: PROVISIONING" in result.stderr


@pytest.mark.parametrize("state, reason", [("FAILED", "is FAILED"), ("CREATING", "not ready")])
def test_create_ends_when_there_is_no_machine_to_be_had(cloud, state, reason) -> None:
    (cloud.state / "created").write_text(state)
    result = cloud.run("create.sh")
    assert result.returncode == 1 and reason in result.stderr


def test_a_lost_answer_does_not_create_twice(cloud: Cloud) -> None:
    cloud.done("create.sh")
    cloud.done("create.sh")
    assert cloud.steps() == ["create"]


def test_steps_are_tried_again(cloud: Cloud) -> None:
    cloud.fail(" scp ", 2)
    cloud.done("up.sh", cloud.job(["true"]))
    assert cloud.steps() == ["create", "ssh", "scp", "scp", "scp", "ssh", "ssh", "ssh"]


@pytest.mark.parametrize(
    "part, reached",
    [
        ("queued-resources create", ["create"] * 4),
        (" scp ", ["create", "ssh"] + ["scp"] * 4),
        ("constraints/install.sh", ["create", "ssh", "scp", "ssh"] + ["ssh"] * 4),
    ],
)
def test_a_failed_step_stops_the_rest(cloud: Cloud, part: str, reached: list[str]) -> None:
    cloud.fail(part, 99)
    result = cloud.run("up.sh", cloud.job(["true"]))
    assert result.returncode != 0 and "gave up after 4 attempts" in result.stderr
    assert cloud.steps() == reached
    assert not list(cloud.state.glob("workers/*/.selfevo/trial.run"))


def test_a_wrong_job_file_costs_no_machine(cloud: Cloud) -> None:
    result = cloud.run("up.sh", "tpu_scripts/jobs/absent.sh")
    assert result.returncode == 1 and "there is no such job file" in result.stderr
    assert cloud.calls() == []


def test_a_missing_setting_is_named(cloud: Cloud) -> None:
    result = cloud.run("status.sh", TPU_ZONE="")
    assert result.returncode == 1 and result.stderr.startswith("error: TPU_ZONE is not set")


def test_copy_takes_away_what_was_deleted_and_keeps_the_environment(cloud: Cloud) -> None:
    cloud.done("up.sh", cloud.job(["true"]))
    (cloud.checkout / "a file with spaces.txt").unlink()
    cloud.done("copy.sh")
    assert not (cloud.worker(0) / "selfevo/a file with spaces.txt").exists()
    assert (cloud.worker(0) / "selfevo/.venv/installed").exists()


def test_secrets_reach_the_job_and_no_command_line(cloud: Cloud, tmp_path: Path) -> None:
    secrets = tmp_path / "my secrets.env"
    secrets.write_text("HF_TOKEN=canary-7f3a\n")
    secrets.chmod(0o600)
    job = cloud.job(["bash", "-c", 'echo "the token is $HF_TOKEN"'])
    cloud.done("up.sh", job, SECRETS_FILE=str(secrets))
    cloud.wait_for_end()
    assert (cloud.worker(0) / ".selfevo/trial.log").read_text() == "the token is canary-7f3a\n"
    assert (cloud.worker(0) / ".selfevo/secrets.env").stat().st_mode & 0o777 == 0o600
    cloud.done("slurm.sh", job, SECRETS_FILE=str(secrets))
    assert "canary" not in (cloud.state / "calls.jsonl").read_text()
    assert "canary" not in (cloud.state / "batch.sh").read_text()


def test_secrets_that_others_can_read_are_refused(cloud: Cloud, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.env"
    secrets.write_text("HF_TOKEN=canary\n")
    secrets.chmod(0o644)
    cloud.done("create.sh")
    result = cloud.run("copy.sh", SECRETS_FILE=str(secrets))
    assert result.returncode == 1 and "chmod 600" in result.stderr
    assert cloud.steps() == ["create"]


def test_launch_leaves_a_running_job_alone_and_status_tells_it(cloud: Cloud) -> None:
    stop = cloud.state / "stop"
    wait = f"echo started; while [ ! -e '{stop}' ]; do sleep 0.05; done; exit 3"
    job = cloud.job(["bash", "-c", wait])
    cloud.done("up.sh", job)
    assert cloud.done("launch.sh", job).splitlines() == ["already running"] * 2
    lines = cloud.done("status.sh", "trial").splitlines()
    assert lines == ["request ACTIVE", "machine READY", "trial running", "trial running"]
    stop.touch()
    cloud.wait_for_end()
    assert cloud.done("status.sh", "trial").splitlines()[2:] == ["trial ended 3"] * 2
    assert cloud.done("logs.sh", "trial").splitlines() == [f"[worker {n}] started" for n in (0, 1)]
    stop.unlink()
    cloud.done("launch.sh", job)
    assert cloud.done("status.sh", "trial").splitlines()[2:] == ["trial running"] * 2
    stop.touch()
    cloud.wait_for_end()


def counting_job(cloud: Cloud, then: str) -> str:
    """A job that counts its starts in the cloud's folder, and runs `then` with the count in $n.

    Only worker 0 counts; worker 1 ends well at once.
    """
    count = cloud.state / "count"
    script = f"""case $HOME in */1) exit 0 ;; esac
        echo x >>'{count}'; n=$(wc -l <'{count}'); {then}"""
    return cloud.job(["bash", "-c", script])


def test_watch_makes_a_preempted_machine_anew(cloud: Cloud) -> None:
    taken = f"echo SUSPENDED >'{cloud.state}/queue'; echo PREEMPTED >'{cloud.state}/machine'"
    job = counting_job(cloud, f"[ $n -gt 2 ] || {{ {taken}; sleep 8; }}")
    cloud.done("up.sh", job)
    cloud.done("watch.sh", job)
    steps = [step for step in cloud.steps() if step in ("create", "delete")]
    assert steps == ["create", "delete", "create", "delete", "create"]
    assert (cloud.state / "count").read_text() == "x\n" * 3


def test_watch_starts_a_failed_job_again_on_the_same_machine(cloud: Cloud) -> None:
    job = counting_job(cloud, "[ $n -gt 2 ]")
    cloud.done("up.sh", job)
    cloud.done("watch.sh", job)
    assert "delete" not in cloud.steps()
    assert (cloud.state / "count").read_text() == "x\n" * 3


def test_watch_gives_up(cloud: Cloud) -> None:
    job = counting_job(cloud, "exit 9")
    cloud.done("up.sh", job)
    result = cloud.run("watch.sh", job, MAX_RESTARTS="2")
    assert result.returncode == 1 and "started again 2 times" in result.stderr
    assert (cloud.state / "count").read_text() == "x\n" * 3


def test_an_unanswered_question_is_no_preemption(cloud: Cloud) -> None:
    job = cloud.job(["true"])
    cloud.done("up.sh", job)
    cloud.wait_for_end()
    cloud.fail("describe", 3)
    result = cloud.run("watch.sh", job)
    assert result.returncode == 0 and "no clear answer" in result.stderr
    assert "delete" not in cloud.steps()


def test_delete_is_repeatable(cloud: Cloud) -> None:
    cloud.done("create.sh")
    cloud.done("delete.sh")
    cloud.done("delete.sh")
    assert cloud.steps() == ["create", "delete"]
    delete = next(call for call in cloud.calls() if call[4] == "delete")
    assert {"--force", "--quiet"} <= set(delete)


def test_slurm_twin_submits_the_same_command(cloud: Cloud) -> None:
    cloud.done("slurm.sh", cloud.job(["echo", *AWKWARD]), "--nodes=4", "--comment=two words")
    (call,) = cloud.calls()
    assert call[0] == "sbatch" and call[-2:] == ["--nodes=4", "--comment=two words"]
    assert {"--requeue", "--signal=TERM@120", "--ntasks-per-node=1"} <= set(call)
    echo = 'srun() { shift 3; printf "%s\\0" "$@"; }; exec() { "$@"; }\n'
    body = echo + (cloud.state / "batch.sh").read_text()
    output = subprocess.run(["bash"], input=body, capture_output=True, text=True, check=True)
    assert output.stdout.split("\0")[:-1] == AWKWARD


@pytest.mark.parametrize("path", sorted(REPO.glob("tpu_scripts/jobs/*.sh")), ids=lambda p: p.stem)
def test_jobs_name_configs_and_settings_that_exist(path: Path) -> None:
    words = ["bash", "-c", 'source "$0" && printf "%s\\0" "$JOB" "${COMMAND[@]}"', str(path)]
    job, *command = subprocess.check_output(words, text=True).split("\0")[:-1]
    assert job == path.stem and command[:2] == ["selfevo", "run"]
    config = next(word.split("=", 1)[1] for word in command if word.startswith("--config="))
    settings = [word.removeprefix(PREFIX) for word in command if word.startswith(PREFIX)]
    loaded = load_config(str(REPO / config), settings)  # refuses what is misspelt
    assert loaded.compute.dtype == "bfloat16" or path.stem == "quickstart"
