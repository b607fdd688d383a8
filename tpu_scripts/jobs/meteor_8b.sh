# METEOR on Llama-3-8B with the paper's settings.
# RUNS is gs://... or a folder that all hosts see; the task's files are looked for in DATA/conala.
# The model is gated and the teacher on a server: HF_TOKEN and OPENAI_API_KEY belong in SECRETS_FILE.
# shellcheck shell=bash disable=SC2034
JOB=meteor_8b
COMMAND=(selfevo run --cluster=auto --config=configs/meteor.py:llama3_8b --workdir="${RUNS:-runs}/meteor_8b"
    --config.task.args.data_dir="${DATA:-data}"
    --config.compute.slots=64)
