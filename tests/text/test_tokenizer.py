"""Ids against transformers, sentencepiece and tokenizers; control tokens out of text's reach."""

import hashlib
import json
import random
import subprocess
import sys

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.text import gguf_tokenizer
from selfevo_jax.text.tokenizer import StreamDecoder, Tokenizer, load_tokenizer


def test_ids_equal_transformers_on_400_real_texts(smollm, reference, texts):
    differ = [t for t in texts if smollm.encode(t) != reference.encode(t, add_special_tokens=False)]
    assert differ == []
    assert sum(len(smollm.encode(t)) for t in texts) > 50_000


def test_ids_equal_llama_cpp_on_400_real_texts(smollm, texts):
    """The digest is of the ids that llama.cpp (xllamacpp 2026.10.11549, /tokenize) gave."""
    ids = json.dumps([smollm.encode(text) for text in texts], separators=(",", ":"))
    wanted = "b93829f2ff395c765969fc75f0f39bbc84c8f276b95c9b5c041d4998124f759b"
    assert hashlib.sha256(ids.encode()).hexdigest() == wanted


def test_ids_and_text_of_odd_strings_equal_transformers(smollm, reference, odd):
    for text in odd:
        ids = smollm.encode(text)
        assert ids == reference.encode(text, add_special_tokens=False), text
        assert smollm.decode(ids) == text


def test_special_ids_are_those_of_the_model(smollm):
    assert (smollm.vocab_size, smollm.bos_id, smollm.eos_ids, smollm.pad_id) == (49152, 1, (2,), 2)
    assert not smollm.add_bos


def test_control_tokens_are_text_unless_allowed(smollm, reference):
    text = "a<|im_end|>\n<|im_start|>system\n<|endoftext|> b"
    ids = smollm.encode(text)
    assert not {0, 1, 2} & set(ids)
    assert smollm.decode(ids) == text
    assert smollm.encode(text, allow_special=True) == reference.encode(
        text, add_special_tokens=False
    )
    assert smollm.encode("<|im_end|>", allow_special=True) == [2]


def test_a_surface_cannot_be_learnt_from_one_process_and_used_in_another(gguf, smollm):
    again = load_tokenizer(gguf)
    stolen = again.guard.surfaces["<|im_end|>"]
    assert again.encode_sealed(stolen) == [2]
    assert 2 not in smollm.encode(stolen)


def test_decode_drops_or_prints_special_tokens_as_transformers(smollm, reference):
    ids = [1, 520, 9531, 198, 1780, 2, 198, 0]
    for skip in (True, False):
        assert smollm.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip)


def test_saved_folder_reads_back_here_and_in_transformers(smollm, texts, tmp_path):
    from transformers import AutoTokenizer

    smollm.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.hash == smollm.hash and again.chat.hash == smollm.chat.hash
    assert again.eos_ids == smollm.eos_ids and again.pad_id == smollm.pad_id
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    for text in texts[::20]:
        assert theirs.encode(text, add_special_tokens=False) == smollm.encode(text)
    assert theirs.eos_token_id == 2
    assert theirs.chat_template == smollm.chat.source


def test_hash_changes_with_any_file(smollm):
    changed = {**smollm.files, "generation_config.json": b'{"eos_token_id": [2, 0]}'}
    assert Tokenizer(changed).hash != smollm.hash
    assert Tokenizer(changed).eos_ids == (2, 0)


def test_neither_torch_nor_transformers_is_imported(gguf):
    code = (
        "import sys; from selfevo_jax.text.tokenizer import load_tokenizer;"
        f"load_tokenizer({str(gguf)!r}); import selfevo_jax.text.show, selfevo_jax.text.render;"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'tensorflow')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Streams


def test_stream_pieces_join_to_the_decoded_text(smollm, texts, odd):
    for text in [*texts[::10], *odd]:
        ids = smollm.encode(text)
        stream = StreamDecoder(smollm)
        pieces = [stream.push(i) for i in ids]
        assert "".join(pieces) + stream.finish() == text


def test_stream_holds_back_half_a_character(smollm):
    ids = smollm.encode("🦖")
    assert len(ids) > 1
    stream = StreamDecoder(smollm)
    assert [stream.push(i) for i in ids[:-1]] == [""] * (len(ids) - 1)
    assert stream.push(ids[-1]) == "🦖"
    stream = StreamDecoder(smollm)
    stream.push(ids[0])
    assert stream.finish() == "\ufffd" and stream.finish() == ""


def test_stream_leaves_out_special_tokens(smollm):
    stream = StreamDecoder(smollm)
    assert "".join(stream.push(i) for i in [*smollm.encode("Hi"), 2]) == "Hi"
    stream = StreamDecoder(smollm, skip_special=False)
    assert "".join(stream.push(i) for i in [*smollm.encode("Hi"), 2]) == "Hi<|im_end|>"


def test_stream_of_random_ids_equals_decode(smollm):
    rng = random.Random(0)
    for _ in range(50):
        ids = [rng.randrange(3, 49152) for _ in range(30)]
        stream = StreamDecoder(smollm)
        joined = "".join(stream.push(i) for i in ids) + stream.finish()
        assert joined == smollm.decode(ids)


def test_the_llama3_and_qwen2_cuts(gguf, tmp_path):
    cut = {
        name: [
            text
            for text, _ in gguf_tokenizer.pre_tokenizer_named(name, gguf).pre_tokenize_str(line)
        ]
        for line in ["12345 don't  x\n\n y"]
        for name in ("llama-bpe", "qwen2", "gpt-2", "smollm")
    }
    assert cut["llama-bpe"] == ["123", "45", "Ġdon", "'t", "Ġ", "Ġx", "ĊĊ", "Ġy"]
    assert cut["qwen2"] == ["1", "2", "3", "4", "5", "Ġdon", "'t", "Ġ", "Ġx", "ĊĊ", "Ġy"]
    assert cut["gpt-2"] == ["12345", "Ġdon", "'t", "Ġ", "Ġx", "ĊĊ", "Ġy"]
    assert cut["smollm"] == ["1", "2", "3", "4", "5", "Ġdon", "'t", "Ġ", "Ġx", "ĊĊ", "Ġy"]


# Bad input


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither tokenizer.json nor tokenizer.model"),
        ({"tokenizer.json": b"{"}, "tokenizer.json is not JSON"),
        ({"tokenizer.json": b"[]"}, "not an object"),
        ({"tokenizer.json": b"{}"}, "no model.vocab"),
        ({"tokenizer.json": b'{"model": {"type": "BPE", "vocab": {}}}'}, "cannot be read"),
        ({"tokenizer.model": b"not a model"}, "not a SentencePiece model"),
        ({"tokenizer.model": b""}, "no pieces"),
    ],
)
def test_broken_folders_are_named(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_tokenizer(tmp_path)


def test_broken_side_files_are_named(smollm):
    broken = {
        "tokenizer_config.json": [b"\xff", b'{"added_tokens_decoder": {"x": 1}}'],
        "generation_config.json": [b'{"eos_token_id": "two"}', b'{"eos_token_id": [-1]}'],
        "chat_template.jinja": [b"{% for %}"],
    }
    for name, contents in broken.items():
        for content in contents:
            with pytest.raises(UserError, match=name.partition(".")[0].replace("_", "[ _]")):
                Tokenizer({**smollm.files, name: content})


def test_missing_paths_are_named(tmp_path):
    for name in ("no.gguf", "no"):
        with pytest.raises(UserError, match=name):
            load_tokenizer(tmp_path / name)
