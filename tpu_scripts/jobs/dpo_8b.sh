# Verified self-improvement of an 8B model by LoRA-DPO on its own sums, on 16 chips of 16 GB or more.
# RUNS is gs://... or a folder that all hosts see; the model is gated, so HF_TOKEN belongs in SECRETS_FILE.
# shellcheck shell=bash disable=SC2034
JOB=dpo_8b
COMMAND=(selfevo run --cluster=auto --config=configs/quickstart.py --workdir="${RUNS:-runs}/dpo_8b"
    --config.model=hf:meta-llama/Llama-3.1-8B-Instruct
    --config.compute.dtype=bfloat16 --config.compute.remat=full
    --config.compute.slots=256 --config.compute.max_length=1024
    --config.task.args.min_terms=4 --config.task.args.max_terms=6 --config.task.args.max_digits=4
    --config.prompts.n=2048 --config.sample.n=8 --config.sample.max_new_tokens=512
    --config.evaluate.max_new_tokens=512
    --config.learn.lr=2e-5 --config.learn.batch_size=64 --config.learn.micro_rows=16)
