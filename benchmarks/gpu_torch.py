"""The other side of `gpu.py`: transformers, peft and TRL with their best settings for one card.

bfloat16, torch's own fused attention (flash-attn and Liger where they are installed), recomputed
layers, fused AdamW; in DPO the reference log-probs are computed before; in decoding a static cache,
for which transformers compiles the step.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable

import gpu
import peft
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from selfevo_jax.models.presets import preset
from selfevo_jax.weights.hf_config import config_to_json

SIZES = gpu.PRESETS[sys.argv[1]]
ON_GPU = torch.cuda.is_available()
DEVICE, DTYPE = "cuda" if ON_GPU else "cpu", getattr(torch, SIZES.dtype)
INSTALLED = {
    name: importlib.util.find_spec(name) is not None for name in ("flash_attn", "liger_kernel")
}
FLASH, LIGER = INSTALLED.values()


def model_of() -> transformers.PreTrainedModel:
    """Random weights of the preset's shapes."""
    fields = config_to_json(preset(SIZES.model))
    del fields["architectures"]
    config = transformers.CONFIG_MAPPING[fields.pop("model_type")](**fields)
    with torch.device(DEVICE):
        return transformers.AutoModelForCausalLM.from_config(
            config, dtype=DTYPE, attn_implementation="flash_attention_2" if FLASH else "sdpa"
        )


MODEL = model_of()
VOCAB = MODEL.config.vocab_size


def timed(run: Callable[[], object]) -> float:
    """Seconds until the card has done what `run` asks of it."""
    clock = time.perf_counter()
    run()
    if ON_GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - clock


def rates(_: str) -> None:
    """A large product, and a copy in memory (bytes read and written)."""
    side, count = SIZES.matmul, SIZES.copied // 4
    left, right = (torch.ones((side, side), device=DEVICE, dtype=DTYPE) for _ in range(2))
    values, into = (torch.zeros(count, device=DEVICE) for _ in range(2))
    timed(lambda: (left @ right, into.copy_(values)))
    gpu.answer(device=torch.cuda.get_device_name() if ON_GPU else "cpu")
    while gpu.my_turn():
        matmul, copied = timed(lambda: left @ right), timed(lambda: into.copy_(values))
        gpu.answer(matmul_flops=2 * side**3 / matmul, copy_bytes=8 * count / copied)


class Turns(transformers.TrainerCallback):
    """Holds a trainer after each step until it is its turn again; two steps are the warm-up."""

    def on_step_begin(self, *_, **__) -> None:
        self.clock = time.perf_counter()

    def on_step_end(self, args, state, control, **_) -> None:
        if ON_GPU:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self.clock
        if state.global_step > 1:
            gpu.answer(**({"seconds": seconds} if state.global_step > 2 else {}))
            control.should_training_stop = not gpu.my_turn()


def train(objective: str) -> None:
    """TRL's trainer in its own loop."""
    global MODEL
    words = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<pad>"))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"
    )
    rows = gpu.examples(SIZES, VOCAB, 2 if objective == "dpo" else 1)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder, "per_device_train_batch_size": SIZES.micro, "max_steps": 1000,
            "gradient_accumulation_steps": SIZES.rows // SIZES.micro, "learning_rate": 1e-5,
            "lr_scheduler_type": "constant", "logging_strategy": "no", "save_strategy": "no",
            "report_to": "none", "gradient_checkpointing": ON_GPU, "use_cpu": not ON_GPU,
            "gradient_checkpointing_kwargs": {"use_reentrant": False}, "disable_tqdm": True,
            "bf16": DTYPE == torch.bfloat16, "max_length": None, "remove_unused_columns": False,
            "use_liger_kernel": LIGER, "optim": "adamw_torch_fused" if ON_GPU else "adamw_torch",
        }  # fmt: skip
        lora = peft.LoraConfig(r=gpu.RANK, lora_alpha=gpu.RANK, target_modules="all-linear")
        common = {
            "model": MODEL, "processing_class": tokenizer, "peft_config": lora,
            "callbacks": [Turns()],
        }  # fmt: skip
        trainer = (_dpo if objective == "dpo" else _sft)(rows, settings, common)
        trainer.train()
    MODEL = trainer.model.unload()
    MODEL.gradient_checkpointing_disable()
    if ON_GPU:
        torch.cuda.empty_cache()


def _sft(rows: list, settings: dict, common: dict) -> transformers.Trainer:
    data = [{"input_ids": p + c, "completion_mask": [0] * len(p) + [1] * len(c)} for p, c in rows]
    config = trl.SFTConfig(**settings, completion_only_loss=True, padding_free=FLASH)
    return trl.SFTTrainer(args=config, train_dataset=Dataset.from_list(data), **common)


def _dpo(rows: list, settings: dict, common: dict) -> transformers.Trainer:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")

    class Ready(trl.DPOTrainer):
        def _prepare_dataset(self, dataset, *_):
            return dataset  # token ids already

    config = trl.DPOConfig(**settings, precompute_ref_log_probs=True)
    data = Dataset.from_list([dict(zip(names, row, strict=True)) for row in rows])
    return Ready(args=config, train_dataset=data, **common)


@torch.inference_mode()
def generate(batch: int, context: int, new: int) -> float:
    """Seconds of exactly `new` tokens after each of `batch` random prompts."""
    ids_bt = torch.randint(5, VOCAB, (batch, context), device=DEVICE)
    return timed(
        lambda: MODEL.generate(
            ids_bt, attention_mask=torch.ones_like(ids_bt), max_new_tokens=new, min_new_tokens=new,
            do_sample=True, top_k=0, top_p=1.0, temperature=1.0, pad_token_id=0, eos_token_id=1,
            use_cache=True,
            cache_implementation="static" if new > 1 else "dynamic",
        )
    )  # fmt: skip


def prefill(_: str) -> None:
    """Reading prompts, and one token of each."""
    MODEL.eval()
    count, length = SIZES.read
    generate(count, length, 1)
    gpu.answer()
    while gpu.my_turn():
        gpu.answer(seconds=generate(count, length, 1))


def decode(batch: str) -> None:
    """A longer answer's seconds less those of a shorter one."""
    MODEL.eval()
    short, long = SIZES.steps
    for new in (long, short, long):
        generate(int(batch), SIZES.context, new)
    gpu.answer()
    while gpu.my_turn():
        shorter = generate(int(batch), SIZES.context, short)
        gpu.answer(seconds=generate(int(batch), SIZES.context, long) - shorter)


if __name__ == "__main__":
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    gpu.serve({
        "rates": rates, "sft": lambda _: train("sft"), "dpo": lambda _: train("dpo"),
        "prefill": prefill, "decode": decode,
    })  # fmt: skip
