#!/usr/bin/env bash
# Gives the machine back and takes the request away. Nothing is kept on the workers.
# Run as: tpu_scripts/delete.sh [--dry-run]
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
need_machine

if [ "$dry_run" = 0 ] && [ "$(queue_state)" = ABSENT ]; then
    say "$TPU_NAME does not exist: nothing to delete"
    exit 0
fi
# --force takes the machine with the request.
retry gcloud compute tpus queued-resources delete "$TPU_NAME" "${where[@]}" --force --quiet
