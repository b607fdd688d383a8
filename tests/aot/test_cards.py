"""Real steps compiled for NVIDIA cards that are not here, by the compiler of the extra `cuda`."""

import importlib.util
import re
from dataclasses import replace

import jax
import pytest

from selfevo_jax.aot.cost import measure
from selfevo_jax.aot.hlo import parse
from selfevo_jax.aot.steps import Case, programs

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="compiling for NVIDIA cards needs gigabytes of CUDA: pip install 'selfevo_jax[cuda]'",
)


def compiled(case: Case) -> dict[str, str]:
    """The text of every program of a case, by name."""
    mesh = case.on_mesh()
    with jax.set_mesh(mesh):
        return {p.name: p.lower().compile().as_text() for p in programs(case, mesh)}


@pytest.mark.parametrize("card", ["a100:1", "h100:1"])
def test_a_training_step_has_cudnn_s_attention_in_both_directions(card):
    text = compiled(Case("smollm2_135m", "dpo_lora", card, batch=2, seq=256))["accumulate"]
    kernels = set(re.findall(r"__cudnn\$fmha\w+", text))
    assert kernels == {"__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"}
    assert "[2,1,256,256]" in text  # the mask, and no scores of nine heads:
    assert not re.search(r"\[2,[39],\d+,256\]", text)


def test_products_of_8_bit_floats_stay_products_of_8_bit_floats():
    """On Hopper; an older card widens both sides first."""
    case = Case("smollm2_135m", "sft_lora", "h100:1", batch=2, seq=256, quant="fp8")
    assert {("f8e4m3fn", "f8e4m3fn"), ("f8e5m2", "f8e4m3fn")} <= multiplied(case)
    older = multiplied(replace(case, topology="a100:1"))
    assert not any(dtype.startswith("f8") for pair in older for dtype in pair)


def multiplied(case: Case) -> set[tuple[str, ...]]:
    """The kinds of numbers on both sides of the products of a training step."""
    found = set()
    for lines in parse(compiled(case)["accumulate"])[0].values():
        for line in lines.values():
            if line.kind == "dot":
                found.add(tuple(lines[name].type.split("[")[0] for name in line.operands))
    return found


def test_several_cards_share_a_model():
    one, four = (
        measure(Case("smollm2_135m", "sft_full", f"h100:{count}", batch=4, seq=256))
        for count in (1, 4)
    )
    assert one.fits and four.fits
    held = [report.memory["update"].arguments for report in (one, four)]
    assert held[1] < 0.3 * held[0]
    assert one.collective_bytes == 0 < four.collective_bytes
    assert four.flops == pytest.approx(one.flops, rel=0.02)


def test_what_a_card_does_not_hold_does_not_fit():
    report = measure(Case("tiny", "sft_full", "h100:1", batch=65536, seq=1024, remat="none"))
    assert not report.fits
    assert report.hbm_bytes_per_chip > report.hbm_capacity


@pytest.mark.parametrize("step", ["prefill", "decode"])
def test_a_card_reads_at_least_the_model(step):
    report = measure(Case("smollm2_135m", step, "h200:1", batch=8, seq=512))
    assert report.fits
    assert report.bytes_accessed > 2 * 134e6  # bfloat16
    assert step == "prefill" or report.bound == "hbm"
