"""Upload an export to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from common.errors import UserError, shorten
from trainer.runs.hub import FILES

REASONS = {401: "the hub does not accept the token", 403: "the token may not write there"}


def require_repository(name: str) -> None:
    """Raise UserError unless the name has the form ORG/NAME."""
    try:
        validate_repo_id(name)
        valid = "/" in name
    except HFValidationError:
        valid = False
    if not valid:
        raise UserError(f"--push {name}: the name of a repository has the form ORG/NAME")


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Create the repository if it does not exist, upload the files, and return the address.

    Files of an earlier export that this one does not have are removed there.

    Raises:
        UserError: no token, no permission, or no connection; the folder stays as it is.
    """
    api = HfApi()
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        message = "Export of EmoScribe"
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message=message,
            delete_patterns=[*FILES, "*.png", "*.onnx", "*.onnx.data"],
        )
    except Exception as error:  # huggingface_hub and httpx raise many kinds
        raise UserError(
            f"--push {repository} failed ({_reason(error)}): {folder} is complete; log in with `hf auth login` or set "
            "HF_TOKEN to a token with write access, and repeat the command with --overwrite"
        ) from error
    return str(address)


def _reason(error: Exception) -> str:
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401 and get_token() is None:
        return "there is no token on this machine"
    return REASONS.get(status) or shorten(error)
