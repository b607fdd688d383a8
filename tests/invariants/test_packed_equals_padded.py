"""The packed, prefix-shared loss and its gradients against a plain padded one in torch.

The reference knows nothing of ours: transformers' LLaMA, one padded row per sequence, the whole
logits tensor, LoRA as explicit weight differences, torch's autograd.
"""

import functools

import jax
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from selfevo_jax.learn.batches import Batches
from selfevo_jax.learn.logps import sequence_sums, target_logps
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.optimizer import optimizer
from selfevo_jax.learn.step import Frozen, Recipe, Steps
from selfevo_jax.models.config import Compute, ModelConfig
from selfevo_jax.models.lora import LoraConfig, adapter, init_lora
from selfevo_jax.parallel.mesh import make_mesh
from selfevo_jax.text.render import TokenExample, TokenSpan

LORA = LoraConfig(rank=4, alpha=8.0)
PROJECTIONS = {
    "attn": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
}
HF_BLOCK = {"attn": "self_attn", "mlp": "mlp"}


def sizes(tied):
    return ModelConfig(
        vocab_size=150, hidden_size=32, intermediate_size=48, num_layers=2, num_heads=4,
        num_kv_heads=2, head_dim=8, max_position=128, tie_embeddings=tied,
    )  # fmt: skip


def torch_model(tied):
    torch.manual_seed(0)
    cfg = sizes(tied)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=cfg.vocab_size, hidden_size=cfg.hidden_size,
            num_hidden_layers=cfg.num_layers, rope_theta=cfg.rope_theta,
            intermediate_size=cfg.intermediate_size, num_attention_heads=cfg.num_heads,
            num_key_value_heads=cfg.num_kv_heads, head_dim=cfg.head_dim, rms_norm_eps=cfg.norm_eps,
            max_position_embeddings=cfg.max_position, tie_word_embeddings=tied,
            attn_implementation="eager",
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.float().eval()


def our_params(model, tied):
    state = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    layers = range(sizes(tied).num_layers)

    def stacked(name, transpose=True):
        return np.stack([
            state[f"model.layers.{i}.{name}.weight"].T if transpose
            else state[f"model.layers.{i}.{name}.weight"] for i in layers
        ])  # fmt: skip

    tree = {
        "embed_tokens": {"embedding": state["model.embed_tokens.weight"]},
        "final_norm": {"scale": state["model.norm.weight"]},
        "layers": {
            "attn_norm": {"scale": stacked("input_layernorm", False)},
            "mlp_norm": {"scale": stacked("post_attention_layernorm", False)},
            **{
                block: {name: {"kernel": stacked(f"{HF_BLOCK[block]}.{name}")} for name in names}
                for block, names in PROJECTIONS.items()
            },
        },
    }
    if not tied:
        tree["lm_head"] = {"kernel": state["lm_head.weight"].T}
    return jax.tree.map(np.ascontiguousarray, tree)


def random_lora(tied, seed):
    """A LoRA tree whose `b` is not zero, so that every gradient is."""
    tree = init_lora(sizes(tied), LORA, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf) + rng.normal(0, 0.1, leaf.shape).astype("f4"), tree
    )


def torch_sums(model, examples, leaves):
    """[example, completion] log-prob sums: padded rows, whole logits; LoRA from torch leaves."""
    weights = {
        f"model.layers.{layer}.{HF_BLOCK[block]}.{name}.weight":
            model.state_dict()[f"model.layers.{layer}.{HF_BLOCK[block]}.{name}.weight"]
            + LORA.scaling * (leaves[block][name]["a"][layer] @ leaves[block][name]["b"][layer]).T
        for block, names in PROJECTIONS.items() for name in names
        for layer in range(model.config.num_hidden_layers)
    } if leaves else {}  # fmt: skip
    rows = [(e.prompt, c) for e in examples for c in e.completions]
    width = max(len(p.tokens) + len(c.tokens) for p, c in rows)
    ids, mask, loss = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(3))
    for i, (prompt, completion) in enumerate(rows):
        size = len(prompt.tokens) + len(completion.tokens)
        ids[i, :size] = torch.tensor(np.concatenate([prompt.tokens, completion.tokens]))
        mask[i, :size] = 1
        loss[i, :size] = torch.tensor(np.concatenate([prompt.loss, completion.loss]))
    logits = torch.func.functional_call(model, weights, (ids,), {"attention_mask": mask}).logits
    logps = torch.log_softmax(logits[:, :-1].float(), -1).gather(-1, ids[:, 1:, None])[..., 0]
    return (logps * loss[:, 1:]).sum(1).reshape(len(examples), -1)


