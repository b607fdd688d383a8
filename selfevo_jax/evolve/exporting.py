"""What a run trained, in the formats that other tools load."""

import shutil
from pathlib import Path

from selfevo_jax.config import defaults
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.backend import JaxModel
from selfevo_jax.evolve.files import read_json
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.stages import StageFolder
from selfevo_jax.models.lora import merge_lora
from selfevo_jax.models.quantize import dequantize_base
from selfevo_jax.weights.model_files import save_model


def export(workdir: Path, out: Path, policy: str | None, form: str, progress: Progress) -> Path:
    """Writes a policy of the run as `form` ('merged' or 'peft') to the new folder `out`.

    `policy` None takes the run's best: the last that was accepted, chosen or trained. Raises
    UserError for a folder that is no run, a run without that policy, a damaged adapter, or an
    `out` that exists.
    """
    if out.exists():
        raise UserError(f"{out} exists already; give another --out")
    if not (workdir / "run.json").is_file():
        raise UserError(f"{workdir} is not the workdir of a run: it has no run.json")
    run = read_json(workdir / "run.json")
    adapter = workdir / _adapter(workdir, run["policies"], policy or run.get("best"))
    StageFolder(adapter.parent).verify()
    if form == "peft":
        shutil.copytree(adapter, out)
        return out
    compute = defaults().compute.to_dict()
    # Of a run's settings only this one decides what the policy computes: an adapter trained on
    # a quantised base is merged into the values that the codes stand for, never into codes.
    compute["quant"] = read_json(workdir / "config.json")["compute"].get("quant", "none")
    model = JaxModel(run["model"], compute, progress)
    applied = model.applied(adapter)
    assert applied is not None
    if model.quant is not None:
        progress.say(f"the base is written as its {model.quant} values, which the run was on")
    merged = merge_lora(dequantize_base(model.params), applied)
    with progress.busy(f"writing {out}"):
        save_model(out, model.files.config, merged, save_tokenizer=model.tokenizer.save)
    return out


def _adapter(workdir: Path, policies: dict[str, dict], wanted: str | None) -> str:
    trained = {name: kept["adapter"] for name, kept in policies.items() if kept["adapter"]}
    if wanted not in trained:
        reasons = {
            None: "the run ends with no policy or with several: name one with --policy",
            "base": "the base model is still the best one",
        }
        there = ", ".join(sorted(trained)) or "none yet"
        why = reasons.get(wanted, f"it has no trained policy {wanted}")
        raise UserError(f"{workdir}: {why}; trained: {there}")
    return trained[wanted]
