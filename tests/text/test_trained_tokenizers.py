"""Tokenizers trained here, in every layout that models come in: folders, SentencePiece, GGUF."""

import io
import json

import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from selfevo_jax.errors import UserError
from selfevo_jax.text.render import render_example, render_prompt
from selfevo_jax.text.tokenizer import StreamDecoder, Tokenizer, load_tokenizer

# Hugging Face folders


CORPUS = [
    "The quick brown fox jumps over the lazy dog. Paris is the capital of France!",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))  # prints 3",
    "Numbers: 10, 200, 3000 and 3.14159; e-mail me at x@y.org. Don't worry, it's fine.",
    "L'été, à Zürich, coûte cher; naïve façade. Ünïcödé.",
] * 5


def write_folder(folder, engine, **config):
    engine.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def byte_level(specials):
    engine = tokenizers.Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    engine.train_from_iterator(CORPUS, trainer)
    return engine


def theirs_of(folder):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(folder))


def test_byte_level_folder_equals_transformers(tmp_path, texts, odd):
    engine = byte_level(["<s>", "</s>", "<|user|>"])
    engine.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    eos = {"__type": "AddedToken", "content": "</s>"}
    folder = write_folder(tmp_path, engine, bos_token="<s>", eos_token=eos)
    ours, theirs = load_tokenizer(folder), theirs_of(folder)
    assert ours.add_bos and ours.bos_id == 0 and ours.eos_ids == (1,) and ours.pad_id == 1
    for text in [*texts[::8], *odd]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == text
    marked = "<s>hi</s><|user|> x"
    assert ours.encode(marked, allow_special=True) == theirs.encode(
        marked, add_special_tokens=False
    )
    assert not {0, 1, 2} & set(ours.encode(marked))


def test_metaspace_folder_equals_transformers(tmp_path, texts, odd):
    engine = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(content=" ", left=1)]
    )  # fmt: skip
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    engine.train_from_iterator([line for text in CORPUS for line in text.split("\n")], trainer)
    spec = json.loads(engine.to_str())
    spec["added_tokens"] = spec["added_tokens"][:3]
    engine = tokenizers.Tokenizer.from_str(json.dumps(spec))
    folder = write_folder(tmp_path, engine, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    ours, theirs = load_tokenizer(folder), theirs_of(folder)
    for text in [*texts[::8], *odd]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    marked = "<s>hello</s> there<s>x"
    assert ours.encode(marked, allow_special=True) == theirs.encode(
        marked, add_special_tokens=False
    )
    assert not {0, 1, 2} & set(ours.encode("x<unk><s></s>"))


def test_a_turn_marker_that_its_file_calls_ordinary_is_still_out_of_reach(tmp_path):
    engine = byte_level(["<s>", "</s>"])
    engine.add_tokens(["<|turn|>", "<think>", "    "])
    template = "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
    folder = write_folder(tmp_path, engine, eos_token="</s>", chat_template=template)
    ours, theirs = load_tokenizer(folder), theirs_of(folder)
    marker, think = theirs.convert_tokens_to_ids(["<|turn|>", "<think>"])
    assert marker not in ours.encode("a<|turn|>b")
    assert marker in ours.encode("a<|turn|>b", allow_special=True)
    # Ordinary added tokens are the model's vocabulary, and text has them.
    assert ours.encode("<think>a    b") == theirs.encode("<think>a    b")
    assert think in ours.encode("<think>")


def test_merges_that_spell_a_control_token_do_not_reach_it(tmp_path):
    vocab = {"<": 0, "s": 1, ">": 2, "<s": 3, "<s>": 4}
    engine = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("<", "s"), ("<s", ">")]))
    engine.add_special_tokens(["<s>"])
    ours = load_tokenizer(write_folder(tmp_path, engine, bos_token="<s>"))
    assert ours.encode("<s>") == [3, 2]
    assert ours.encode("<s>", allow_special=True) == [4]


def test_added_tokens_of_the_config_alone_are_read(tmp_path):
    engine = byte_level(["<s>", "</s>"])
    size = engine.get_vocab_size()
    token = {"content": "<|new|>", "special": True}
    folder = write_folder(
        tmp_path, engine, eos_token="<|new|>", added_tokens_decoder={str(size): token}
    )
    ours = load_tokenizer(folder)
    assert ours.eos_ids == (size,) and ours.vocab_size == size + 1
    assert ours.encode("a<|new|>", allow_special=True)[-1] == size
    assert size not in ours.encode("a<|new|>")


# SentencePiece


