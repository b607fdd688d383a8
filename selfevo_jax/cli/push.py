"""`selfevo push`: an export to the Hugging Face hub. The token comes from $HF_TOKEN alone."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfevo_jax.cli.common import nothing_left, verb
from selfevo_jax.errors import UserError

CARD = "README.md"
MODELS = ("adapter_config.json", "config.json", "model.gguf")  # what tells an export
PATTERNS = (CARD, "*.json", "*.safetensors", "*.gguf", "*.jinja", "tokenizer.model")


def add(verbs: Any) -> None:
    """Adds the command."""
    parser = verb(
        verbs,
        "push",
        act,
        "Upload an export to the Hugging Face hub. The token is read from $HF_TOKEN.",
        "selfevo push my-model --repo=me/my-model --private",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what `selfevo export` wrote")
    parser.add_argument("--repo", required=True, metavar="ORG/NAME", help="made where it is not")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--dry-run", action="store_true", help="list the files and stop")


def act(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    """Runs it."""
    nothing_left(rest)
    files = exported_files(arguments.folder)
    for file in files:
        print(f"{file.stat().st_size:>14,} {file.name}")
    if not arguments.dry_run:
        print(push(arguments.folder, arguments.repo, arguments.private))
    return 0


def exported_files(folder: Path) -> list[Path]:
    """The files of an export that are uploaded. Raises UserError for any other folder."""
    if not (folder / CARD).is_file() or not any((folder / name).is_file() for name in MODELS):
        raise UserError(f"{folder} is no export; write one with `selfevo export RUN --out=FOLDER`")
    return sorted(file for pattern in PATTERNS for file in folder.glob(pattern))


def push(folder: Path, repo: str, private: bool) -> str:
    """Uploads the export in one commit; returns its address. Raises UserError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, HTTPError  # of its own HTTP library

    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError("HF_TOKEN is not set; put a token with write access into the environment")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=list(PATTERNS),
            commit_message="Export of selfevo_jax",
        )
    except (HTTPError, HFValidationError) as error:
        reason = " ".join(str(error).replace(token, "***").split())[:300]
        raise UserError(f"the hub did not take {repo}: {reason}") from error
    return commit.commit_url
