"""What a run trained, in the formats that other tools load."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfevo_jax.config import defaults
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.files import read_json
from selfevo_jax.evolve.jax_model import JaxModel
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.stages import StageFolder
from selfevo_jax.models.lora import merge_lora
from selfevo_jax.models.quantize import dequantize_base
from selfevo_jax.text.gguf_vocabulary import gguf_vocabulary
from selfevo_jax.weights.gguf_write import save_gguf
from selfevo_jax.weights.model_files import save_model
from selfevo_jax.weights.storage import atomic_folder

CARD, GGUF = "README.md", "model.gguf"
UNFINISHED = "?"  # no policy is called so


@dataclass(frozen=True)
class Trained:
    """A policy that a run trained: its name, its adapter's folder, the source of its base and how
    the run stored that (`compute.quant`)."""

    name: str
    adapter: Path
    base: str
    quant: str


def find_trained(workdir: Path, policy: str | None) -> Trained:
    """The policy called so, or the best one of a finished run.

    Raises UserError for a folder that is no run, a run without that policy, a damaged adapter. What
    a run that has not finished stands for may be a baseline or one of several candidates: it must
    be named.
    """
    if not (workdir / "run.json").is_file():
        raise UserError(f"{workdir} is not the workdir of a run: it has no run.json")
    run = read_json(workdir / "run.json")
    best = UNFINISHED if run.get("finished") is False else run.get("best")
    name, adapter = _adapter(workdir, run["policies"], policy or best)
    StageFolder(workdir / Path(adapter).parent).verify()
    quant = read_json(workdir / "config.json")["compute"].get("quant", "none")
    return Trained(name, workdir / adapter, run["model"], quant)


def _adapter(workdir: Path, policies: dict[str, dict], wanted: str | None) -> tuple[str, str]:
    trained = {name: kept["adapter"] for name, kept in policies.items() if kept["adapter"]}
    if wanted not in trained:
        reasons = {
            UNFINISHED: "the run has not finished: name a policy with --policy",
            None: "the run ends with no policy or with several: name one with --policy",
            "base": "the base model is still the best one",
        }
        there = ", ".join(sorted(trained)) or "none yet"
        why = reasons.get(wanted, f"it has no trained policy {wanted}")
        raise UserError(f"{workdir}: {why}; trained: {there}")
    return wanted, trained[wanted]


def export(
    trained: Trained, out: Path, form: str, progress: Progress, *, card: str, dtype: str
) -> Path:
    """Writes a policy as `form` (peft, safetensors or gguf) to the new folder `out`, with `card`.

    `dtype` (float32, bfloat16, float16) is that of the merged weights. Raises UserError for an
    `out` that exists and for what the format cannot express.
    """
    if out.exists():
        raise UserError(f"{out} exists already; give another --out")
    with atomic_folder(out) as fresh:
        if form == "peft":
            shutil.copytree(trained.adapter, fresh, dirs_exist_ok=True)
        else:
            _write_merged(trained, fresh, form, progress, dtype)
        (fresh / CARD).write_text(card, encoding="utf-8")
    return out


def _write_merged(
    trained: Trained, folder: Path, form: str, progress: Progress, dtype: str
) -> None:
    # Of a run's settings only this one decides what the policy computes: an adapter trained on
    # a quantised base is merged into the values that the codes stand for, never into codes.
    model = JaxModel(
        trained.base, defaults().compute.to_dict() | {"quant": trained.quant}, progress
    )
    if model.quant is not None:
        progress.say(f"the base is written as its {model.quant} values, which the run was on")
    merged = _merged(model, trained.adapter)
    config, tokenizer = model.files.config, model.tokenizer
    with progress.busy(f"writing {form}"):
        if form == "gguf":
            vocabulary = gguf_vocabulary(tokenizer, config.vocab_size)
            save_gguf(folder / GGUF, config, merged, vocabulary, dtype)
        else:
            save_model(folder, config, merged, dtype, save_tokenizer=tokenizer.save)


def _merged(model: JaxModel, adapter: Path) -> Mapping[str, Any]:
    applied = model.applied(adapter)
    assert applied is not None
    return merge_lora(dequantize_base(model.params), applied)
