# The quickstart on a machine of its own. RUNS is a folder, or a gs:// address that outlives the machine.
# shellcheck shell=bash disable=SC2034
JOB=quickstart
COMMAND=(selfevo run --config=configs/quickstart.py --workdir="${RUNS:-runs}/quickstart")
