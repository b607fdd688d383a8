"""KTO on completions with a label: the loss against TRL's, data from file to fit, refusals."""

import dataclasses
import json
from collections import defaultdict
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trl import KTOTrainer

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.tiny import random_model
from selfevo_jax.learn.batches import check_examples
from selfevo_jax.learn.labels import labelled
from selfevo_jax.learn.losses import (
    Objective,
    Sequences,
    loss_terms,
    metric_means,
    metric_sums,
)
from selfevo_jax.learn.trainer import FitSettings, JaxTrainer
from selfevo_jax.models.lora import LoraConfig
from selfevo_jax.text.check import check, report
from selfevo_jax.text.datasets import read_examples
from selfevo_jax.text.render import render_example
from selfevo_jax.text.tokenizer import load_tokenizer
from selfevo_jax.weights.model_files import open_model

KTO = Objective("kto", beta=0.3, desirable=1.3, undesirable=0.7)
SETTINGS = FitSettings(steps=6, batch_size=24, lr=3e-3, warmup=0.0, lora=LoraConfig(rank=4))
WATCHED = {  # our names of TRL's metrics
    "reward_chosen": "rewards/chosen", "reward_rejected": "rewards/rejected",
    "logps_chosen": "logps/chosen", "logps_rejected": "logps/rejected",
}  # fmt: skip


def by_trl(logps, reference, labels, kl):
    """TRL's loss and metrics of sequences of one token."""
    n = len(logps)
    outputs = SimpleNamespace(
        log_probs=torch.tensor(logps)[:, None], entropy=torch.zeros(n, 1),
        mean_logits=torch.zeros(n, 1),
    )  # fmt: skip
    same = SimpleNamespace(
        device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, num_processes=1
    )
    trainer = SimpleNamespace(
        accelerator=same, model=SimpleNamespace(training=True), aux_loss_enabled=False,
        precompute_ref_logps=True, calculate_KL=True, loss_type="kto", beta=KTO.beta,
        desirable_weight=KTO.desirable, undesirable_weight=KTO.undesirable,
        _compute_kl_logps=lambda *_: torch.full((n,), kl), _metrics={"train": defaultdict(list)},
        _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    two = torch.tensor([[0, 1]]).repeat(n, 1)
    inputs = {
        "input_ids": torch.ones_like(two), "attention_mask": torch.ones_like(two),
        "completion_mask": two, "label": torch.tensor(labels),
        "ref_logps": torch.tensor(reference), "ref_KL_logps": torch.zeros(n),
    }  # fmt: skip
    loss = KTOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    return float(loss), {name: values[0] for name, values in trainer._metrics["train"].items()}


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_equals_trl_at_any_share_of_labels(share):
    rng = np.random.default_rng(1)
    logps, reference = -rng.gamma(2.0, 2.0, (2, 9)).astype("f4")
    labels = rng.permutation(9) < 9 * share
    expected, watched = by_trl(logps, reference, labels, 0.4)
    sides = np.stack([labels, ~labels], axis=1).astype("f4")
    columns = (logps[:, None] * sides, sides, reference[:, None] * sides, 0 * sides)
    sequences = Sequences(*map(jnp.asarray, columns))
    (term,) = loss_terms(KTO, sequences, jnp.float32(0.4))
    assert float(term.numerator / term.denominator) == pytest.approx(expected, rel=1e-5)
    means = metric_means({name: float(v) for name, v in metric_sums(KTO, sequences).items()})
    found = {key: means[name] for name, key in WATCHED.items() if name in means}
    assert found == pytest.approx({k: watched[k] for k in WATCHED.values() if k in watched})
    assert len(found) == (4 if 0 < share < 1 else 2)
    assert "margin" not in means and means["examples"] == 9


def test_pairs_taken_apart_have_the_loss_of_the_pairs():
    rng = np.random.default_rng(2)
    whole = Sequences(*(jnp.asarray(rng.uniform(1, 5, (5, 2)), jnp.float32) for _ in range(4)))
    halves = [whole.replace(tokens=whole.tokens * jnp.eye(2)[side]) for side in (0, 1)]
    apart = Sequences(
        *(jnp.concatenate([getattr(h, f.name) for h in halves]) for f in dataclasses.fields(whole))
    )
    one, other = (loss_terms(KTO, s, jnp.float32(0.2))[0] for s in (whole, apart))
    assert float(one.numerator / one.denominator) == pytest.approx(
        float(other.numerator / other.denominator), rel=1e-6
    )


@pytest.fixture
def file(tmp_path):
    """24 rows of TRL's unpaired format, conversational and standard, a third not desirable."""
    path = tmp_path / "labels.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for i in range(24):
            good = i % 3 > 0
            answer = f"{i} is it" if good else f"no no {i}"
            row = {"prompt": f"what is {i}?", "completion": answer, "label": good}
            if i % 2:
                row["prompt"] = [{"role": "user", "content": row["prompt"]}]
                row["completion"] = [{"role": "assistant", "content": answer}]
            out.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFEVO_CACHE", str(tmp_path / "cache"))
    return open_model(random_model("random:tiny?seed=0"))


def test_from_the_file_to_the_fit(model, file, tmp_path):
    """Desirable replies gain against the reference, the others lose; the loss begins where
    log-ratios and KL are zero: half of every weight."""
    tokenizer, examples = load_tokenizer(model.path), []
    for row in read_examples(file):
        example = render_example(tokenizer, row["id"], row["messages"], row["completions"], 512)
        examples.append(labelled(example, row["label"]))
    assert [len(e.completions[0].tokens) > 0 for e in examples] == [i % 3 > 0 for i in range(24)]
    trainer = JaxTrainer(model.config, model.load(), tokenizer, base_hash=model.hash)
    rows = trainer.fit(examples, KTO, SETTINGS, tmp_path / "fit").metrics
    assert rows[0]["loss"] == pytest.approx((16 * 1.3 + 8 * 0.7) / 24 / 2, abs=1e-4)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["reward_chosen"] > 0 > rows[-1]["reward_rejected"]
    assert "margin" not in rows[-1] and rows[-1]["examples"] == 24


def test_the_check_counts_labels_and_finds_contradictions(file):
    assert check(file).sound
    text = report(file, check(file))
    assert "16 rows labelled desirable" in text and "8 rows labelled not desirable" in text
    first = json.loads(file.read_text().splitlines()[0])
    with file.open("a") as out:
        out.write(json.dumps(first | {"label": not first["label"]}) + "\n")
        out.write(json.dumps(first | {"label": 1, "id": "number"}) + "\n")
    faults = check(file).faults
    assert faults.pop("content that came before with the other label") == ["25"]
    assert list(faults.values()) == [["26"]] and "'label'" in next(iter(faults))


def test_a_label_alone_is_for_kto(make_example):
    half = labelled(make_example("half", [1], [2, 3]), False)
    check_examples([half], pairs=True, labels=KTO.takes_labels, max_length=16)
    for objective in (Objective("dpo"), Objective("dpo+0.5*kto"), Objective("kto", sft_weight=1.0)):
        assert not objective.takes_labels
        with pytest.raises(UserError, match=r"an empty completion: 1 \(half\)"):
            check_examples([half], pairs=True, labels=objective.takes_labels, max_length=16)
    with pytest.raises(UserError, match="a label goes with one completion"):
        labelled(make_example("pair", [1], [2], [3]), True)
    nothing = dataclasses.replace(half, completions=(half.completions[0],) * 2)
    with pytest.raises(UserError, match="an empty completion"):
        check_examples([nothing], pairs=True, labels=True, max_length=16)
