"""Thousands of broken inputs: each gives a right result or one clear message, never a crash.

`make fuzz` makes ten thousand and more of every kind.

Headers of safetensors and GGUF files are fuzzed beside their readers, in tests/weights.
"""

import json
import os
from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfevo_jax.config import flat, load_config
from selfevo_jax.errors import UserError
from selfevo_jax.evaluate.file_task import FileTask
from selfevo_jax.evaluate.tasks import FILE_TASKS
from selfevo_jax.evolve.launch import check_config
from selfevo_jax.evolve.training import training_of
from selfevo_jax.models.config import ModelConfig
from selfevo_jax.models.lora import LoraConfig, init_lora
from selfevo_jax.models.presets import preset
from selfevo_jax.text import check, datasets
from selfevo_jax.text.prompt_files import read_prompt
from selfevo_jax.text.tokenizer import Tokenizer
from selfevo_jax.weights.hf_config import config_from_json, config_to_json
from selfevo_jax.weights.peft import load_peft, save_peft

TIMES = int(os.environ.get("SELFEVO_FUZZ", "1"))  # so many times the usual examples
FUZZ = settings(
    max_examples=150 * TIMES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
VALUES = st.recursive(
    SCALARS | st.sampled_from([-1, 0, 1, 2**63, 1e308, "", "user", "assistant", "\ud800", "../x"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
TURN = st.fixed_dictionaries(
    {}, optional={"role": VALUES, "content": VALUES, "from": VALUES, "value": VALUES}
)
FIELDS = (
    "id prompt chosen rejected completion messages text instruction input output history system "
    "conversations label images"
).split()
ROWS = st.fixed_dictionaries(
    {}, optional={name: VALUES | st.lists(TURN, max_size=3) for name in FIELDS}
)


def written(row) -> bytes:
    """The row as a line: lone surrogates, NaN and huge numbers are written as Python would."""
    return json.dumps(row).encode() + b"\n"


@FUZZ
@given(rows=st.lists(ROWS, min_size=1, max_size=3), noise=st.binary(max_size=6), at=st.integers(0))
def test_rows_of_any_shape(rows, noise, at, tmp_path):
    """Examples that come out are whole; what does not is named with its line."""
    content = b"".join(map(written, rows))
    at %= len(content)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content[:at] + noise + content[at:])
    try:
        for example in datasets.read_examples(path):
            assert set(example) == {"id", "messages", "completions"}
            turns = [m["content"] for m in example["messages"]] + list(example["completions"])
            assert all(isinstance(text, str) for text in turns)
    except UserError as error:
        assert "rows.jsonl" in str(error)
    try:
        check.report(path, check.check(path))
    except UserError as error:
        assert "rows.jsonl" in str(error)


@FUZZ
@given(lines=st.lists(st.binary(max_size=60) | VALUES.map(written), max_size=4))
def test_lines_of_any_kind(lines, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        assert all(isinstance(row, dict) for _, row in datasets.numbered_rows(path))
    except UserError as error:
        assert "rows.jsonl" in str(error)


QUICKSTART = f"{Path(__file__).parents[2] / 'configs/quickstart.py'}:tiny"
KEYS = [*flat(load_config(QUICKSTART)), "task.args.x", "learn", "x", ""]


@FUZZ
@given(
    key=st.sampled_from(KEYS) | st.text(max_size=12),
    value=SCALARS.map(str) | VALUES.map(repr) | st.sampled_from(["(1,", "1e999", "none", "[]"]),
)
def test_settings_of_any_kind(key, value):
    """A config whose settings have the types of their defaults, or one message."""
    try:
        config = load_config(QUICKSTART, [f"{key}={value}"])
        check_config(config)
        training_of(config)
    except UserError as error:
        assert len(str(error)) > 10
        return
    known = flat(load_config(QUICKSTART))
    for name, found in flat(config).items():
        if known.get(name) is not None and not name.startswith("task.args"):
            assert isinstance(found, type(known[name])), name


CONFIG = config_to_json(preset("smollm2_135m"))


@FUZZ
@given(changes=st.dictionaries(st.sampled_from([*CONFIG, "auto_map", "x"]), VALUES, min_size=1))
def test_model_configs_of_any_kind(changes):
    try:
        config = config_from_json(CONFIG | changes)
    except UserError:
        return
    assert isinstance(config, ModelConfig)
    sizes = (config.vocab_size, config.hidden_size, config.num_layers, config.head_dim)
    assert all(type(size) is int and size > 0 for size in sizes)
    assert "auto_map" not in changes or not changes["auto_map"]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A sound adapter for the preset `tiny`, and the bytes of its two files."""
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    lora = LoraConfig(rank=2)
    save_peft(folder, init_lora(preset("tiny"), lora, jax.random.key(0)), lora, "base")
    return folder, {path.name: path.read_bytes() for path in folder.iterdir()}


@FUZZ
@given(data=st.data())
def test_adapters_with_any_config(adapter, data):
    folder, files = adapter
    config = json.loads(files["adapter_config.json"])
    changes = st.dictionaries(st.sampled_from([*config, "x"]), VALUES, min_size=1, max_size=3)
    (folder / "adapter_config.json").write_text(json.dumps(config | data.draw(changes)))
    try:
        _, lora = load_peft(folder, preset("tiny"))
    except UserError as error:
        assert "adapter" in str(error)
    else:
        assert lora.rank == 2 and lora.alpha > 0
    finally:
        (folder / "adapter_config.json").write_bytes(files["adapter_config.json"])


@FUZZ
@given(at=st.integers(0), cut=st.booleans(), bit=st.integers(0, 7))
def test_adapters_with_damaged_weights(adapter, at, cut, bit):
    """A damaged header is refused; a damaged number is a number (checksums of runs find those)."""
    folder, files = adapter
    content = bytearray(files["adapter_model.safetensors"])
    at %= len(content)
    if cut:
        content = content[:at]
    else:
        content[at] ^= 1 << bit
    (folder / "adapter_model.safetensors").write_bytes(content)
    header = 8 + int.from_bytes(files["adapter_model.safetensors"][:8], "little")
    try:
        load_peft(folder, preset("tiny"))
        assert not cut
        assert at >= header or b'"__metadata__"' in files["adapter_model.safetensors"]
    except UserError as error:
        assert "adapter" in str(error)
    finally:
        (folder / "adapter_model.safetensors").write_bytes(files["adapter_model.safetensors"])


@FUZZ
@given(content=st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8")))
def test_prompt_files_of_any_kind(content, tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes(content)
    try:
        read_prompt(path)
    except UserError as error:
        assert "p.txt" in str(error)


@FUZZ
@given(
    spec=st.dictionaries(st.sampled_from(["model", "added_tokens", "pre_tokenizer", "x"]), VALUES),
    config=st.dictionaries(
        st.sampled_from(["chat_template", "eos_token", "added_tokens_decoder", "bos_token"]), VALUES
    ),
)
def test_tokenizers_of_any_kind(spec, config):
    files = {"tokenizer.json": json.dumps(spec), "tokenizer_config.json": json.dumps(config)}
    with pytest.raises(UserError):
        Tokenizer({name: text.encode() for name, text in files.items()})


@pytest.mark.parametrize("name", ["gsm8k", "svamp", "boolq", "mbpp", "squad", "strategyqa"])
@settings(parent=FUZZ, max_examples=30 * TIMES)
@given(data=st.data())
def test_task_files_of_any_kind(name, data, tmp_path):
    spec = FILE_TASKS[name]
    rows = st.fixed_dictionaries({field: VALUES for field in spec.data.fields})
    for file in set(spec.data.files.values()):
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        content = [written(row) for row in data.draw(st.lists(rows, max_size=2))]
        path.write_bytes(b"".join(content))
    try:
        list(FileTask(spec, tmp_path).prompts("test"))
    except UserError as error:
        assert str(tmp_path) in str(error) or name in str(error)
