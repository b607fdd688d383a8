# RefEval on Qwen2.5-7B with the paper's settings.
# RUNS is gs://... or a folder that all hosts see; the task's files are looked for in DATA/instruction_small.
# The teacher is on a server: DEEPSEEK_API_KEY belongs in SECRETS_FILE.
# shellcheck shell=bash disable=SC2034
JOB=refeval_qwen2_7b
COMMAND=(selfevo run --cluster=auto --config=configs/refeval.py:qwen2_7b --workdir="${RUNS:-runs}/refeval_qwen2_7b"
    --config.task.args.data_dir="${DATA:-data}"
    --config.compute.slots=64)
