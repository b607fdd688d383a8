#!/usr/bin/env bash
# Gives the machine back and takes the request away. Nothing is kept on the workers, so on a terminal
# it asks first.
# Run as: tpu_scripts/delete.sh [--dry-run] [--yes]
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
need_machine
case "${args[*]-}" in
"" | --yes) ;;
*) mistake "${args[*]}: delete.sh takes --yes and nothing else" ;;
esac

agreed() {
    local answer
    if [ "${args[*]-}" = --yes ] || [ ! -t 0 ]; then return 0; fi
    read -r -p "Delete $TPU_NAME and all that its workers hold? [y/N] " answer
    [[ "$answer" = [yY]* ]]
}

if [ "$dry_run" = 0 ]; then
    if [ "$(queue_state)" = ABSENT ]; then
        say "$TPU_NAME does not exist: nothing to delete"
        exit 0
    fi
    agreed || die "$TPU_NAME is kept"
fi
# --force takes the machine with the request.
retry gcloud compute tpus queued-resources delete "$TPU_NAME" "${where[@]}" --force --quiet
