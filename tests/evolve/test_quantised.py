"""A run on a base in 4 or 8 bits, from sampling to training, and an export that is exact."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.exporting import export, find_trained
from selfevo_jax.evolve.plan import expected_memory
from selfevo_jax.evolve.progress import Progress
from selfevo_jax.evolve.tiny import random_model
from selfevo_jax.models.lora import adapter, merge_lora
from selfevo_jax.models.presets import preset
from selfevo_jax.models.quantize import BYTES, Stored, dequantize, quantize_base
from selfevo_jax.weights.model_files import open_model
from selfevo_jax.weights.peft import load_peft, read_origin

MODEL = "random:tiny?seed=0"


def states(said):
    """Stage -> what a plan says of it."""
    lines = [line for line in said.splitlines() if line.startswith(" round_")]
    return {line.split()[0]: line.split()[-1] for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nf4", "fp8"])
def test_a_run_on_few_bits_with_bfloat16_compute(mini, tmp_path, kind):
    """The fit starts at its reference, the model that is written is the base's stored values
    with the adapter added, and without `quant` every stage that computes is another one."""
    mini(f"compute.quant={kind}", "compute.dtype=bfloat16", "learn.steps=2", f"model={MODEL}")
    rows = (mini.workdir / "round_01/train/metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2 and json.loads(rows[0])["loss"] == pytest.approx(np.log(2), abs=1e-3)

    assert len(list((mini.workdir / "reference").iterdir())) == 1  # for all fits of the run
    assert not (mini.workdir / "round_01/train/reference").exists()

    lineage = read_origin(mini.workdir / "round_01/train/adapter").lineage
    assert (lineage["round"], lineage["start"]["policy"]) == ("round_01", "base")

    best = find_trained(mini.workdir, None)
    export(best, tmp_path / "merged", "safetensors", Progress(), card="", dtype="float32")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    files = open_model(random_model(MODEL))
    tree, lora = load_peft(mini.workdir / "round_01/train/adapter", files.config)
    base = jax.tree.map(
        lambda leaf: dequantize(leaf) if isinstance(leaf, Stored) else leaf,
        quantize_base(files.load(), kind),
        is_leaf=lambda leaf: isinstance(leaf, Stored),
    )
    kernel = merge_lora(base, adapter(tree, lora))["layers"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_allclose(merged["model.layers.1.mlp.up_proj.weight"], kernel[1].T, atol=1e-6)

    again = ("compute.dtype=bfloat16", "learn.steps=2", f"model={MODEL}")
    same = states(mini(f"compute.quant={kind}", *again, dry_run=True))
    other = states(mini(*again, dry_run=True))
    assert set(same.values()) == {"done"}
    assert other["round_01/prompts"] == "done"
    assert "done" not in {other[f"round_01/{name}"] for name in ("sample", "train", "evaluate")}


def test_an_unknown_kind_is_refused_before_anything_runs(mini):
    with pytest.raises(UserError, match="compute.quant 'nf5' is unknown; .* nf4 or int8 or fp8"):
        mini("compute.quant=nf5")
    assert not (mini.workdir / "config.json").exists()


def test_the_plan_counts_the_small_kernels():
    """SmolLM2-135M by hand: 30 layers of 576 x (576 + 192 + 192 + 576 + 3 x 1536) and a table of
    49152 x 576; four bits and a byte of scale for every 64 values, in projections alone."""
    layers, table = 30 * 576 * 6144, 49152 * 576
    others = {"slots": 1, "max_length": 1, "train_tokens": 1, "rank": 1, "remat": "none"}
    for kind, bits in (("int8", 8), ("fp8", 8), ("nf4", 4 + 8 / 64)):
        memory = expected_memory(
            preset("smollm2_135m"), value_bytes=2, kernel_bytes=BYTES[kind], **others
        )
        assert memory["weights"] == pytest.approx(layers * bits / 8 + 2 * table, rel=1e-3)
