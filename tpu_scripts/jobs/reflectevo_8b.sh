# ReflectEvo on Llama-3-8B with the published code's settings.
# RUNS is gs://... or a folder that all hosts see; the task's files are looked for in DATA/logiqa.
# The model is gated: HF_TOKEN belongs in SECRETS_FILE.
# shellcheck shell=bash disable=SC2034
JOB=reflectevo_8b
COMMAND=(selfevo run --cluster=auto --config=configs/reflectevo.py:llama3_8b --workdir="${RUNS:-runs}/reflectevo_8b"
    --config.task.args.data_dir="${DATA:-data}"
    --config.compute.slots=64)
