"""A finished run whose files are cut, flipped, or unreadable: named, and never silently used."""

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selfevo_jax import cli

ROOT = Path(__file__).parents[2]
FEW = ["--config.rounds=1", "--config.prompts.n=24", "--config.evaluate.n=4"]
CANARY = "canary" + "Zq7" * 8
SECRETS = (
    "HF_TOKEN HUGGING_FACE_HUB_TOKEN OPENAI_API_KEY DEEPSEEK_API_KEY WANDB_API_KEY "
    "AWS_SECRET_ACCESS_KEY GOOGLE_APPLICATION_CREDENTIALS SELFEVO_API_KEY DATABASE_PASSWORD"
).split()


def run(workdir: Path, *options: str) -> int:
    config = f"--config={ROOT / 'configs/quickstart.py'}:tiny"
    return cli.main(["run", config, *FEW, f"--workdir={workdir}", *options])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished miniature run, made with secrets in the environment."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFEVO_CACHE", str(folder / "cache"))
        for name in SECRETS:
            patch.setenv(name, CANARY + name)
        assert run(folder / "run") == 0
        yield folder / "run"


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


# (file, what is done to it, what the next command says of it)
FLIP, CUT, EMPTY = "flip", "cut", "empty"
DAMAGE = [
    ("round_01/sample/records.jsonl", FLIP, "is corrupt: its checksum"),
    ("round_01/pair/records.jsonl", CUT, "is corrupt: its checksum"),
    ("round_00/evaluate/records.jsonl", EMPTY, "is corrupt: its checksum"),
    ("round_01/train/adapter/adapter_model.safetensors", FLIP, "is corrupt: its checksum"),
    ("round_01/train/adapter/adapter_config.json", CUT, "is corrupt: its checksum"),
    ("round_01/train/metrics.jsonl", FLIP, "is corrupt: its checksum"),
    ("round_01/check/stage.json", CUT, "is damaged"),
    ("round_01/check/stage.json", EMPTY, "is damaged"),
    ("config.json", CUT, "is damaged"),
]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    half = len(content) // 2
    flipped = content[:half] + bytes([content[half] ^ 4]) + content[half + 1 :]
    path.write_bytes({FLIP: flipped, CUT: content[:half], EMPTY: b""}[how])


@pytest.mark.parametrize(("file", "how", "message"), DAMAGE)
def test_a_damaged_file_is_named_and_the_remedy_works(file, how, message, copy, finished, capsys):
    damage(copy / file, how)
    assert run(copy) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: ") and str(copy / file) in said and message in said


def test_deleting_the_damaged_folder_makes_the_same_bytes_again(copy, finished, capsys):
    damage(copy / "round_01/pair/records.jsonl", FLIP)
    assert run(copy) == 2
    shutil.rmtree(copy / "round_01/pair")
    assert run(copy) == 0
    for name in (
        "pair/records.jsonl",
        "train/adapter/adapter_model.safetensors",
        "pair/stage.json",
    ):
        path = Path("round_01") / name
        assert (copy / path).read_bytes() == (finished / path).read_bytes()


@pytest.mark.parametrize("command", ["report", "export"])
def test_other_commands_name_damage_too(command, copy, tmp_path, capsys):
    file = {"report": "round_00/evaluate/records.jsonl", "export": "run.json"}[command]
    damage(copy / file, CUT)
    out = [f"--out={tmp_path / 'out'}"] if command == "export" else []
    assert cli.main([command, str(copy), *out]) == 2
    assert str(copy / file) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_flipped_bit_in_an_adapter_never_reaches_an_export(copy, tmp_path, capsys):
    damage(copy / "round_01/train/adapter/adapter_model.safetensors", FLIP)
    assert cli.main(["export", str(copy), f"--out={tmp_path / 'out'}", "--format=peft"]) == 2
    assert "is corrupt" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_no_secret_is_in_anything_that_was_made(finished, tmp_path, capsys):
    """Planted in the environment; looked for in the folder, an export, the report, what is said."""
    assert cli.main(["report", str(finished)]) == 0
    assert cli.main(["export", str(finished), f"--out={tmp_path / 'out'}", "--format=peft"]) == 0
    assert cli.main(["env"]) == 0
    said = capsys.readouterr()
    assert CANARY not in said.out + said.err
    files = [p for folder in (finished, tmp_path) for p in folder.rglob("*") if p.is_file()]
    assert len(files) > 20
    assert [p for p in files if CANARY.encode() in p.read_bytes()] == []
    assert os.environ["HF_TOKEN"].startswith(CANARY)  # it was there to be found


