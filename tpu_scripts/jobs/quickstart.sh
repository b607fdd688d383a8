# The quickstart on a machine of its own. RUNS is gs://... or a folder that all hosts see and that outlives them.
# shellcheck shell=bash disable=SC2034
JOB=quickstart
COMMAND=(selfevo run --cluster=auto --config=configs/quickstart.py --workdir="${RUNS:-runs}/quickstart")
