# METEOR on Qwen2-7B with the paper's settings.
# RUNS is gs://... or a folder that all hosts see; the task's files are looked for in DATA/conala.
# The teacher is on a server: OPENAI_API_KEY belongs in SECRETS_FILE.
# shellcheck shell=bash disable=SC2034
JOB=meteor_qwen2_7b
COMMAND=(selfevo run --cluster=auto --config=configs/meteor.py:qwen2_7b --workdir="${RUNS:-runs}/meteor_qwen2_7b"
    --config.task.args.data_dir="${DATA:-data}"
    --config.compute.slots=64)
