#!/usr/bin/env bash
# Shows a job's log from every worker, each line marked with its worker.
# Run as: tpu_scripts/logs.sh [--dry-run] JOB [--follow | LINES]      (default: the last 50 lines)
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
need_machine

job=${args[0]:-}
[[ "$job" =~ ^[a-z0-9_-]+$ ]] || mistake "name the job, for example: tpu_scripts/logs.sh quickstart"
case "${args[1]:-50}" in
--follow) tail_options="-n 50 -F" ;;
*[!0-9]*) mistake "${args[1]}: give a number of lines or --follow" ;;
*) tail_options="-n ${args[1]:-50}" ;;
esac

marked() { on_workers "$1" "tail $tail_options ~/.selfevo/$job.log" | sed -u "s/^/[worker $1] /"; }

numbers=$(worker_numbers)
readers=()
for number in $numbers; do
    if [ "$dry_run" = 1 ]; then
        on_workers "$number" "tail $tail_options ~/.selfevo/$job.log"
    elif [[ "$tail_options" = *-F ]]; then
        marked "$number" &
        readers+=("$!")
    else
        marked "$number"
    fi
done
failed=0
for reader in ${readers[@]+"${readers[@]}"}; do wait "$reader" || failed=1; done
exit "$failed"
