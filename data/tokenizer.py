"""Load, check and save the tokenizer of a language model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Container
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.processors import ByteLevel
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import LARGE_INTEGER

from common.errors import UserError, shorten
from common.files import write_json
from common.reading import (
    GPT2_NAMES,
    LARGEST_JSON,
    expand_user,
    model_type,
    read_json,
    refuse_panics,
    require_file,
)
from data.tokenizer_files import has_tokenizer

JSON, SETTINGS = "tokenizer.json", "tokenizer_config.json"
# <eos> and <bos> of a JSON file without tokenizer_config.json: the first <eos> that its vocabulary has.
ENDS = {
    "<|endoftext|>": "<|startoftext|>",
    "</s>": "<s>",
    "<eos>": "<bos>",
    "<|end_of_text|>": "<|begin_of_text|>",
    "<|im_end|>": "<|im_start|>",
}
UNKNOWN = ("<unk>", "[UNK]")
NAMES = ("eos_token", "bos_token", "unk_token", "pad_token")  # what is read of a JSON file's tokenizer_config.json


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a causal language model; code and chat templates that come with it are ignored.

    Args:
        name: on the hub, a folder, a JSON file of the `tokenizers` library (with tokenizer_config.json beside
            tokenizer.json, if it is there), or a GGUF file.

    Raises:
        UserError: the files are missing or not a tokenizer, the name could not be downloaded, or a package is missing.
    """
    path = expand_user(name)
    if path.is_dir() and not has_tokenizer(path):
        raise UserError(
            f"dataset.tokenizer: the folder {path} has neither vocab.json and merges.txt nor tokenizer.json, "
            "tokenizer.model or spiece.model"
        )
    _require_packages(path)
    try:
        with refuse_panics():
            tokenizer = _load(name, path)
            _drop_post_processor(tokenizer)
            _check_tokenizer(tokenizer)
    except Exception as error:  # huggingface_hub, json and tokenizers raise many kinds
        raise UserError(f"dataset.tokenizer: {_reason(name, path, error)}") from error
    tokenizer.model_max_length = LARGE_INTEGER  # Template truncates; the file may hold any value
    tokenizer.name_or_path, tokenizer.chat_template = name, None
    return tokenizer


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write tokenizer.json, and tokenizer_config.json if load_tokenizer would assume other special tokens without."""
    tokenizer.backend_tokenizer.save(str(folder / JSON))
    usual, eos = _usual_names(tokenizer.get_vocab()), tokenizer.eos_token
    names = {key: token for key in NAMES if (token := getattr(tokenizer, key)) is not None}
    if any(usual.get(key, eos) != names.get(key, eos) for key in NAMES[:3]):
        write_json(folder / SETTINGS, {"tokenizer_class": "PreTrainedTokenizerFast", **names})


def _load(name: str, path: Path) -> PreTrainedTokenizerFast:
    if _is_gguf(path):
        return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False)
    if path.is_file():
        return _from_json(path)
    plain = not (path / JSON).is_file() and (path / "vocab.json").is_file() and model_type(path) in (None, "gpt2")
    if plain or (name in GPT2_NAMES and not path.is_dir()):
        return GPT2Tokenizer.from_pretrained(str(path) if path.is_dir() else name)
    tokenizer = AutoTokenizer.from_pretrained(str(path) if path.is_dir() else name, trust_remote_code=False)
    if isinstance(tokenizer, PreTrainedTokenizerFast) and isinstance(model := tokenizer.backend_tokenizer.model, BPE):
        # None and "" mean the same; runs compare digests, and earlier ones have the "" of GPT2Tokenizer.
        model.continuing_subword_prefix = model.continuing_subword_prefix or ""
        model.end_of_word_suffix = model.end_of_word_suffix or ""
    return tokenizer


def _from_json(path: Path) -> PreTrainedTokenizerFast:
    require_file(path, largest=LARGEST_JSON)
    if path.name == JSON and (settings := path.with_name(SETTINGS)).is_file():
        stored = {key: value for key, value in read_json(settings).items() if key in NAMES and value is not None}
        names = {key: value["content"] if isinstance(value, dict) else value for key, value in stored.items()}
    else:
        names = _usual_names(Tokenizer.from_file(str(path)).get_vocab())
    return PreTrainedTokenizerFast(tokenizer_file=str(path), **names)


def _usual_names(vocabulary: Container[str]) -> dict[str, str]:
    """Return those of eos_token, bos_token and unk_token that the vocabulary has by ENDS and UNKNOWN."""
    eos = next((token for token in ENDS if token in vocabulary), None)
    unknown = next((token for token in UNKNOWN if token in vocabulary), None)
    found = {"eos_token": eos, "bos_token": ENDS.get(eos), "unk_token": unknown}
    return {key: token for key, token in found.items() if token in vocabulary}


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _require_packages(path: Path) -> None:
    pieces = path.is_dir() and not (path / JSON).is_file() and any(path.glob("*.model"))
    for package, needed, also in (("gguf", _is_gguf(path), ""), ("sentencepiece", pieces, " protobuf")):
        if needed and importlib.util.find_spec(package) is None:
            raise UserError(f"dataset.tokenizer: {path} needs the package {package}: pip install {package}{also}")


def _reason(name: str, path: Path, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return f"{name} is a tokenizer with code of its own, which is never executed: use another tokenizer"
    if path.is_dir():
        return f"the files in {path} are not a tokenizer of transformers ({shorten(error)})"
    if path.is_file():
        what = "a GGUF file of a language model" if _is_gguf(path) else "a JSON file of the tokenizers library"
        return f"{path} is not {what} ({shorten(error)})"
    return (
        f"{name!r} is not on this machine and could not be downloaded. Fetch vocab.json and merges.txt, or "
        f"tokenizer.json and tokenizer_config.json, of https://huggingface.co/{name} on a machine with network access, "
        "put them into a folder here, and set dataset.tokenizer=THAT_FOLDER"
    )


def _drop_post_processor(tokenizer: PreTrainedTokenizerFast) -> None:
    """Remove what adds special tokens: the template adds them, and one from a file could multiply every text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and not isinstance(backend.post_processor, ByteLevel):
        backend.post_processor = None


def _check_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise an exception if the tokenizer cannot encode a text, or its ids cannot index an embedding."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TypeError("it is none of the tokenizers library")
    if isinstance(tokenizer, GPT2Tokenizer):
        if tokenizer.eos_token_id is None or len(tokenizer) < 256:  # without files, transformers returns one token
            raise ValueError("its vocabulary lacks <|endoftext|> or single bytes")
        _check_merges(tokenizer)
    found = tokenizer.decode(tokenizer.encode("A boat, because 1 is blue."))
    if "boat" not in found.lower():
        raise ValueError(f"it reads 'A boat, because 1 is blue.' as {found!r}")
    if max(tokenizer.get_vocab().values(), default=0) >= len(tokenizer):
        raise ValueError("its token ids are not consecutive from 0")


def _check_merges(tokenizer: PreTrainedTokenizerFast) -> None:
    """Raise ValueError if merges.txt is not the one of vocab.json: a part of it would split words differently."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    reached = {"".join(pair) for pair in model["merges"]} | {*tokenizer.get_added_vocab()}
    if lost := [token for token in model["vocab"] if len(token) > 1 and token not in reached]:
        raise ValueError(
            f"merges.txt lacks {len(lost):,} of the {len(model['vocab']):,} tokens of vocab.json, {lost[0]!r} for one; "
            "it may be half downloaded, so fetch both again"
        )
