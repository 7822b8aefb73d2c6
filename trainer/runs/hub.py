"""Checkpoints in repositories of the Hugging Face hub: hf-hub:ORG/NAME or hf-hub:ORG/NAME@REVISION."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError, shorten

HUB = "hf-hub:"
# Names of the files of a checkpoint; nothing in which code could be, and no state of a training.
FILES = ("*.safetensors", "*.json", "*.jsonl", "config.yaml", "SHA256SUMS")


def repository_of(name: str) -> str:
    """Return ORG/NAME."""
    return name.removeprefix(HUB).partition("@")[0]


def download_checkpoint(name: str, *, key: str) -> Path:
    """Return the folder of a checkpoint on the hub in the hub's cache, downloaded if it is not there.

    Args:
        name: begins with HUB.
        key: of the configuration, for the message of an error.

    Raises:
        UserError: the files are neither cached nor downloadable.
    """
    from huggingface_hub import snapshot_download  # imported here: a checkpoint on disk does not need it

    repository, revision = repository_of(name), name.partition("@")[2] or None
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[*FILES], ignore_patterns=["*/*"]))
    except Exception as error:  # huggingface_hub and httpx raise many kinds
        raise UserError(
            f"{key}={name} is not on this machine and could not be downloaded ({shorten(error, 150)}): download the "
            f"repository {repository} elsewhere and name its folder"
        ) from error