def test_no_secret_is_in_a_crash(tmp_path):
    """The traceback of a defect shows lines of code, never values."""
    code = (
        "import selfevo_jax.evolve.launch as launch; launch.versions = lambda: 1 / 0;"
        "from selfevo_jax import cli; cli.main(['env'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env=os.environ | {name: CANARY for name in SECRETS} | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "ZeroDivisionError" in done.stderr and CANARY not in done.stderr + done.stdout


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path, capsys):
    """The parent is a file: what even the superuser cannot write to."""
    (tmp_path / "file").write_text("")
    assert run(tmp_path / "file" / "run") == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "file") in said and "Traceback" not in said


VERSION_3, OVERRIDE = 0x20080522, 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


@pytest.fixture
def bound_by_modes():
    """The modes of files hold for this thread, also where the superuser runs it."""
    if not sys.platform.startswith("linux"):
        pytest.skip("capabilities are taken away by Linux's own calls")
    libc, head = ctypes.CDLL(None, use_errno=True), (ctypes.c_uint32 * 2)(VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice
    assert libc.capget(head, sets) == 0
    before, sets[0] = sets[0], sets[0] & ~OVERRIDE
    assert libc.capset(head, sets) == 0
    yield
    sets[0] = before
    assert libc.capset(head, sets) == 0


def test_a_read_only_folder_is_one_message(tmp_path, bound_by_modes, capsys):
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(PermissionError):
        (tmp_path / "run/file").write_text("")
    assert run(tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "run") in said and "Traceback" not in said


def test_a_read_only_cache_is_one_message(tmp_path, bound_by_modes, capsys, monkeypatch):
    (tmp_path / "cache").mkdir(mode=0o500)
    monkeypatch.setenv("SELFEVO_CACHE", str(tmp_path / "cache"))
    assert run(tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "cache") in said and "Traceback" not in said


def test_hostile_model_output_stays_text_in_the_page(copy):
    """One answer of a real run is replaced by an attack; its page shows it and runs nothing."""
    path = copy / "round_00/evaluate/records.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[0]) | {"text": "</script><script>alert(1)</script>\u202e=cmd|'/C x'!A0"}
    path.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    sealed = path.with_name("stage.json")
    content = json.loads(sealed.read_text())
    content["files"]["records.jsonl"] = hashlib.sha256(path.read_bytes()).hexdigest()
    sealed.write_text(json.dumps(content))
    assert cli.main(["report", str(copy)]) == 0
    page = (copy / "report.html").read_text()
    assert "alert(1)" in page and "<script>alert(1)" not in page
    assert page.count("<script") == 2


def test_hostile_model_output_cannot_drive_a_terminal(copy, tmp_path, capsys):
    """Escapes, bells and bidi marks come out as text in `data show`, `data check` and errors."""
    rows = [{"prompt": "\x1b[2Jhi\x07", "completion": "a\u202eb\x1b]0;title\x07"}]
    rows += [{"prompt": "\x1b[31m", "completion": 1}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = "--model=random:tiny?seed=0"
    cli.main(["data", "show", str(path), model])
    cli.main(["data", "check", str(path)])
    said = capsys.readouterr()
    assert not set("\x1b\x07\u202e") & set(said.out + said.err)
    assert "\\x1b" in said.out
