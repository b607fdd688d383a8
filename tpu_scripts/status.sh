#!/usr/bin/env bash
# Tells the state of the request, of the machine, and of a job on every worker.
# Run as: tpu_scripts/status.sh [--dry-run] [JOB]
# A job's line is `JOB running`, `JOB ended CODE`, `JOB lost` (its process is gone without a code)
# or `JOB absent` (it was never started there).
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
need_machine

job=${args[0]:-}
if [ "$dry_run" = 1 ]; then
    run gcloud compute tpus queued-resources describe "$TPU_NAME" "${where[@]}"
    run gcloud compute tpus tpu-vm describe "$TPU_NAME" "${where[@]}"
else
    printf 'request %s\nmachine %s\n' "$(queue_state)" "$(machine_state)"
fi
[ -n "$job" ] || exit 0
[[ "$job" =~ ^[a-z0-9_-]+$ ]] || mistake "$job: a job's name is lower-case letters, digits, _ or -"
# The code is looked at twice: a job may end between the two questions.
retry_on_workers all "$define_processes_of
cd ~/.selfevo 2>/dev/null || { echo '$job absent'; exit 0; }
if [ -f $job.rc ]; then echo \"$job ended \$(cat $job.rc)\"
elif [ ! -f $job.run ]; then echo '$job absent'
elif [ -n \"\$(processes_of $job)\" ]; then echo '$job running'
elif [ -f $job.rc ]; then echo \"$job ended \$(cat $job.rc)\"
else echo '$job lost'; fi"
