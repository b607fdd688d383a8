#!/usr/bin/env bash
# Waits for a job to end. When the machine is taken away, makes it anew and starts the job again; when
# the job fails or is lost, starts it again on the same machine. What fails on the way is tried again
# after a pause that grows. Gives up after MAX_RESTARTS, and at once at a user's mistake.
# A job that keeps its workdir on storage that outlives the machine goes on where it stopped.
# Run as: tpu_scripts/watch.sh [--dry-run] tpu_scripts/jobs/JOB.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
need_machine
load_job "${args[0]:-}"
check_secrets
job_file=${args[0]}
LONGEST_PAUSE=640

# Mistakes by their status that a machine which died may have left: its lock on shared storage, which
# the server keeps for a while, or a host that is not back yet.
PASSING='is in use by|the hosts did not meet'

# One word for all workers: done, running, failed, absent, mistaken, preempted or unknown.
situation() {
    case "$(queue_state) $(machine_state)" in
    "ACTIVE READY") job_situation ;;
    FAILED* | SUSPEND* | ABSENT* | ACTIVE\ ABSENT | ACTIVE\ PREEMPTED | ACTIVE\ TERMINATED) echo preempted ;;
    *) echo unknown ;;
    esac
}

job_situation() {
    local lines said
    # A question that fails is no answer: the machine may be on its way out. Look again.
    lines=$("$scripts/status.sh" "$JOB" | grep "^$JOB ") || { echo unknown && return; }
    if grep -q " ended $MISTAKE\$" <<<"$lines"; then
        said=$(mistakes) || { echo unknown && return; }
        said=$(grep '^error: ' <<<"$said") || true # without gcloud's own words
        if [ -n "$said" ] && ! grep -qvE "$PASSING" <<<"$said"; then echo failed; else echo mistaken; fi
    elif grep -q ' absent$' <<<"$lines"; then
        echo absent
    elif grep -qE ' lost$| ended [1-9]' <<<"$lines"; then
        echo failed
    elif grep -q ' running$' <<<"$lines"; then
        echo running
    else
        echo "done"
    fi
}

# The line of each worker's log that names the mistake.
mistakes() {
    retry_on_workers all "cd ~/.selfevo || exit 1
[ \"\$(cat $JOB.rc 2>/dev/null)\" != $MISTAKE ] || grep -a '^error: ' $JOB.log | tail -n 1"
}

# One worker's failure leaves the others waiting for it, in a step that no signal may reach: they are
# told to end, and killed when they do not. Fails where one cannot be killed, for it keeps the chips.
stop_job() {
    retry_on_workers all "$define_processes_of
wait_for_end() {
    local last=\$((SECONDS + \$1))
    while [ -n \"\$(processes_of $JOB)\" ]; do
        [ \$SECONDS -lt \$last ] || return 1
        sleep 0.2
    done
}
kill \$(processes_of $JOB) 2>/dev/null; wait_for_end $STOP_SECONDS ||
    { kill -KILL \$(processes_of $JOB) 2>/dev/null; wait_for_end 10; } ||
    { echo $JOB cannot be killed: process \$(processes_of $JOB) >&2; exit 1; }"
}

# The set-up is repeated because a worker that was started again has lost its mount.
start_again() { stop_job && "$scripts/setup.sh" && "$scripts/launch.sh" "$job_file"; }
# For a worker that has never had the job, or lost its disk, or a machine whose set-up broke off.
set_up_again() { stop_job && "$scripts/up.sh" "$job_file"; }
make_anew() { "$scripts/delete.sh" --yes && "$scripts/up.sh" "$job_file"; }

# attempt WHY STEPS: one more start. What fails in it is looked at anew after a pause.
attempt() {
    local status=0
    restarts=$((restarts + 1))
    [ "$restarts" -le "$MAX_RESTARTS" ] ||
        die "$JOB was started again $MAX_RESTARTS times and did not end: tpu_scripts/logs.sh $JOB"
    say "$1; start $restarts of $MAX_RESTARTS"
    "$2" || status=$?
    case "$status" in
    0) pause=$RETRY_SECONDS ;;
    "$MISTAKE") exit "$MISTAKE" ;; # the step has told which
    *)
        say "start $restarts failed; looking again in $pause s"
        sleep "$pause"
        pause=$((pause * 2 < LONGEST_PAUSE ? pause * 2 : LONGEST_PAUSE)) ;;
    esac
}

end_at_mistake() {
    mistakes >&2 || true
    stop_job || true # workers that wait for the one that ended
    mistake "$JOB ended by a mistake that a new start does not mend: tpu_scripts/logs.sh $JOB"
}

watch() {
    restarts=0 pause=$RETRY_SECONDS
    while true; do
        case "$(situation)" in
        done) say "$JOB ended well on every worker" && return 0 ;;
        mistaken) end_at_mistake ;;
        failed) attempt "$JOB failed on a worker" start_again ;;
        absent) attempt "$JOB is absent from a worker" set_up_again ;;
        preempted) attempt "$TPU_NAME was taken away" make_anew ;;
        unknown) say "no clear answer about $TPU_NAME; looking again" ;;
        esac
        sleep "$POLL_SECONDS"
    done
}

if [ "$dry_run" = 1 ]; then
    "$scripts/status.sh" "$JOB"
    mistakes
    start_again
    make_anew
else
    watch
fi
