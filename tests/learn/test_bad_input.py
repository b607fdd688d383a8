"""What must never be trained on silently, from text to trainer: refused, by id, before any step."""

import jax
import numpy as np
import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.evolve.tiny import random_model
from selfevo_jax.learn.losses import Objective
from selfevo_jax.learn.trainer import FitSettings, JaxTrainer
from selfevo_jax.models.lora import LoraConfig, init_lora
from selfevo_jax.text.render import render_conversation, render_example
from selfevo_jax.text.tokenizer import load_tokenizer
from selfevo_jax.weights.model_files import open_model
from selfevo_jax.weights.peft import load_peft, save_peft

SETTINGS = FitSettings(steps=1, batch_size=2, lora=LoraConfig(rank=2))
ASK = [{"role": "user", "content": "2 + 2?"}]
TALK = [*ASK, {"role": "assistant", "content": "4"}, {"role": "user", "content": "sure?"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFEVO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield open_model(random_model("random:tiny?seed=0"))


@pytest.fixture(scope="module")
def tokenizer(model):
    return load_tokenizer(model.path)


@pytest.fixture(scope="module")
def trainer(model, tokenizer):
    return JaxTrainer(model.config, model.load(), tokenizer, base_hash=model.hash)


def pair(tokenizer, id, chosen="4", rejected="5"):
    return render_example(tokenizer, id, ASK, (chosen, rejected), 512)


def spoken_prompt(tokenizer):
    """A pair whose prompt carries loss tokens, as a conversation's earlier answer would."""
    whole = render_conversation(tokenizer, "label outside", [*TALK, *TALK[1:2]], 512)
    span = type(whole.prompt)(whole.prompt.tokens, np.ones(len(whole.prompt.tokens), bool))
    return type(whole)("label outside", span, pair(tokenizer, "x").completions)


CASES = {
    "equal sides": (lambda t: pair(t, "same", "4", "4"), r"equal chosen and rejected: 1 \(same\)"),
    "a label outside the completion": (
        spoken_prompt, r"loss tokens in the prompt of a pair: 1 \(label outside\)"
    ),
    "a repeated id": (lambda t: pair(t, "fine"), r"a repeated id: 1 \(fine\)"),
    "too long": (lambda t: pair(t, "long", "4" * 9000), "long"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_pairs_that_teach_nothing_are_refused_by_id(trainer, tokenizer, tmp_path, name):
    make, message = CASES[name]
    with pytest.raises(UserError, match=message):
        examples = [pair(tokenizer, "fine"), make(tokenizer)]
        trainer.fit(examples, Objective("dpo"), SETTINGS, tmp_path)
    assert not list(tmp_path.iterdir())  # not a step, not a file


def test_a_completion_is_never_cut_to_fit(tokenizer):
    """A limit that leaves nothing of the completion, or only a part, is an error with the id."""
    room = len(pair(tokenizer, "x").prompt.tokens)
    for limit in (room, room + 1):
        with pytest.raises(UserError, match=rf"record cut: it has {room + 2} tokens"):
            render_example(tokenizer, "cut", ASK, ("4", "5"), limit)


def test_an_empty_completion_is_refused_where_no_end_is_written(trainer, tokenizer, tmp_path):
    """With a template the end-of-turn token is still there to learn; a text alone has nothing."""
    with pytest.raises(UserError, match="record empty: it has no token to learn"):
        render_example(tokenizer, "empty", "2 + 2 =", ("",), 512, end=False)
    blank = pair(tokenizer, "blank", chosen="")
    assert blank.completions[0].tokens.tolist() == list(tokenizer.eos_ids[:1])
    nothing = type(blank.prompt)(np.zeros(0, np.int32), np.zeros(0, bool))
    emptied = type(blank)("emptied", blank.prompt, (nothing, blank.completions[1]))
    with pytest.raises(UserError, match=r"an empty completion: 1 \(emptied\)"):
        trainer.fit([emptied], Objective("dpo"), SETTINGS, tmp_path)


def test_an_adapter_for_another_base_is_refused(model, tmp_path):
    """By the hash of its base, though every shape fits."""
    tree = init_lora(model.config, LoraConfig(rank=2), jax.random.key(0))
    save_peft(tmp_path / "a", tree, LoraConfig(rank=2), "another", "f" * 64)
    with pytest.raises(UserError, match="was trained on the base with hash ffffffffffff"):
        load_peft(tmp_path / "a", model.config, model.hash)