def torch_loss(objective, sums, reference, examples):
    counts = torch.tensor([[int(c.loss.sum()) for c in e.completions] for e in examples])
    if objective.loss == "sft":
        return -sums.sum() / counts.sum()
    z = (sums - reference)[:, 0] - (sums - reference)[:, 1]
    loss = -torch.nn.functional.logsigmoid(objective.beta * z).mean()
    return loss - objective.nll_weight * sums[:, 0].sum() / counts[:, 0].sum()


def random_examples(completions, count=7):
    rng = np.random.default_rng(9)

    def span(low, high, loss):
        tokens = rng.integers(1, 150, rng.integers(low, high)).astype(np.int32)
        return TokenSpan(tokens, np.full(len(tokens), loss))

    return [
        TokenExample(
            f"e{i}", span(1, 20, False), tuple(span(1, 15, True) for _ in range(completions))
        )
        for i in range(count)
    ]


def our_loss_and_grads(
    objective, tied, params, lora_tree, examples, reference, *, rows, compute, row_length=None
):
    """One whole batch through the packed step; `lora_tree` None trains all parameters."""
    lora = None if lora_tree is None else LORA
    trainable = params if lora_tree is None else lora_tree
    plan = Batches(
        examples, batch_size=len(examples), steps=1, seed=0, rows=rows, row_length=row_length
    )
    recipe = Recipe(sizes(tied), objective, lora, compute, chunk=16)
    steps = Steps(recipe, optimizer("adamw"), make_mesh(), trainable)
    micros = []
    for micro in plan.micro_batches(0):
        table = np.where(micro.examples_be[..., None] >= 0, reference[micro.examples_be], 0).astype(
            "f4"
        )
        micros.append((micro, Frozen(table, np.zeros_like(table))))
    grads, sums = steps.gradient(trainable, params if lora else {}, micros, jax.random.key(0))
    return float(sums["loss"]), jax.tree.map(np.asarray, grads), len(micros)


CASES = [
    (Objective("dpo", beta=0.3, sft_weight=0.2), 2, 1, Compute(), True),
    (Objective("dpo", beta=0.3, sft_weight=0.2), 2, 3, Compute(remat="full"), False),
    (Objective("dpo", beta=0.3), 2, 2, Compute(remat="dots"), True),
    (Objective("sft"), 1, 2, Compute(), False),
]


@pytest.mark.parametrize(("objective", "completions", "rows", "compute", "tied"), CASES)
def test_lora_loss_and_gradients(objective, completions, rows, compute, tied):
    model, lora_tree = torch_model(tied), random_lora(tied, 1)
    examples = random_examples(completions)
    with torch.no_grad():
        reference = torch_sums(model, examples, None)
    leaves = jax.tree.map(lambda x: torch.tensor(x, requires_grad=True), lora_tree)["layers"]
    loss = torch_loss(objective, torch_sums(model, examples, leaves), reference, examples)
    loss.backward()
    mine, grads, _ = our_loss_and_grads(
        objective, tied, our_params(model, tied), lora_tree, examples, reference.numpy(),
        rows=rows, compute=compute,
    )  # fmt: skip
    assert mine == pytest.approx(loss.item(), abs=1e-5)
    expected = jax.tree.map(lambda leaf: leaf.grad.numpy(), leaves)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads["layers"], expected
    )