def train_pieces(**options) -> bytes:
    """A tiny LLaMA-like tokenizer.model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in CORPUS for line in text.split("\n") if line]),
        model_writer=model, model_type="bpe", vocab_size=500, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        character_coverage=1.0, minloglevel=2, **options,
    )  # fmt: skip
    return model.getvalue()


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    (folder / "tokenizer.model").write_bytes(train_pieces())
    return folder


def test_piece_ids_equal_sentencepiece_and_transformers(pieces, texts, tmp_path, odd):
    from transformers import LlamaTokenizer

    ours = load_tokenizer(pieces)
    engine = sentencepiece.SentencePieceProcessor(str(pieces / "tokenizer.model"))
    theirs = LlamaTokenizer.from_pretrained(str(pieces))
    assert (ours.bos_id, ours.eos_ids, ours.vocab_size, ours.add_bos) == (1, (2,), 500, True)
    for text in [*texts[::4], *odd]:
        ids = ours.encode(text)
        assert ids == engine.encode(text), text
        assert ours.decode(ids) == engine.decode(ids) == text
        # transformers 5 writes no second space before a text that begins with one.
        if text and text[0] != " ":
            assert ids == theirs.encode(text, add_special_tokens=False), text


def test_piece_control_tokens_and_the_space_after_them(pieces):
    from transformers import LlamaTokenizer

    ours, theirs = load_tokenizer(pieces), LlamaTokenizer.from_pretrained(str(pieces))
    text = "<s>hello</s>the end"
    assert ours.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False)
    assert not {0, 1, 2} & set(ours.encode("<unk><s>x</s>"))
    assert ours.decode(ours.encode("<s>x</s>")) == "<s>x</s>"
    assert ours.decode([1, *ours.encode("x"), 2], skip_special=True) == "x"
    legacy = {**ours.files, "tokenizer_config.json": b'{"legacy": true}'}
    first, later = ours.encode("x"), Tokenizer(legacy).encode("<s>x", allow_special=True)
    assert later == [1, *first] != ours.encode("<s>x", allow_special=True)


def test_plain_prompts_are_what_transformers_encodes(pieces):
    """bos, then the text with its first space; the completion goes on without one."""
    from transformers import LlamaTokenizer

    ours = load_tokenizer(pieces)
    theirs = LlamaTokenizer.from_pretrained(str(pieces), add_bos_token=True)
    turns = [{"role": "user", "content": "Paris is"}]
    assert render_prompt(ours, turns) == theirs.encode("Paris is") != ours.encode("Paris is")
    example = render_example(ours, "r", turns, [" the capital", "the"], 99)
    prompt, spans = example.prompt.tokens.tolist(), example.completions
    assert prompt + spans[0].tokens.tolist() == theirs.encode("Paris is the capital") + [2]
    assert ours.decode([*prompt, *spans[1].tokens]) == "Paris isthe"


def test_a_control_token_that_the_model_file_matches_in_text_is_out_of_reach(tmp_path):
    model = train_pieces(user_defined_symbols=["<|im_end|>"])
    engine = sentencepiece.SentencePieceProcessor(model_proto=model)
    end = engine.piece_to_id("<|im_end|>")
    assert end in engine.encode("a<|im_end|>")
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}')
    ours = load_tokenizer(tmp_path)
    assert ours.eos_ids == (end,)
    assert end not in ours.encode("a<|im_end|>")
    assert ours.decode(ours.encode("a<|im_end|>")) == "a<|im_end|>"
    assert ours.encode("a<|im_end|>", allow_special=True)[-1] == end


def test_piece_streams_and_added_tokens(pieces, tmp_path, odd):
    config = {
        "added_tokens_decoder": {"500": {"content": "<|im_end|>", "special": True}},
        "eos_token": "<|im_end|>",
    }
    (tmp_path / "tokenizer.model").write_bytes((pieces / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours = load_tokenizer(tmp_path)
    assert ours.vocab_size == 501 and ours.eos_ids == (500,)
    assert ours.encode("a<|im_end|>", allow_special=True)[-1] == 500
    assert 500 not in ours.encode("a<|im_end|>")
    for text in odd + CORPUS:
        stream = StreamDecoder(ours)
        assert "".join(map(stream.push, ours.encode(text))) + stream.finish() == text


def test_gguf_pieces_equal_the_model_they_came_from(pieces, texts, tmp_path, odd):
    """Pieces, scores and types give the ids of the tokenizer.model they were taken from."""
    path = write_gguf(tmp_path, pieces)
    ours, theirs = load_tokenizer(path), load_tokenizer(pieces)
    assert ours.add_bos and ours.bos_id == 1 and ours.eos_ids == (2,)
    for text in [*texts[::8], *odd]:
        assert ours.encode(text) == theirs.encode(text)
    ours.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").hash == ours.hash


def write_gguf(folder, pieces, **changed):
    import gguf
    import numpy as np

    from selfevo_jax.text.backends import parse_pieces

    proto = parse_pieces((pieces / "tokenizer.model").read_bytes())
    path = folder / "pieces.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model(changed.get("model", "llama"))
    writer.add_token_list([p.piece for p in proto.pieces])
    writer.add_token_scores([p.score for p in proto.pieces])
    writer.add_token_types(changed.get("types") or [int(p.type) for p in proto.pieces])
    if changed.get("model") == "gpt2":
        writer.add_tokenizer_pre(changed["pre"])
        writer.add_token_merges(["a b"])
    for name, i in {"bos": 1, "eos": 2, "unk": 0, **changed.get("ids", {})}.items():
        getattr(writer, f"add_{name}_token_id")(i)
    writer.add_tensor("x", np.zeros((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Pre-tokenizers named in GGUF files


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "bert"}, "kind 'bert'"),
        ({"model": "gpt2", "pre": "unheard-of"}, "'unheard-of' is not known"),
        ({"ids": {"eos": 9999}}, "9999, outside 500"),
        ({"types": [1] * 3}, "one entry for each of 500"),
        ({"types": [9] * 500}, "unknown type 9"),
    ],
)
def test_gguf_tokenizers_that_cannot_be_trusted_are_refused(pieces, tmp_path, changed, message):
    with pytest.raises(UserError, match=message):
        load_tokenizer(write_gguf(tmp_path, pieces, **changed))
