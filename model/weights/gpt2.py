"""Load GPT-2 by name or folder, or build one with random weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from common.errors import UserError, shorten
from common.reading import expand_user
from model.weights.plain import read_object, read_weights

LONGEST_REASON = 300  # characters of another library's message
SHAPE = ("vocab_size", "scale_attn_by_inverse_layer_idx")  # settings of stored models, besides those of _setting_names


def build_gpt2(*, pretrained_name: str | None, config: Mapping | None, vocab_size: int, eos_id: int) -> GPT2LMHeadModel:
    """Return transformers' GPT-2: pretrained by name or folder, or with random weights from the sizes in `config`.

    Args:
        vocab_size: tokens of the tokenizer; random weights may be for more, if `config` has a larger vocab_size.

    Raises:
        UserError: an unknown setting, or weights that are neither cached nor downloadable.
    """
    if pretrained_name is None:
        try:
            return GPT2LMHeadModel(_random_config(dict(config or {}), vocab_size, eos_id))
        except UserError:
            raise
        except Exception as error:  # transformers and huggingface_hub raise many kinds
            reason = shorten(error, LONGEST_REASON)
            raise UserError(f"model.text.config: transformers cannot build this GPT-2 ({reason})") from error
    folder = expand_user(pretrained_name)
    try:
        if folder.is_dir():
            model, info = _load_folder(folder)
        else:
            model, info = _load(pretrained_name, GPT2Config.from_pretrained(pretrained_name).to_dict())
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{len(missing)} weights are missing, e.g. {missing[0]}")
    except Exception as error:  # huggingface_hub, httpx, safetensors and json raise many kinds
        raise UserError(_download_hint(pretrained_name, folder, error)) from error
    return model


def _setting_names() -> list[str]:
    """Return transformers' names of the settings that define a GPT-2."""
    known = [key for key in GPT2Config().to_dict() if key.startswith(("n_", "activation", "resid", "embd", "attn"))]
    return [*known, "layer_norm_epsilon", "initializer_range", "scale_attn_weights"]


def _load_folder(folder: Path) -> tuple[GPT2LMHeadModel, dict]:
    """Read the weights without transformers, which would follow references in the folder to adapters and shards."""
    config, state = read_object(folder / "config.json"), read_weights(folder)
    if isinstance(layers := config.get("n_layer"), int) and layers > len(state):
        raise UserError(f"{folder}: n_layer={layers}, but there are {len(state)} tensors")
    logging.disable_progress_bar()  # nothing is downloaded
    try:
        return _load(None, config, state_dict=state)
    finally:
        logging.enable_progress_bar()


def _load(name: str | None, stored: Mapping, **weights: Any) -> tuple[GPT2LMHeadModel, dict]:
    """Use only those settings of `stored` that define a GPT-2: others can name kernels to download and run."""
    names = (*_setting_names(), *SHAPE, "bos_token_id", "eos_token_id")
    config = GPT2Config(**{key: stored[key] for key in names if key in stored})
    return GPT2LMHeadModel.from_pretrained(
        name, config=config, attn_implementation="sdpa", dtype=torch.float32, output_loading_info=True, **weights
    )


def _random_config(settings: dict, vocab_size: int, eos_id: int) -> GPT2Config:
    known = (*_setting_names(), *SHAPE)
    if unknown := [key for key in settings if key not in known]:
        nearest = difflib.get_close_matches(str(unknown[0]), known, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else f" ({', '.join(known)})"
        raise UserError(f"model.text.config: GPT-2 has no setting {unknown[0]!r}{hint}")
    width, heads = settings.get("n_embd", 768), settings.get("n_head", 12)
    if width % heads:
        raise UserError(f"model.text.config: n_embd={width} is not a multiple of n_head={heads}")
    rows = max(vocab_size, settings.pop("vocab_size", 0))  # a pretrained vocabulary may have more than the tokenizer
    return GPT2Config(**settings, vocab_size=rows, bos_token_id=eos_id, eos_token_id=eos_id)


def gpt2_settings(config: GPT2Config) -> dict[str, Any]:
    """Return the value of model.text.config with which `build_gpt2` builds a GPT-2 of this shape."""
    return {key: getattr(config, key) for key in (*_setting_names(), *SHAPE)}


def _download_hint(name: str, folder: Path, error: Exception) -> str:
    if folder.is_dir():
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:LONGEST_REASON]
        return f"model.text.pretrained_name: transformers cannot load GPT-2 from the folder {folder} ({reason})"
    return (
        f"model.text.pretrained_name: the weights of {name!r} are not on this machine and could not be downloaded. "
        f"Download config.json and model.safetensors of https://huggingface.co/{name} on a machine with a network, "
        "put both into a folder here, and set model.text.pretrained_name=THAT_FOLDER"
    )
