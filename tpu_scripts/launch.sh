#!/usr/bin/env bash
# Starts a job on every worker, in the background, so that it outlives the connection.
# Each worker keeps ~/.selfevo/JOB.log, JOB.run (what it runs) and, once that has ended, JOB.rc. A worker
# on which the job already runs is left alone, so the step may be repeated.
# Run as: tpu_scripts/launch.sh [--dry-run] tpu_scripts/jobs/JOB.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse "$@"
need_machine
load_job "${args[0]:-}"

# What a worker runs. %q keeps every argument whole through both shells.
worker_script() {
    local quoted
    quoted=$(printf '%q ' "${COMMAND[@]}")
    cat <<EOF
$define_processes_of
cd ~/.selfevo || exit 1
if [ ! -f $JOB.rc ] && [ -n "\$(processes_of $JOB)" ]; then echo "already running"; exit 0; fi
rm -f $JOB.rc
cat >$JOB.run <<'END_OF_JOB'
set -a; [ ! -f ~/.selfevo/secrets.env ] || . ~/.selfevo/secrets.env; set +a
cd ~/selfevo && PATH=\$PWD/.venv/bin:\$PATH && $quoted
rc=\$?
echo \$rc >~/.selfevo/$JOB.rc.new && mv ~/.selfevo/$JOB.rc.new ~/.selfevo/$JOB.rc
END_OF_JOB
SELFEVO_JOB=\$HOME/.selfevo/$JOB setsid nohup bash $JOB.run >>$JOB.log 2>&1 </dev/null &
# Until it is seen, or has ended already: a question that comes at once must not find it lost.
while kill -0 \$! 2>/dev/null && [ -z "\$(processes_of $JOB)" ]; do sleep 0.1; done
EOF
}

retry_on_workers all "$(worker_script)"
