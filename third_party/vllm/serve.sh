#!/usr/bin/env bash
# Starts vLLM's OpenAI-style server for a run's models; needs vLLM in an environment of its own.
# Run as: third_party/vllm/serve.sh MODEL [NAME=ADAPTER_FOLDER ...]
#   PORT (8000), HOST (127.0.0.1), MAX_LENGTH (4096), GPUS (all), MEMORY (0.9, share of each GPU)
#   VLLM_API_KEY must be set when HOST is not this machine alone.
#   DRY_RUN=1 prints the command.
set -euo pipefail

die() {
    echo "error: $*" >&2
    exit 2
}

gpus() {
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --list-gpus | wc -l
    else
        echo 1
    fi
}

[ $# -ge 1 ] || die "name a model: third_party/vllm/serve.sh MODEL [NAME=ADAPTER_FOLDER ...]"
model=$1
shift
host=${HOST:-127.0.0.1}
if [ "$host" != 127.0.0.1 ] && [ -z "${VLLM_API_KEY:-}" ]; then
    die "HOST=$host opens the server to others: set VLLM_API_KEY"
fi
command=(vllm serve "$model" --host "$host" --port "${PORT:-8000}"
    --max-model-len "${MAX_LENGTH:-4096}" --tensor-parallel-size "${GPUS:-$(gpus)}"
    --gpu-memory-utilization "${MEMORY:-0.9}" --enable-prefix-caching
    --generation-config vllm)
rank=16
for adapter in "$@"; do
    config=${adapter#*=}/adapter_config.json
    [ -f "$config" ] || die "$adapter: there is no $config"
    found=$(sed -n 's/^ *"r": *\([0-9]*\).*/\1/p' "$config")
    [ "${found:-0}" -le "$rank" ] || rank=$found
done
if [ $# -gt 0 ]; then
    command+=(--enable-lora --max-lora-rank "$rank" --lora-modules "$@")
fi
if [ "${DRY_RUN:-0}" = 1 ]; then
    printf '%q ' "${command[@]}"
    echo
    exit
fi
command -v vllm >/dev/null || die "vllm is not on the PATH: pip install vllm, in its own environment"
export VLLM_NO_USAGE_STATS=1
exec "${command[@]}"
