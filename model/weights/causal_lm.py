"""Load any causal language model of transformers by name, folder or GGUF file, or build one with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from common.errors import UserError, shorten
from common.reading import GPT2_NAMES, expand_user, model_type
from model.weights.gpt2 import LONGEST_REASON, build_gpt2, gpt2_settings
from model.weights.plain import quiet_transformers
from model.weights.transformers_tower import require_known, settings_of, without_code

KEY = "model.text.pretrained_name"
ADAPTER = "adapter_config.json"  # transformers would download the model that it names
FAMILIES = "GPT-2, Llama, SmolLM, Qwen, OPT, GPT-NeoX, BLOOM or XGLM, for example"


def build_causal_lm(
    *,
    pretrained_name: str | None,
    config: Mapping | None,
    vocab_size: int,
    eos_id: int,
    random_rows: bool = False,
    new_vocabulary: bool = False,
) -> PreTrainedModel:
    """Return a causal language model: pretrained by name, folder or GGUF file, or random from the sizes in `config`.

    Args:
        config: sizes of a random model: of a GPT-2, or of the family that its `model_type` names.
        vocab_size: tokens of the tokenizer; if a pretrained vocabulary has fewer, rows are added to it. A larger
            vocab_size in `config` is kept.
        random_rows: added rows are random, which training can distinguish, instead of the mean row.
        new_vocabulary: replace the embeddings and the output layer by random ones for `vocab_size` tokens.

    Raises:
        UserError: no causal language model, a family that cannot be wrapped, an unknown setting, or weights that are
            neither on this machine nor downloadable.
    """
    random = pretrained_name is None
    settings = dict(config or {})
    if random and settings.get("model_type", "gpt2") != "gpt2":
        return _random(settings, vocab_size, eos_id)
    settings.pop("model_type", None)
    if random or is_gpt2(pretrained_name):
        lm = build_gpt2(pretrained_name=pretrained_name, config=settings, vocab_size=vocab_size, eos_id=eos_id)
    else:
        lm = _load(pretrained_name)
    if new_vocabulary and not random:
        lm.resize_token_embeddings(vocab_size, mean_resizing=False)
        for layer in (lm.get_input_embeddings(), lm.get_output_embeddings()):
            nn.init.normal_(layer.weight.data, std=float(layer.weight.detach().std()))
    elif vocab_size > lm.get_input_embeddings().weight.shape[0]:
        _add_rows(lm, vocab_size, random=random_rows)
    return lm


def language_settings(lm: PreTrainedModel) -> dict[str, Any]:
    """Return the value of model.text.config with which `build_causal_lm` builds a model of this shape."""
    if isinstance(lm, GPT2LMHeadModel):
        return gpt2_settings(lm.config)
    return settings_of(lm.config)


def is_gpt2(name: str) -> bool:
    """Return whether a pretrained name is a GPT-2: its folder's configuration says so, or a hub's name names it."""
    folder = expand_user(name)
    if folder.is_dir():
        return model_type(folder) in (None, "gpt2")  # what is wrong with a configuration is reported when it is loaded
    return not folder.exists() and name.rpartition("/")[2] in GPT2_NAMES


def find_blocks(lm: PreTrainedModel) -> nn.ModuleList:
    """Return the list of the model's blocks: what transformers splits nowhere and recomputes as one.

    Raises:
        UserError: there is none, or more than one.
    """
    names = {*(lm._no_split_modules or ()), "ConditionedBlock"}

    def is_block(module: nn.Module) -> bool:
        return type(module).__name__ in names or isinstance(module, GradientCheckpointingLayer)

    lists = [module for module in lm.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    found = [blocks for blocks in lists if len(blocks) and all(map(is_block, blocks))]
    if len(found) != 1:
        raise UserError(
            f"model.text: the blocks of {type(lm).__name__} were not found, so cross-attention cannot be put in front "
            f"of them; take {FAMILIES}"
        )
    return found[0]


def _random(settings: dict[str, Any], vocab_size: int, eos_id: int) -> PreTrainedModel:
    special = {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": None}
    rows = max(vocab_size, settings.get("vocab_size", 0))  # a pretrained vocabulary may have more than the tokenizer
    try:
        config = AutoConfig.for_model(**{**special, **settings, "vocab_size": rows})
        known = [*type(config)().to_dict(), *config.attribute_map]
        require_known(settings, known, f"model.text.config: {config.model_type}")
        _require_causal(config, "model.text.config")
        return AutoModelForCausalLM.from_config(config, **_options(config))
    except UserError:
        raise
    except Exception as error:  # transformers and torch raise many kinds
        reason = shorten(error, LONGEST_REASON)
        raise UserError(f"model.text.config: transformers cannot build this language model ({reason})") from error


def _load(name: str) -> PreTrainedModel:
    path = expand_user(name)
    where, options = (
        (path.parent, {"gguf_file": path.name}) if path.is_file() else (path if path.is_dir() else name, {})
    )
    if (path / ADAPTER).is_file():
        raise UserError(f"{KEY}: {path} holds an adapter of another model ({ADAPTER}); merge both and name that folder")
    try:
        config = AutoConfig.from_pretrained(where, trust_remote_code=False, **options)
        config = AutoConfig.for_model(**without_code(config.to_dict()))
        _require_causal(config, f"{KEY}={name}")
        with torch.device("meta"):
            find_blocks(AutoModelForCausalLM.from_config(config, **_options(config)))
        with quiet_transformers() if path.is_dir() else nullcontext():  # progress of a download, or of a GGUF file
            model, info = AutoModelForCausalLM.from_pretrained(
                where, config=config, output_loading_info=True, **_options(config), **options
            )
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{len(missing)} weights are missing, e.g. {missing[0]}")
        return model
    except UserError:
        raise
    except Exception as error:  # huggingface_hub, httpx, safetensors, gguf and json raise many kinds
        raise UserError(_hint(name, path, error)) from error


def _options(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the arguments of from_pretrained and from_config."""
    kind = AutoModelForCausalLM._model_mapping[type(config)]
    attention = "sdpa" if kind._supports_sdpa else "eager"
    return {"attn_implementation": attention, "dtype": torch.float32, "trust_remote_code": False}


