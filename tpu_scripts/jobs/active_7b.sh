# Active selection on LLaMA-2-7B, every strategy at one budget.
# RUNS is gs://... or a folder that all hosts see; the task's files are looked for in DATA/mmlu.
# The model is gated: HF_TOKEN belongs in SECRETS_FILE.
# shellcheck shell=bash disable=SC2034
JOB=active_7b
COMMAND=(selfevo run --cluster=auto --config=configs/active.py:7b --workdir="${RUNS:-runs}/active_7b"
    --config.task.args.data_dir="${DATA:-data}"
    --config.compute.slots=64)
