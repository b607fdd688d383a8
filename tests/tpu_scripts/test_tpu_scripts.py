"""The TPU scripts against a fake `gcloud` that really runs what is sent to a worker."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selfevo_jax.cli.run import PREFIX
from selfevo_jax.config import load_config

REPO = Path(__file__).resolve().parents[2]
AWKWARD = ["two words", "it's", "$HOME", "a\nb", '"quoted"', "*", "back\\slash", ""]
SHELL_FILES = [
    *sorted(REPO.glob("tpu_scripts/**/*.sh")),
    *sorted(REPO.glob("constraints/*.sh")),
    REPO / ".ci/run",
]


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: str(path.relative_to(REPO)))
def test_shell_is_clean(path: Path) -> None:
    command = ["shellcheck", "-x", "-P", str(REPO / "tpu_scripts"), str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_up_runs_the_steps_in_order_on_all_workers(cloud) -> None:
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


def test_dry_run_prints_every_command_and_calls_nothing(cloud) -> None:
    printed = cloud.done("up.sh", "--dry-run", cloud.job(["echo", *AWKWARD]))
    verbs = [line.split()[4] for line in printed.splitlines() if line.startswith("gcloud")]
    assert verbs == ["create", "ssh", "scp", "ssh", "ssh", "ssh"]
    cloud.done("slurm.sh", "--dry-run", cloud.job(["true"]))
    printed = cloud.done("watch.sh", "--dry-run", cloud.job(["true"]))
    verbs = [line.split()[4] for line in printed.splitlines() if line.startswith("gcloud")]
    asked, again = ["describe", "describe", "ssh", "ssh"], ["ssh", "ssh", "ssh"]
    assert verbs == [*asked, *again, "delete", "create", "ssh", "scp", "ssh", "ssh", "ssh"]
    for script in ("status.sh", "logs.sh"):
        assert cloud.done(script, "--dry-run", "trial").startswith("gcloud")
    assert cloud.done("delete.sh", "--dry-run").startswith("gcloud compute tpus queued-resources")
    assert cloud.calls() == []


def test_a_shared_folder_is_mounted_where_one_is_given(cloud) -> None:
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


def test_spot_is_the_default_and_can_be_switched_off(cloud) -> None:
    assert "--spot" in cloud.done("create.sh", "--dry-run").split()
    assert "--spot" not in cloud.done("create.sh", "--dry-run", TPU_SPOT="0").split()


def test_arguments_arrive_whole(cloud) -> None:
    code = "import json, sys; print(json.dumps(sys.argv[1:]))"
    cloud.done("up.sh", cloud.job([sys.executable, "-c", code, *AWKWARD]))
    cloud.wait_for_end()
    assert json.loads((cloud.worker(1) / ".selfevo/trial.log").read_text()) == AWKWARD


def test_create_waits_until_the_machine_is_ready(cloud) -> None:
    (cloud.state / "created").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE")
    result = cloud.run("create.sh")
    assert result.returncode == 0
    assert "pod: WAITING_FOR_RESOURCES" in result.stderr and "pod: PROVISIONING" in result.stderr


@pytest.mark.parametrize("state, reason", [("FAILED", "is FAILED"), ("CREATING", "not ready")])
def test_create_ends_when_there_is_no_machine_to_be_had(cloud, state, reason) -> None:
    (cloud.state / "created").write_text(state)
    result = cloud.run("create.sh")
    assert result.returncode == 1 and reason in result.stderr


def test_a_lost_answer_does_not_create_twice(cloud) -> None:
    cloud.done("create.sh")
    cloud.done("create.sh")
    assert cloud.steps() == ["create"]


def test_steps_are_tried_again(cloud) -> None:
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
def test_a_failed_step_stops_the_rest(cloud, part: str, reached: list[str]) -> None:
    cloud.fail(part, 99)
    result = cloud.run("up.sh", cloud.job(["true"]))
    assert result.returncode != 0 and "gave up after 4 attempts" in result.stderr
    assert cloud.steps() == reached
    assert not list(cloud.state.glob("workers/*/.selfevo/trial.run"))


def test_a_wrong_job_file_costs_no_machine(cloud) -> None:
    result = cloud.run("up.sh", "tpu_scripts/jobs/absent.sh")
    assert result.returncode == 2 and "there is no such job file" in result.stderr
    assert cloud.calls() == []


def test_a_missing_setting_is_named(cloud) -> None:
    result = cloud.run("status.sh", TPU_ZONE="")
    assert result.returncode == 2 and result.stderr.startswith("error: TPU_ZONE is not set")


def test_secrets_reach_the_job_and_no_command_line(cloud, tmp_path: Path) -> None:
    secrets = tmp_path / "my secrets.env"
    secrets.write_text("HF_TOKEN=canary-7f3a\n")
    secrets.chmod(0o600)
    job = cloud.job(["bash", "-c", 'echo "the token is $HF_TOKEN"'])
    cloud.done("up.sh", job, SECRETS_FILE=str(secrets))
    cloud.wait_for_end()
    assert (cloud.worker(0) / ".selfevo/trial.log").read_text() == "the token is canary-7f3a\n"
    assert (cloud.worker(0) / ".selfevo/secrets.env").stat().st_mode & 0o777 == 0o600
    cloud.done("slurm.sh", job, SECRETS_FILE=os.path.relpath(secrets))
    assert f"{str(secrets).replace(' ', chr(92) + ' ')};" in (cloud.state / "batch.sh").read_text()
    assert "canary" not in (cloud.state / "calls.jsonl").read_text()
    assert "canary" not in (cloud.state / "batch.sh").read_text()


def test_secrets_that_others_can_read_are_refused(cloud, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.env"
    secrets.write_text("HF_TOKEN=canary\n")
    secrets.chmod(0o644)
    for script in ("copy.sh", "up.sh", "watch.sh", "slurm.sh"):
        result = cloud.run(script, cloud.job(["true"]), SECRETS_FILE=str(secrets))
        assert result.returncode == 2 and "chmod 600" in result.stderr
    assert cloud.calls() == []


def test_launch_leaves_a_running_job_alone_and_status_tells_it(cloud) -> None:
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


def test_launch_needs_the_copy(cloud) -> None:
    cloud.done("create.sh")
    job = cloud.job(["touch", str(cloud.state / "ran")])
    assert cloud.run("launch.sh", job).returncode == 1
    cloud.done("copy.sh")
    shutil.rmtree(cloud.worker(0) / "selfevo")
    shutil.rmtree(cloud.worker(1) / "selfevo")
    cloud.done("launch.sh", job)
    cloud.wait_for_end()
    assert cloud.status() == ["trial ended 1"] * 2
    assert not (cloud.state / "ran").exists()


def test_delete_asks_on_a_terminal(cloud) -> None:
    cloud.done("create.sh")
    for answer in ("", "no"):
        assert cloud.on_a_terminal(answer, "delete.sh") == 1
    assert cloud.on_a_terminal("", "delete.sh", "other-pod") == 2
    assert cloud.steps() == ["create"]
    assert cloud.on_a_terminal("y", "delete.sh") == 0
    cloud.done("create.sh")
    assert cloud.on_a_terminal("", "delete.sh", "--yes") == 0
    assert cloud.steps() == ["create", "delete"] * 2


def test_delete_is_repeatable(cloud) -> None:
    cloud.done("create.sh")
    cloud.done("delete.sh")
    cloud.done("delete.sh")
    assert cloud.steps() == ["create", "delete"]
    delete = next(call for call in cloud.calls() if call[4] == "delete")
    assert {"--force", "--quiet"} <= set(delete)


def test_slurm_twin_submits_the_same_command(cloud) -> None:
    cloud.done("slurm.sh", cloud.job(["echo", *AWKWARD]), "--nodes=4", "--comment=two words")
    (call,) = cloud.calls()
    assert call[0] == "sbatch" and call[-2:] == ["--nodes=4", "--comment=two words"]
    assert {"--requeue", "--signal=TERM@120", "--ntasks-per-node=1"} <= set(call)
    assert started_by_slurm(cloud) == ["echo", *AWKWARD]


def started_by_slurm(cloud) -> list[str]:
    """The words of the command that the script given to sbatch would start by srun."""
    said = 'srun() { shift 2; printf "%s\\0" "$@"; }; exec() { "$@"; }\n'
    body = said + (cloud.state / "batch.sh").read_text()
    output = subprocess.run(["bash"], input=body, capture_output=True, text=True, check=True)
    return output.stdout.split("\0")[:-1]


@pytest.mark.parametrize("path", sorted(REPO.glob("tpu_scripts/jobs/*.sh")), ids=lambda p: p.stem)
def test_every_job_has_its_slurm_twin(cloud, path: Path) -> None:
    """The same words on both, with the same folders."""
    places = {"RUNS": "/mnt/all runs", "DATA": "/mnt/data"}
    cloud.done("slurm.sh", str(path), **places)
    words = ["bash", "-c", 'source "$0" && printf "%s\\0" "${COMMAND[@]}"', str(path)]
    command = subprocess.check_output(words, text=True, env=os.environ | places)
    assert started_by_slurm(cloud) == command.split("\0")[:-1]
    assert f"--workdir=/mnt/all runs/{path.stem}" in started_by_slurm(cloud)
    assert f"--job-name={path.stem}" in cloud.calls()[0]


@pytest.mark.parametrize("path", sorted(REPO.glob("tpu_scripts/jobs/*.sh")), ids=lambda p: p.stem)
def test_jobs_name_configs_and_settings_that_exist(path: Path) -> None:
    words = ["bash", "-c", 'source "$0" && printf "%s\\0" "$JOB" "${COMMAND[@]}"', str(path)]
    job, *command = subprocess.check_output(words, text=True).split("\0")[:-1]
    assert job == path.stem and command[:2] == ["selfevo", "run"]
    config = next(word.split("=", 1)[1] for word in command if word.startswith("--config="))
    settings = [word.removeprefix(PREFIX) for word in command if word.startswith(PREFIX)]
    loaded = load_config(str(REPO / config), settings)  # refuses what is misspelt
    assert loaded.compute.dtype == "bfloat16" or path.stem == "quickstart"


PAPERS = [
    path for path in sorted(REPO.glob("tpu_scripts/jobs/*.sh")) if "data_dir" in path.read_text()
]


@pytest.mark.parametrize("data", ["", "/mnt/all data"])
@pytest.mark.parametrize("path", PAPERS, ids=lambda p: p.stem)
def test_data_is_local_where_runs_are_in_a_bucket(path: Path, data: str) -> None:
    """It was RUNS/data, a place in the bucket, for a reader of files."""
    words = ["bash", "-c", 'source "$0" && printf "%s\\0" "${COMMAND[@]}"', str(path)]
    places = {"RUNS": "gs://bucket/runs", "DATA": data}
    command = subprocess.check_output(words, text=True, env=os.environ | places).split("\0")
    assert f"--config.task.args.data_dir={data or 'data'}" in command
    assert f"--workdir=gs://bucket/runs/{path.stem}" in command


def test_data_in_a_bucket_costs_no_machine(cloud) -> None:
    result = cloud.run("up.sh", cloud.job(["true"]), DATA="gs://bucket/data")
    assert result.returncode == 2 and "the tasks read local files" in result.stderr
    assert cloud.calls() == []
