# Shared by every script in this folder: settings, one way to run a command, retries, remote calls.
# Settings come from the environment:
#   TPU_NAME TPU_PROJECT TPU_ZONE     which machine (needed)
#   TPU_TYPE=v5litepod-16             accelerator type     TPU_RUNTIME=v2-alpha-tpuv5-lite
#   TPU_SPOT=1                        spot capacity, which may be taken away; 0 for on demand
#   TPU_NFS=                          server:/share that setup.sh mounts on every worker as /mnt/selfevo
#   SECRETS_FILE=                     a file of NAME=value lines, readable by you alone; it travels as a
#                                     file and is read on the workers, so no secret is on a command line
#   TRIES=4 RETRY_SECONDS=10          attempts at a step, and the first pause; each pause doubles
#   POLL_SECONDS=30 WAIT_POLLS=2880   how often, and how many times, a waiting script looks
#   MAX_RESTARTS=20                   how often watch.sh starts a job again
#   STOP_SECONDS=60                   how long a job that is stopped has to save, before it is killed
# Job files read RUNS=runs, where the workdirs are kept, and DATA=data, the folder of the tasks' files;
# one that is not absolute is in ~/selfevo of a worker.
# shellcheck shell=bash
set -euo pipefail

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034
scripts=$repo/tpu_scripts
dry_run=${DRY_RUN:-0}
TPU_TYPE=${TPU_TYPE:-v5litepod-16}
TPU_RUNTIME=${TPU_RUNTIME:-v2-alpha-tpuv5-lite}
TRIES=${TRIES:-4}
RETRY_SECONDS=${RETRY_SECONDS:-10}
POLL_SECONDS=${POLL_SECONDS:-30}
WAIT_POLLS=${WAIT_POLLS:-2880}
MAX_RESTARTS=${MAX_RESTARTS:-20}
STOP_SECONDS=${STOP_SECONDS:-60}
# shellcheck disable=SC2034
MISTAKE=2 # exit status of a user's mistake, here and in `selfevo`

say() { printf '== %s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# What the user has to mend: watch.sh does not try it again.
mistake() {
    printf 'error: %s\n' "$*" >&2
    exit "$MISTAKE"
}

# Takes --dry-run out of the arguments; the rest is left in the array `args`.
parse() {
    args=()
    local argument
    for argument in "$@"; do
        if [ "$argument" = --dry-run ]; then dry_run=1; else args+=("$argument"); fi
    done
    export DRY_RUN=$dry_run
}

need_machine() {
    local name
    for name in TPU_NAME TPU_PROJECT TPU_ZONE; do
        [ -n "${!name:-}" ] || mistake "$name is not set: export it (see tpu_scripts/lib.sh)"
    done
    where=(--project="$TPU_PROJECT" --zone="$TPU_ZONE")
}

# Runs a command; in a dry run prints it instead, quoted so that it could be pasted.
run() {
    if [ "$dry_run" = 1 ]; then
        printf '%q ' "$@"
        printf '\n'
    else
        "$@"
    fi
}

# Runs a command that may safely be repeated, with growing pauses between attempts.
retry() {
    local attempt pause=$RETRY_SECONDS
    for ((attempt = 1; attempt <= TRIES; attempt++)); do
        if run "$@"; then return 0; fi
        [ "$attempt" = "$TRIES" ] && break
        say "attempt $attempt of $TRIES failed; again in $pause s"
        sleep "$pause"
        pause=$((pause * 2))
    done
    say "gave up after $TRIES attempts: $1 ${2:-} ${3:-} ${4:-} ${5:-}"
    return 1
}

# on_workers WHICH COMMAND: runs a shell command on worker WHICH (a number, or all).
on_workers() {
    run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker="$1" --command="$2"
}

retry_on_workers() {
    retry gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker="$1" --command="$2"
}

# Shell for a worker: `processes_of JOB` prints the numbers of the job's processes. Each of them has
# inherited SELFEVO_JOB, so it is found in whatever group it is, and never another's process that has
# got its number, as after a reboot.
# shellcheck disable=SC2034,SC2016
define_processes_of='processes_of() {
    grep -lzxF "SELFEVO_JOB=$HOME/.selfevo/$1" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3
}'

# describe KIND FORMAT: one field of the request (queued-resources) or the machine (tpu-vm): ABSENT
# when there is none, UNKNOWN when the question itself failed, which says nothing about the machine.
describe() {
    local errors answer
    errors=$(mktemp)
    if answer=$(gcloud compute tpus "$1" describe "$TPU_NAME" "${where[@]}" --format="$2" 2>"$errors"); then
        echo "$answer"
    elif grep -q NOT_FOUND "$errors"; then
        echo ABSENT
    else
        cat "$errors" >&2
        echo UNKNOWN
    fi
    rm -f "$errors"
}
queue_state() { describe queued-resources 'value(state.state)'; }
machine_state() { describe tpu-vm 'value(state)'; }

# One number per worker: 0 1 2 ...
worker_numbers() {
    if [ "$dry_run" = 1 ]; then
        echo all
        return
    fi
    local addresses
    addresses=$(gcloud compute tpus tpu-vm describe "$TPU_NAME" "${where[@]}" \
        --format='value[delimiter=" "](networkEndpoints[].ipAddress)')
    [ -n "$addresses" ] || die "$TPU_NAME has no workers: tpu_scripts/status.sh tells its state"
    seq 0 $(($(wc -w <<<"$addresses") - 1))
}

# load_job FILE: reads a job file, which sets the name JOB and the array COMMAND.
load_job() {
    [ -n "${1:-}" ] || mistake "name a job file, for example tpu_scripts/jobs/quickstart.sh"
    [ -f "$1" ] || mistake "$1: there is no such job file (see tpu_scripts/jobs/)"
    JOB="" COMMAND=()
    # shellcheck source=/dev/null
    source "$1"
    [[ "$JOB" =~ ^[a-z0-9_-]+$ ]] || mistake "$1: JOB must be lower-case letters, digits, _ or -"
    [ "${#COMMAND[@]}" -gt 0 ] || mistake "$1: COMMAND is empty"
    case "${DATA:-}" in
    *://*) mistake "DATA=$DATA: the tasks read local files; copy them to a folder that every host sees" ;;
    esac
}

check_secrets() {
    [ -n "${SECRETS_FILE:-}" ] || return 0
    [ -f "$SECRETS_FILE" ] || mistake "SECRETS_FILE=$SECRETS_FILE: there is no such file"
    case "$(stat -c %a "$SECRETS_FILE")" in
    ?00) ;;
    *) mistake "$SECRETS_FILE can be read by others: chmod 600 it" ;;
    esac
}
