# ELITE on OpenLLaMA-7B with the paper's settings. RUNS is gs://... or a folder that all hosts see; the task's files
# are looked for in DATA/natural_instructions.
# shellcheck shell=bash disable=SC2034
JOB=elite_7b
COMMAND=(selfevo run --cluster=auto --config=configs/elite.py:7b --workdir="${RUNS:-runs}/elite_7b"
    --config.task.args.data_dir="${DATA:-data}"
    --config.compute.slots=64)