@pytest.mark.parametrize("tied", [True, False])
def test_full_gradients(tied):
    """All parameters trained: the head's and the embedding's gradients too."""
    model, objective = torch_model(tied), Objective("dpo", beta=0.3, sft_weight=0.2)
    examples = random_examples(2)
    reference = torch.full((len(examples), 2), -20.0)
    params, named = our_params(model, tied), dict(model.named_parameters())
    loss = torch_loss(objective, torch_sums(model, examples, None), reference, examples)
    loss.backward()
    mine, grads, _ = our_loss_and_grads(
        objective, tied, params, None, examples, reference.numpy(), rows=2, compute=Compute()
    )
    assert mine == pytest.approx(loss.item(), abs=1e-5)
    close = {
        "model.embed_tokens.weight": grads["embed_tokens"]["embedding"],
        "model.norm.weight": grads["final_norm"]["scale"],
        "model.layers.1.self_attn.k_proj.weight": grads["layers"]["attn"]["k_proj"]["kernel"][1].T,
        "model.layers.0.mlp.down_proj.weight": grads["layers"]["mlp"]["down_proj"]["kernel"][0].T,
        "model.layers.0.input_layernorm.weight": grads["layers"]["attn_norm"]["scale"][0],
    }
    if not tied:
        close["lm_head.weight"] = grads["lm_head"]["kernel"].T
    for name, grad in close.items():
        np.testing.assert_allclose(grad, named[name].grad.numpy(), atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("chunk", "train_head"), [(7, False), (1000, False), (7, True)])
def test_chunk_size_changes_nothing(chunk, train_head):
    examples, tree = random_examples(2), random_lora(True, 1)
    params = our_params(torch_model(True), True)
    plan = Batches(examples, batch_size=7, steps=1, seed=0, rows=4)
    (micro,) = plan.micro_batches(0)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    @functools.partial(jax.value_and_grad, has_aux=True)
    def total(lora_tree, size, head):
        sums = sequence_sums(
            sizes(True), params, adapter(lora_tree, LORA), micro, train_head=head, chunk=size
        )
        return (sums * np.arange(sums.size).reshape(sums.shape)).sum() / 1000, sums

    (_, expected), grads = total(tree, 16, False)
    (_, sums), other = total(tree, chunk, train_head)
    np.testing.assert_allclose(sums, expected, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), other, grads)


def test_final_soft_cap_and_its_gradient():
    """Gemma-2's soft cap on logits: the frozen-head path equals torch's autograd."""
    rng = np.random.default_rng(0)
    config = ModelConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_layers=1, num_heads=1,
        num_kv_heads=1, head_dim=16, max_position=8, tie_embeddings=True, final_softcap=2.0,
    )  # fmt: skip
    table = rng.normal(size=(50, 16)).astype("f4")
    hidden, targets = rng.normal(size=(2, 9, 16)).astype("f4"), rng.integers(0, 50, (2, 9))

    def mine(h):
        head = {"embed_tokens": {"embedding": table}}
        return target_logps(config, head, h, targets, np.ones((2, 9), bool), chunk=4).sum()

    leaf = torch.tensor(hidden, requires_grad=True)
    logits = 2.0 * torch.tanh(leaf @ torch.tensor(table).T / 2.0)
    expected = torch.log_softmax(logits, -1).gather(-1, torch.tensor(targets)[..., None]).sum()
    expected.backward()
    value, grad = jax.value_and_grad(mine)(hidden)
    assert float(value) == pytest.approx(expected.item(), rel=1e-5)
    np.testing.assert_allclose(grad, leaf.grad.numpy(), atol=1e-5)


def test_one_batch_of_eight_equals_four_of_two_accumulated():
    """Rows one at a time against all at once: the same loss and gradient. ORPO joins a mean over
    pairs and one over tokens, so a wrong denominator of either would show."""
    examples, tree = random_examples(2, 8), random_lora(True, 1)
    params, reference = our_params(torch_model(True), True), np.full((8, 2), -20.0)
    results = [
        our_loss_and_grads(
            Objective("orpo"),
            True,
            params,
            tree,
            examples,
            reference,
            rows=rows,
            compute=Compute(),
            row_length=50,
        )
        for rows in (1, 8)
    ]
    (many, many_grads, micros), (whole, whole_grads, one) = results
    assert micros >= 4 and one == 1  # really accumulated, really at once
    assert many == pytest.approx(whole, abs=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), many_grads, whole_grads)
