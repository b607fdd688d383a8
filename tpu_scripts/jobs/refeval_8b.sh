# RefEval on Llama-3-8B with the paper's settings.
# RUNS is gs://... or a folder that all hosts see; the task's files are looked for in DATA/instruction_small.
# The model is gated and the teacher on a server: HF_TOKEN and DEEPSEEK_API_KEY belong in SECRETS_FILE.
# shellcheck shell=bash disable=SC2034
JOB=refeval_8b
COMMAND=(selfevo run --cluster=auto --config=configs/refeval.py:llama3_8b --workdir="${RUNS:-runs}/refeval_8b"
    --config.task.args.data_dir="${DATA:-data}"
    --config.compute.slots=64)
