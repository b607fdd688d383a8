"""Sentence encoders in a run: their vectors are those of transformers, and votes go by them."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from selfevo_jax.config import load_config
from selfevo_jax.errors import UserError
from selfevo_jax.evolve.backend import JaxBackend
from selfevo_jax.evolve.embedding import CHUNK, SentenceEncoder
from selfevo_jax.evolve.policy import Policy, Role
from selfevo_jax.evolve.progress import Progress

CONFIGS = Path(__file__).parents[2] / "configs"
TEXTS = [
    "a duck",
    "Ünïcode, CAPITALS and \u4e2d\u6587 \U0001f986!",
    "",
    "the rest of this text is longer than what the encoder reads of it " * 30,
    "is 2 + 2 = 4?\n\nyes.",
]
PARAPHRASES = [
    ("How old are you?", "What is your age?"),
    ("A man is playing a guitar.", "Someone is strumming a guitar."),
    ("The answer is wrong because 3 + 4 is 7.", "This is incorrect: three plus four makes seven."),
    ("Please check the addition again.", "Add the numbers up once more."),
]


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def progress(said) -> Progress:
    return Progress(Console(file=said, width=200))


@pytest.fixture
def folder(tiny_bert, tmp_path) -> Path:
    return tiny_bert(tmp_path / "encoder")


@pytest.fixture
def backend(cache, monkeypatch, progress):
    """The backend of a config of ours, with changes."""
    monkeypatch.setenv("SELFEVO_CACHE", str(cache))

    def made(*changes: str, name: str = "elite", kind: type = JaxBackend) -> JaxBackend:
        return kind(load_config(f"{CONFIGS / name}.py:tiny", list(changes)), progress)

    return made


def reference(folder: Path, texts: list[str], longest: int) -> np.ndarray:
    """What sentence-transformers does, written with transformers: unit vectors [n, d]."""
    torch = pytest.importorskip("torch", reason="the parity libraries are not installed")
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), pad_token="[PAD]", cls_token="[CLS]"
    )
    model = transformers.BertModel.from_pretrained(folder).eval()
    given = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
    mask_bt = given["attention_mask"]
    with torch.no_grad():
        hidden_btd = model(given["input_ids"], attention_mask=mask_bt).last_hidden_state
    mean_bd = (hidden_btd * mask_bt[..., None]).sum(1) / mask_bt.sum(1, keepdim=True)
    return torch.nn.functional.normalize(mean_bd).numpy()


def test_vectors_are_those_of_transformers(folder, progress):
    encoder = SentenceEncoder(str(folder), progress)
    found = encoder.embed(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, reference(folder, TEXTS, 16), atol=1e-5)


def test_the_real_vectors_are_those_of_transformers(minilm, progress):
    found = SentenceEncoder(str(minilm.path), progress).embed(TEXTS)
    np.testing.assert_allclose(found, reference(minilm.path, TEXTS, 256), atol=1e-5)


def test_the_real_one_tells_meaning(minilm, progress):
    """Every paraphrase is nearer to its own sentence than to any other one."""
    encoder = SentenceEncoder(str(minilm.path), progress)
    first, second = (encoder.embed(list(side)) for side in zip(*PARAPHRASES, strict=True))
    near = first @ second.T
    assert (near.argmax(0) == np.arange(4)).all() and (near.argmax(1) == np.arange(4)).all()
    others = near[~np.eye(4, dtype=bool)]
    assert near.diagonal().min() > 0.4 and others.max() < 0.5


def test_texts_beside_it_change_no_vector(folder, progress):
    encoder = SentenceEncoder(str(folder), progress)
    together = encoder.embed(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(encoder.embed([text])[0], vector, atol=1e-6)
    assert encoder.embed(["a"] * CHUNK).shape == (CHUNK, 32)


def test_control_tokens_in_a_text_are_text(minilm, progress):
    """Unlike transformers, where a text can end itself."""
    encoder = SentenceEncoder(str(minilm.path), progress)
    split, spelled = encoder.embed(["a duck [SEP] a goose", "a duck [sep] a goose"])
    np.testing.assert_allclose(split, spelled, atol=1e-6)


def test_that_a_text_is_cut_is_said_once(folder, progress, said):
    encoder = SentenceEncoder(str(folder), progress)
    encoder.embed(["a" * 14])
    assert "reads the first" not in said.getvalue()
    first = encoder.embed(["a" * 15, "a" * 30, "a" * 14 + " b"])
    np.testing.assert_array_equal(first[0], first[1])
    np.testing.assert_array_equal(first[0], encoder.embed(["a" * 14])[0])
    encoder.embed(["a" * 40])
    assert said.getvalue().count("reads the first 14 tokens") == 1


def test_positions_bound_the_width(tiny_bert, tmp_path, progress):
    """A model of fewer positions than the least width, and one between two widths."""
    for positions in (16, 90):
        folder = tiny_bert(tmp_path / str(positions), max_position_embeddings=positions)
        (folder / "sentence_bert_config.json").unlink()
        texts = ["a" * 5, " ".join("a" * 99)]
        found = SentenceEncoder(str(folder), progress).embed(texts)
        np.testing.assert_allclose(found, reference(folder, texts, positions), atol=1e-5)


@pytest.mark.parametrize(
    ("processor", "message"),
    [(None, r"no \[CLS\] and \[SEP\]"), ({"type": "Magic"}, "cannot be read by `tokenizers`")],
)
def test_a_tokenizer_that_frames_nothing_is_refused(processor, message, folder, progress):
    spec = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(spec | {"post_processor": processor}))
    with pytest.raises(UserError, match=message):
        SentenceEncoder(str(folder), progress).hash  # noqa: B018 - as a plan asks for it


def test_a_tokenizer_of_another_model_is_refused(tiny_bert, tmp_path, progress):
    folder = tiny_bert(tmp_path, vocab_size=50)
    with pytest.raises(UserError, match="84 tokens, the encoder 50"):
        SentenceEncoder(str(folder), progress).hash  # noqa: B018


# ---- in a run


def test_the_key_holds_weights_and_tokenizer(backend, folder, tiny_bert, tmp_path):
    def known(place: Path) -> str:
        return backend().role_hash(Role(model=str(place)))

    first = known(folder)
    assert known(shutil.copytree(folder, tmp_path / "copy")) == first
    assert known(tiny_bert(tmp_path / "other", seed=1)) != first
    spelled = shutil.copytree(folder, tmp_path / "spelled")
    spec = json.loads((spelled / "tokenizer.json").read_text())
    spec["normalizer"]["lowercase"] = False
    (spelled / "tokenizer.json").write_text(json.dumps(spec))
    assert known(spelled) != first


def test_an_encoder_is_asked_by_its_own_tokenizer(backend, folder, progress):
    made = backend(f"roles.encoder.model={folder}")
    policy = Policy("encoder", "", role=Role(model=str(folder)))
    wanted = SentenceEncoder(str(folder), progress)
    np.testing.assert_array_equal(made.embedder(policy)(TEXTS), wanted.embed(TEXTS))
    assert made.tokenizer(policy).hash == wanted.tokenizer.hash


def test_torch_runs_have_the_same_vectors(backend, folder):
    kind = pytest.importorskip("selfevo_jax.torch_backend.backend", reason="no torch").TorchBackend
    policy = Policy("encoder", "", role=Role(model=str(folder)))
    one, other = backend(), backend(kind=kind)
    assert one.role_hash(policy.role) == other.role_hash(policy.role)
    np.testing.assert_array_equal(one.embedder(policy)(TEXTS), other.embedder(policy)(TEXTS))


@pytest.mark.parametrize(
    ("name", "role"), [("elite", "critic"), ("meteor", "teacher"), ("refeval", "judge")]
)
def test_in_a_role_that_writes_it_is_refused(name, role, backend, folder):
    made = backend(f"roles.{role}.model={folder}", name=name)
    bound = Role(**made.config.roles[role].to_dict())
    with pytest.raises(UserError, match=f"config.roles.{role}.model=.*sentence encoder"):
        made.role_hash(bound)
    policy = Policy(role, "", role=bound)
    for use in (made.generator, made.judge, made.weigher):  # also where no plan was made
        with pytest.raises(UserError, match="sentence encoder, which embeds text"):
            use(policy)


def test_as_the_model_of_a_run_it_is_refused(mini, folder):
    with pytest.raises(UserError, match="sentence encoder.*--config.roles.encoder.model"):
        mini(f"model={folder}", dry_run=True)


def test_it_takes_no_adapter(backend, folder):
    with pytest.raises(UserError, match="sentence encoder, which takes no adapter"):
        backend().role_hash(Role(model=str(folder), adapter="somewhere"))


def test_a_decoder_as_encoder_is_as_before(backend):
    """Another random model in the role: its own hash and the mean of its last states."""
    made = backend()
    bound = Policy("encoder", "", role=Role(model="random:tiny?seed=1"))
    assert made.role_hash(bound.role) != made.role_hash(Role())
    plain = Policy("base", "")
    vectors = [made.embedder(policy)(["a duck", "two"]) for policy in (bound, plain)]
    assert vectors[0].shape == vectors[1].shape and np.abs(vectors[0] - vectors[1]).max() > 0.01
    same = Policy("encoder", "", role=Role(model=made.config.model, adapter=""))
    np.testing.assert_array_equal(made.embedder(same)(["a duck", "two"]), vectors[1])


@pytest.fixture(scope="module")
def elite(tmp_path_factory, cache):
    """Plans and whole runs of ELITE in miniature, in one workdir."""
    from selfevo_jax.evolve.launch import launch

    place = tmp_path_factory.mktemp("elite")

    def run(encoder: Path) -> str:
        said = io.StringIO()
        changes = [f"roles.encoder.model={encoder}", "rounds=1", "baselines=()"]
        config = load_config(f"{CONFIGS / 'elite.py'}:tiny", changes)
        launch(config, place, Progress(Console(file=said, width=200)), command="a test")
        return said.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFEVO_CACHE", str(cache))
        yield run, place


def test_elite_votes_by_the_encoder(elite, tiny_bert, tmp_path, progress):
    """Vectors are the encoder's; with other weights they are made anew, the answers are not."""
    run, place = elite
    folder = tiny_bert(tmp_path / "encoder")
    run(folder)

    def rows(stage: str) -> dict[str, dict]:
        lines = (place / "round_01" / stage / "records.jsonl").read_text().splitlines()
        return {row["id"]: row for row in map(json.loads, lines)}

    critiques, vectors = rows("critique"), list(rows("embed").values())
    assert len(vectors) == len(critiques) == 30
    assert {vector["policy"] for vector in vectors} == {"encoder"}
    encoder = SentenceEncoder(str(folder), progress)
    for vector in vectors:
        wanted = encoder.embed([critiques[vector["source_id"]]["text"]])[0]
        np.testing.assert_allclose(vector["values"], wanted, atol=1e-4)  # as kept: 4 digits
    told = json.loads((place / "run.json").read_text())["roles"]["encoder"]
    assert (told["hash"], told["model"]) == (encoder.hash, str(folder))
    stamp = (place / "round_01" / "critique" / "records.jsonl").stat().st_mtime_ns
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.output.dense.weight"] *= 2
    save_file(weights, folder / "model.safetensors")
    run(folder)
    assert {vector["id"] for vector in vectors}.isdisjoint(rows("embed"))
    assert (place / "round_01" / "critique" / "records.jsonl").stat().st_mtime_ns == stamp
