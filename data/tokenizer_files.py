"""Which tokenizer belongs to a language model; without transformers, so that configuration errors come at once."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.reading import expand_user, model_type

FILES = ("tokenizer.json", "vocab.json", "vocab.txt")  # any of them, or a sentencepiece *.model, holds a vocabulary


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in FILES) or any(folder.glob("*.model"))


def bundled_tokenizer(pretrained_name: str) -> str | None:
    """Return where to load the tokenizer that comes with a language model; None for a folder without one."""
    folder = expand_user(pretrained_name)
    return None if folder.is_dir() and not has_tokenizer(folder) else pretrained_name


def resolve_tokenizer(tokenizer: str, pretrained_name: str | None) -> str:
    """Return the name, folder or file that dataset.tokenizer stands for.

    Args:
        tokenizer: dataset.tokenizer; "auto" is the one that comes with the language model, or gpt2 without one.
        pretrained_name: model.text.pretrained_name.

    Raises:
        UserError: auto, and the folder of the language model lacks the tokenizer; GPT-2's is known without it.
    """
    if tokenizer != "auto":
        return tokenizer
    if pretrained_name is None:
        return "gpt2"
    if (bundled := bundled_tokenizer(pretrained_name)) is not None:
        return bundled
    folder = expand_user(pretrained_name)
    if model_type(folder) == "gpt2":
        return "gpt2"
    raise UserError(
        f"dataset.tokenizer=auto: {folder} has no tokenizer: copy the language model's tokenizer.json and "
        "tokenizer_config.json into it, or set dataset.tokenizer"
    )
