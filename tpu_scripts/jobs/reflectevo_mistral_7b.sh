# ReflectEvo on Mistral-7B with the published code's settings.
# RUNS is gs://... or a folder that all hosts see; the task's files are looked for in DATA/logiqa.
# The model is gated: HF_TOKEN belongs in SECRETS_FILE.
# shellcheck shell=bash disable=SC2034
JOB=reflectevo_mistral_7b
COMMAND=(selfevo run --cluster=auto --config=configs/reflectevo.py:mistral_7b --workdir="${RUNS:-runs}/reflectevo_mistral_7b"
    --config.task.args.data_dir="${DATA:-data}"
    --config.compute.slots=64)
