#!/usr/bin/env bash
# Known weaknesses of what an environment holds, by pip-audit. Run as: constraints/audit.sh VENV
# One that is found ends with status 1. pip-audit asks the public index itself: where that does not answer,
# or a mirror stands in its place, the last line says that nothing was looked up and why, and the status is 0.
set -uo pipefail

said=$("$1/bin/pip-audit" --strict --local --skip-editable --progress-spinner=off 2>&1)
status=$?
printf '%s\n' "$said"
[ "$status" -ne 0 ] || exit 0
if grep -qE '^Found [0-9]+ known vulnerabilit' <<<"$said"; then exit 1; fi
reason=$(grep -v '^ *$' <<<"$said" | tail -n 1)
echo "== known weaknesses: SKIPPED, nothing was looked up: ${reason:-pip-audit ended with status $status}"
