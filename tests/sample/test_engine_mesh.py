"""The same engine on eight virtual devices (data 2 x fsdp 2 x tensor 2): the same answers, where
training holds the parameters on another mesh."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.models.lora import LoraConfig, adapter, init_lora
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.parallel.rules import shardings
from selfevo_jax.sample.protocol import LabelRequest, Request, SamplingParams, ScoreRequest

DEVICES = 8
EXPECTED = "SELFEVO_TEST_EXPECTED"  # the file with what one device says
NAMES = (None, "narrow", "wide")


def adapters(tiny) -> dict:
    """Two adapters of different rank and targets, far enough from zero to be seen."""
    settings = {
        "narrow": LoraConfig(rank=2, alpha=8.0, targets=r"layers/attn/(q|v)_proj"),
        "wide": LoraConfig(rank=5, targets=r"layers/(attn|mlp)/.*_proj"),
    }
    trees = {
        name: init_lora(tiny.config, lora, jax.random.key(3)) for name, lora in settings.items()
    }
    return {
        name: adapter(jax.tree.map(lambda x: x + 0.05, tree), settings[name])
        for name, tree in trees.items()
    }


def requests() -> list[Request]:
    texts = ["how many ducks", "the lazy dog jumps over the barn", "a red fox"]
    messages = [[{"role": "user", "content": text}] for text in texts]
    sampled = [
        Request(f"{i}", messages[i % 3], SamplingParams(12), seed=i, adapter=NAMES[i // 3 % 3])
        for i in range(12)
    ]
    beams = SamplingParams(12, temperature=0.0, num_beams=4)
    return sampled + [Request(f"beams {i}", messages[i], beams) for i in range(3)]


def given() -> list[ScoreRequest]:
    return [
        ScoreRequest(r.id, r.messages, "over the barn", adapter=r.adapter) for r in requests()[:9]
    ]


def asked() -> list[LabelRequest]:
    return [LabelRequest(r.id, r.messages, ("a", "b"), adapter=r.adapter) for r in requests()[:9]]


def test_a_mesh_gives_the_same_answers(request, tiny, tmp_path):
    """Runs `test_on_eight_devices` in a process that has them; one device answers here."""
    engine = tiny.generator(adapters=adapters(tiny))
    answers = {done.id: [done.tokens, done.logps] for done in engine.generate(requests())}
    told = {
        "answers": answers,
        "scores": [score.logps for score in engine.score(given())],
        "labels": [labels.logps for labels in engine.labels(asked())],
    }
    (tmp_path / "expected.json").write_text(json.dumps(told))
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={DEVICES}",
        EXPECTED: str(tmp_path / "expected.json"),
    }
    test = f"{Path(__file__)}::test_on_eight_devices"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        cwd=request.config.rootpath, env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_on_eight_devices(tiny):
    if jax.device_count() < DEVICES:
        pytest.skip("started by test_a_mesh_gives_the_same_answers with eight devices")
    expected = json.loads(Path(os.environ[EXPECTED]).read_text())
    mesh, held = make_mesh("2,2,2"), shardings(tiny.params, make_mesh("2,4,1"))
    trained = dataclasses.replace(tiny, params=jax.device_put(tiny.params, held))
    split = trained.generator(mesh=mesh, slots=4, prompt_rows=4, adapters=adapters(tiny))
    found = list(split.generate(requests()))
    assert {completion.id for completion in found} == set(expected["answers"])
    for completion in found:
        tokens, logps = expected["answers"][completion.id]
        assert list(completion.tokens) == tokens
        np.testing.assert_allclose(completion.logps, logps, atol=1e-4)
    read = [*split.score(given()), *split.labels(asked())]
    for ours, theirs in zip(read, expected["scores"] + expected["labels"], strict=True):
        np.testing.assert_allclose(ours.logps, theirs, atol=1e-4)
    with pytest.raises(UserError, match="slots 6"):
        tiny.generator(mesh=mesh, slots=6)
