#!/usr/bin/env bash
# Asks for a TPU VM or pod slice through a queued resource and waits until it is ready.
# Run as: tpu_scripts/create.sh [--dry-run]
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
need_machine

create() {
    local options=(--node-id="$TPU_NAME" --accelerator-type="$TPU_TYPE"
        --runtime-version="$TPU_RUNTIME")
    [ "${TPU_SPOT:-1}" = 0 ] || options+=(--spot)
    # An answer that got lost must not end in "already exists".
    local state=ABSENT
    [ "$dry_run" = 1 ] || state=$(queue_state)
    case "$state" in
    ABSENT) ;;
    UNKNOWN) return 1 ;;
    *) return 0 ;;
    esac
    run gcloud compute tpus queued-resources create "$TPU_NAME" "${where[@]}" "${options[@]}"
}

wait_until_ready() {
    local poll state
    for ((poll = 0; poll < WAIT_POLLS; poll++)); do
        state=$(queue_state)
        case "$state" in
        ACTIVE) [ "$(machine_state)" = READY ] && return 0 ;;
        FAILED | SUSPENDED | SUSPENDING | DELETING)
            die "$TPU_NAME is $state: tpu_scripts/delete.sh, then create it again" ;;
        esac
        say "$TPU_NAME: $state"
        sleep "$POLL_SECONDS"
    done
    die "$TPU_NAME was not ready after $WAIT_POLLS looks: tpu_scripts/status.sh tells its state"
}

# `retry` calls `run` itself, so a dry run goes straight to the command.
if [ "$dry_run" = 1 ]; then
    create
else
    retry create
    wait_until_ready
    say "$TPU_NAME is ready"
fi
