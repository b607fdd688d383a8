#!/usr/bin/env bash
# Waits for a job to end. When the machine is taken away, makes it anew and starts the job again; when
# the job fails or is lost, starts it again on the same machine. Gives up after MAX_RESTARTS.
# A job that keeps its workdir on storage that outlives the machine goes on where it stopped.
# Run as: tpu_scripts/watch.sh [--dry-run] tpu_scripts/jobs/JOB.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
need_machine
load_job "${args[0]:-}"
job_file=${args[0]}

# One word for all workers: done, running, failed, preempted or unknown.
situation() {
    local lines
    case "$(queue_state) $(machine_state)" in
    "ACTIVE READY") ;;
    FAILED* | SUSPEND* | ABSENT* | *PREEMPTED | *TERMINATED | *ABSENT)
        echo preempted
        return ;;
    *)
        echo unknown
        return ;;
    esac
    # A question that fails is no answer: the machine may be on its way out. Look again.
    lines=$("$scripts/status.sh" "$JOB" | grep "^$JOB ") || { echo unknown && return; }
    if grep -qE ' (lost|absent)$| ended [1-9]' <<<"$lines"; then
        echo failed
    elif grep -q ' running$' <<<"$lines"; then
        echo running
    else
        echo "done"
    fi
}

# One worker's failure leaves the others waiting for it: they are ended before the next start. A
# worker whose job has ended is not touched: its process number may be another's by now.
stop_job() {
    retry_on_workers all "cd ~/.selfevo && { [ -f $JOB.rc ] || kill -- -\$(cat $JOB.pid); } 2>/dev/null
rm -f ~/.selfevo/$JOB.pid"
}

restart() {
    restarts=$((restarts + 1))
    [ "$restarts" -le "$MAX_RESTARTS" ] ||
        die "$JOB was started again $MAX_RESTARTS times and did not end: tpu_scripts/logs.sh $JOB"
    say "$1; start $restarts of $MAX_RESTARTS"
}

watch() {
    restarts=0
    while true; do
        case "$(situation)" in
        done) say "$JOB ended well on every worker" && return 0 ;;
        failed)
            restart "$JOB failed on a worker"
            stop_job
            "$scripts/launch.sh" "$job_file" ;;
        preempted)
            restart "$TPU_NAME was taken away"
            "$scripts/delete.sh"
            "$scripts/up.sh" "$job_file" ;;
        unknown) say "no clear answer about $TPU_NAME; looking again" ;;
        esac
        sleep "$POLL_SECONDS"
    done
}

if [ "$dry_run" = 1 ]; then
    "$scripts/status.sh" "$JOB"
    stop_job
    "$scripts/launch.sh" "$job_file"
    "$scripts/delete.sh"
    "$scripts/up.sh" "$job_file"
else
    watch
fi
