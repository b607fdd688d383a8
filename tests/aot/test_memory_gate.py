"""The memory and traffic of a dozen compiled steps against stored figures: 5 % more fails.

Of each kind of program one is quick, the rest is slow.

After a change that is meant, renew them and look at the difference:
    python tests/aot/test_memory_gate.py
"""

import dataclasses
import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

FIGURES = Path(__file__).with_name("figures.json")
GROWTH = 1.05
DEEP = "smollm2_135m sft_lora v5e:2x2 mesh 1,-1,1 rows 4"


def cases() -> dict:
    """Name -> (case, whether it takes minutes)."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from selfevo_jax.aot.steps import STEPS, Case

    steps = {
        step: Case("tiny", step, "v5e:2x2", batch=8 if step == "prefill" else 32, seq=256)
        for step in STEPS
    }
    quick = [
        steps["decode"],
        Case("tiny", "dpo_lora", "v5e:2x2", mesh="1,2,1,2", batch=32, seq=256, micro=8),
    ]
    slow = [case for step, case in steps.items() if step != "decode"]
    slow += [
        Case("tiny", "dpo_lora", "v5e:2x2", batch=32, seq=256, micro=8),
        Case("tiny", "sft_full", "v5p-8", batch=32, seq=256),
        Case("tiny", "decode", "v6e-8", mesh="1,4,2", batch=32, seq=256),
        Case("smollm2_135m", "sft_lora", "v5e:2x2", batch=4, seq=256),
        Case("smollm2_135m", "dpo_lora", "v4-8", batch=8),
        Case("smollm2_135m", "decode", "v5e:2x2", batch=32),
        Case("llama3_8b", "sft_lora", "v5e:4x4", batch=16),
        Case("llama3_8b", "dpo_lora", "v5e:4x4", batch=16),
        Case("llama3_8b", "decode", "v5e:4x4", mesh="1,4,4", batch=128),
    ]
    return {name_of(c): (c, c in slow) for c in (*quick, *slow)}


def name_of(case) -> str:
    return f"{case.preset} {case.step} {case.topology} mesh {case.mesh} rows {case.rows}"


CASES = cases()
PARAMETERS = [
    pytest.param(name, marks=[pytest.mark.slow] if slow else [])
    for name, (_, slow) in CASES.items()
]


def stored(name: str) -> dict:
    """The figures of a case; skips where another libtpu is installed."""
    figures = json.loads(FIGURES.read_text())
    try:
        installed = version("libtpu")
    except PackageNotFoundError:
        pytest.skip("libtpu is not installed: pip install 'selfevo_jax[tpu-aot]'")
    if installed != figures["libtpu"]:
        pytest.skip(f"the figures are those of libtpu {figures['libtpu']}, not {installed}")
    assert name in figures["cases"], f"no figure is stored: run python {Path(__file__).name}"
    return figures["cases"][name]


def grown(report, figures: dict) -> dict[str, float]:
    """Figures that are more than 5 % above the stored ones, with their growth."""
    now = figures_of(report)
    return {key: now[key] / old for key, old in figures.items() if now[key] > GROWTH * old}


def figures_of(report) -> dict:
    return {
        "hbm_bytes_per_chip": report.hbm_bytes_per_chip,
        "temporaries": max(part.temporaries for part in report.memory.values()),
        "bytes_accessed": report.bytes_accessed,
        "collective_bytes": report.collective_bytes,
    }


@pytest.mark.parametrize("name", PARAMETERS)
def test_nothing_has_grown(name):
    from selfevo_jax.aot.cost import measure

    figures = stored(name)
    assert grown(measure(CASES[name][0]), figures) == {}


@pytest.mark.slow
def test_a_lost_remat_is_seen():
    """A backward pass that keeps what it should compute again, in a model of thirty layers."""
    from selfevo_jax.aot.cost import measure

    case = CASES[DEEP][0]
    assert case.remat == "full"
    lost = measure(dataclasses.replace(case, remat="none"))
    assert "temporaries" in grown(lost, stored(DEEP))


def write_figures() -> None:
    from selfevo_jax.aot.cost import measure

    figures = json.loads(FIGURES.read_text()) if FIGURES.exists() else {"cases": {}}
    figures["libtpu"] = version("libtpu")
    for name, (case, _) in CASES.items():
        figures["cases"][name] = figures_of(measure(case))
        print(name, figures["cases"][name], flush=True)
        FIGURES.write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    write_figures()
