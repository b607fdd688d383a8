#!/usr/bin/env bash
# The twin of launch.sh for a Slurm cluster: the same job file, one process per node.
# The checkout and its environment (make install) must lie on storage that all nodes see.
# The job gets SIGTERM two minutes before its time limit; one that is preempted is queued again.
# Run as: tpu_scripts/slurm.sh [--dry-run] tpu_scripts/jobs/JOB.sh [sbatch options, e.g. --nodes=4]
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
load_job "${args[0]:-}"
check_secrets

# A secrets file is read by the job itself: its values are on no command line and in no script.
body="#!/usr/bin/env bash
set -euo pipefail
cd $(printf '%q' "$repo")
PATH=\$PWD/.venv/bin:\$PATH
$(if [ -n "${SECRETS_FILE:-}" ]; then printf 'set -a; . %q; set +a' "$(realpath "$SECRETS_FILE")"; fi)
exec srun --kill-on-bad-exit=1 --label $(printf '%q ' "${COMMAND[@]}")"

run mkdir -p "$repo/runs/logs"
command=(sbatch --job-name="$JOB" --ntasks-per-node=1 --signal=TERM@120 --requeue
    --open-mode=append --output="$repo/runs/logs/%x-%j.log" "${args[@]:1}")
if [ "$dry_run" = 1 ]; then
    run "${command[@]}"
    printf '%s\n' "$body"
else
    "${command[@]}" <<<"$body"
fi
