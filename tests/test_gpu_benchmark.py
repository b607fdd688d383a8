"""`benchmarks/gpu.py`: its sums by hand, and the whole of it in miniature on this machine."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu"] = module  # where its dataclass looks for itself
    spec.loader.exec_module(module)
    return module


def test_the_bytes_of_a_decoded_token_are_those_of_the_published_model(gpu):
    sizes = gpu.PRESETS["llama3_8b"]
    # 8.03e9 parameters, of which the 128256 x 4096 input embeddings are not read.
    weights = 2 * (8.030e9 - 128_256 * 4096)
    cache = (512 + 48) * 131_072  # 128 KiB a token in bfloat16
    assert gpu.decode_bytes(sizes, 1) == pytest.approx(weights + cache, rel=1e-3)
    assert gpu.decode_bytes(sizes, 257) - gpu.decode_bytes(sizes, 1) == 256 * cache
    # In 8-bit floats a byte for each number of the layers; the head and the cache are as before.
    layers = 8.030e9 - 2 * 128_256 * 4096
    assert gpu.decode_bytes(sizes, 1, "jax_fp8") == pytest.approx(
        weights + cache - layers, rel=1e-3
    )


def test_the_work_of_a_step_is_that_of_its_tokens(gpu):
    sizes = gpu.PRESETS["llama3_8b"]
    tokens, flops = gpu.work("prefill", sizes)
    assert tokens == 8 * 2048
    # Twice the kernels of a layer for each token, attention, and eight rows of logits.
    kernels = 2 * (8.030e9 - 2 * 128_256 * 4096) * tokens
    attention = 32 * tokens * 4 * 4096 * 2048 / 2
    head = 8 * 2 * 128_256 * 4096
    assert flops == pytest.approx(kernels + attention + head, rel=1e-3)
    pairs, _ = gpu.work("dpo", sizes)
    assert 8 * (1024 + 2 * 512) <= pairs <= 8 * (1024 + 2 * 1024)


def test_shares_are_of_the_faster_measurement(gpu):
    answers = {
        "rates": {"jax": {"matmul_flops": 4e14, "copy_bytes": 1e12, "device": "NVIDIA H100 NVL"},
                  "torch": {"matmul_flops": 8e14, "copy_bytes": 2e12}},
        "prefill": {"jax": {"seconds": 1.0}, "torch": {"seconds": 2.0}},
        "decode_1": {"jax": {"seconds": 1.0}, "torch": {"failed": "out of memory"}},
        "decode_32_fp8": {"jax": {"seconds": 1.5}, "jax_fp8": {"seconds": 1.0}},
    }  # fmt: skip
    sizes = gpu.PRESETS["llama3_8b"]
    found = gpu.figures(answers, sizes)
    prefill = found["cases"]["prefill"]
    assert found["sheet_tflops"] == 989 and prefill["ratio"] == 2.0
    flops = gpu.work("prefill", sizes)[1]
    assert prefill["jax"]["of_matmul"] == pytest.approx(flops / 8e14)
    assert prefill["jax"]["mfu"] == pytest.approx(flops / 989e12)
    decode = found["cases"]["decode_1"]
    assert decode["jax"]["bandwidth"] == pytest.approx(64 * gpu.decode_bytes(sizes, 1) / 2e12)
    assert "ratio" not in decode and decode["torch"] == {"failed": "out of memory"}
    eight = found["cases"]["decode_32_fp8"]
    assert eight["ratio"] == 1.5 and eight["jax_fp8"]["tokens_per_s"] == 32 * 64
    moved = 64 * gpu.decode_bytes(sizes, 32, "jax_fp8")
    assert eight["jax_fp8"]["bandwidth"] == pytest.approx(moved / 2e12)


@pytest.mark.slow
def test_it_runs_from_end_to_end(gpu, tmp_path):
    pytest.importorskip("trl", reason="the other side is TRL: pip install 'selfevo_jax[parity]'")
    environment = {**os.environ, "SELFEVO_CACHE": str(tmp_path)}
    command = [sys.executable, SCRIPT, "--preset", "tiny", "--rounds", "1"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["skipped"] == [] and result["benchmark"] == "gpu"
    assert list(result["cases"]) == [
        "sft", "dpo", "prefill", "decode_1", "decode_2",
        "sft_fp8", "prefill_fp8", "decode_1_fp8", "decode_2_fp8",
    ]  # fmt: skip
    for case, sides in result["cases"].items():
        for side in gpu.sides_of(case):
            assert "failed" not in sides[side], (case, sides[side])
            # Decoding is a difference of two times, which noise may turn round at this size.
            assert sides[side]["tokens_per_s"] > 0 or case.startswith("decode")
        assert "ratio" in sides
