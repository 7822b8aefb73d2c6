"""Load an image-text-to-text model of transformers and its processor, and wrap it for LoRA by peft."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from common.errors import UserError, shorten
from common.reading import expand_user

PREFIX_LM = ("paligemma", "colpali", "pi0")  # they read their answer in both directions unless it is marked


def load_processor(name: str, *, key: str = "vlm.pretrained_name") -> ProcessorMixin:
    """Return the processor of a model: folder, or name on the hub.

    Raises:
        UserError: there is none, or it has no image processor, no fast tokenizer or no chat template.
    """
    folder = _folder(name)
    try:
        processor = AutoProcessor.from_pretrained(folder)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise UserError(f"{key}={name}: its processor cannot be loaded ({shorten(error)}); {_way_out(name)}") from error
    if not getattr(processor, "image_processor", None) or not getattr(processor, "tokenizer", None):
        raise UserError(f"{key}={name} has no image processor: name an image-text-to-text model")
    if not processor.tokenizer.is_fast:
        raise UserError(f"{key}={name} has no fast tokenizer (tokenizer.json), which marks the words of an answer")
    if not processor.chat_template:
        raise UserError(f"{key}={name} has no chat template: put a chat_template.jinja into its folder")
    return processor


def load_model(name: str, *, quantized: bool, device: torch.device) -> PreTrainedModel:
    """Return the model, frozen: on a GPU in bf16 or fp16, or with 4-bit weights (NF4, double quantization).

    Raises:
        UserError: there is none, it is of another kind, or bitsandbytes or a GPU is missing for 4 bits.
    """
    folder, options, where = _folder(name), {}, f"vlm.pretrained_name={name}"
    if device.type == "cuda":
        options["dtype"] = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if quantized:
        options |= {"quantization_config": _four_bits(device, options.get("dtype")), "device_map": {"": device}}
    try:
        config = AutoConfig.from_pretrained(folder)
        if config.model_type in PREFIX_LM:
            raise UserError(f"{where}: {config.model_type} reads its answer in both directions, so none is scored")
        model = AutoModelForImageTextToText.from_pretrained(folder, config=config, **options)
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise UserError(f"{where} cannot be loaded ({shorten(error)}); {_way_out(name)}") from error
    return model.requires_grad_(False).eval()


def _folder(name: str) -> str | Path:
    path = expand_user(name)
    return path if path.is_dir() else name


def _way_out(name: str) -> str:
    return (
        f"without a network, copy the folder of an image-text-to-text model ({name}: config.json, *.safetensors, "
        "tokenizer and processor files) and name the copy"
    )


def _four_bits(device: torch.device, dtype: torch.dtype | None) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("vlm.quantized=true needs bitsandbytes: pip install bitsandbytes") from None
    if device.type != "cuda":
        raise UserError("vlm.quantized=true needs an NVIDIA GPU; leave it out on a CPU")
    from transformers import BitsAndBytesConfig

    options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    return BitsAndBytesConfig(load_in_4bit=True, **options)


def with_lora(model: PreTrainedModel, settings: Mapping[str, Any]) -> PeftModel:
    """Return the model with low-rank updates of linear layers of its language model; these alone are trained.

    Args:
        settings: r, alpha, dropout; targets: last parts of the layers' names, None: all linear layers; whole: names of
            modules that are trained as a whole beside them, such as multi_modal_projector.

    Raises:
        UserError: the language model has no layer of a target's name, or the model no module named in `whole`.
    """
    targets, whole = settings["targets"], [*(settings["whole"] or ())]
    layers = linear_layers(model)
    chosen = [name for name in layers if targets is None or name.rpartition(".")[2] in targets]
    missing = [name for name in targets or () if not any(layer.endswith(f".{name}") for layer in chosen)]
    if missing or not chosen:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in layers}))
        raise UserError(f"vlm.lora.targets: the language model has no {', '.join(missing)}; it has {known}")
    ends = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if unknown := [name for name in whole if name not in ends]:
        raise UserError(f"vlm.lora.whole: the model has no module {unknown[0]}; it has {', '.join(_tops(model))}")
    rates = {"r": settings["r"], "lora_alpha": settings["alpha"], "lora_dropout": settings["dropout"]}
    with warnings.catch_warnings():  # peft calls what transformers has renamed
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, LoraConfig(**rates, target_modules=chosen, modules_to_save=whole or None))


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Return the names of the language model's linear layers."""
    language = {id(module) for module in model.get_decoder().modules()}
    return [name for name, part in model.named_modules() if isinstance(part, nn.Linear) and id(part) in language]


def _tops(model: PreTrainedModel) -> Sequence[str]:
    return [name for part in (model, model.base_model) for name, _ in part.named_children()]


def trained_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that are trained, by name."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
