#!/usr/bin/env bash
# From nothing to a running job: create, copy, set up, launch. A step that fails stops the rest.
# Run as: tpu_scripts/up.sh [--dry-run] tpu_scripts/jobs/JOB.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
need_machine
# What is wrong here is found before a machine is paid for.
load_job "${args[0]:-}"
check_secrets

"$scripts/create.sh"
"$scripts/copy.sh"
"$scripts/setup.sh"
"$scripts/launch.sh" "${args[0]}"