def _require_causal(config: PreTrainedConfig, what: str) -> None:
    """Raise UserError if the configuration is not that of a causal language model with attention."""
    kind, causal = config.model_type, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    architectures = getattr(config, "architectures", None) or [causal.get(kind, "")]
    usable = any(name in causal.values() or name.endswith(("Model", "ForCausalLM")) for name in architectures)
    if kind not in causal or not usable or getattr(config, "is_encoder_decoder", False):
        raise UserError(f"{what} is a {kind}, not a causal language model; take {FAMILIES}")
    model = AutoModelForCausalLM._model_mapping[type(config)]
    if getattr(model, "_is_stateful", False):
        raise UserError(f"{what} is a {kind}, which keeps a state instead of attending to tokens; take {FAMILIES}")


def _add_rows(lm: PreTrainedModel, vocab_size: int, *, random: bool) -> None:
    """Give added tokens the mean row, so that a frozen model need not be stored, or random rows to be trained."""
    known = lm.get_input_embeddings().weight.shape[0]
    lm.resize_token_embeddings(vocab_size, mean_resizing=False)
    for layer in (lm.get_input_embeddings(), lm.get_output_embeddings()) if not random else ():
        layer.weight.data[known:] = layer.weight.data[:known].mean(dim=0)


def _hint(name: str, path: Path, error: Exception) -> str:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:LONGEST_REASON]
    if path.is_file() and isinstance(error, ImportError):
        return f"{KEY}={name}: reading a GGUF file needs the package gguf (pip install gguf)"
    if path.exists():
        return f"{KEY}: transformers cannot load a language model from {path} ({reason})"
    if "gated" in str(error).lower():
        return (
            f"{KEY}: {name!r} is gated: accept its license on https://huggingface.co/{name} and log in "
            "(hf auth login), or download its files there into a folder and set model.text.pretrained_name=THAT_FOLDER"
        )
    return (
        f"{KEY}: the weights of {name!r} are not on this machine and could not be downloaded. Download config.json, "
        f"the tokenizer's files and *.safetensors of https://huggingface.co/{name} elsewhere, put them into a "
        "folder here, and set model.text.pretrained_name=THAT_FOLDER"
    )
