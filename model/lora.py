"""LoRA (Hu et al., 2022) on the language model, by peft."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn
from transformers.pytorch_utils import Conv1D

from common.errors import UserError, shorten


def add_lora(lm: nn.Module, settings: Mapping) -> None:
    """Put low-rank updates, which start at zero, beside the linear layers of a language model, in place.

    Args:
        settings: r, alpha, dropout, and targets: names of the layers; None = those that peft knows for the model.

    Raises:
        UserError: peft is not installed, or the model has no such layers.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model  # half a second, for runs that use it
    except ImportError as error:
        raise UserError(f"model.text.lora needs the package peft (pip install peft): {error}") from error
    targets = settings["targets"]
    config = LoraConfig(
        r=settings["r"],
        lora_alpha=settings["alpha"],
        lora_dropout=settings["dropout"],
        target_modules=None if targets is None else [*targets],
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in lm.modules()),  # GPT-2's layers
    )
    try:
        inject_adapter_in_model(config, lm)
    except ValueError as error:
        raise UserError(
            f"model.text.lora.targets={targets}: {shorten(error)}; give names of linear layers of {type(lm).__name__}"
        ) from error


def lora_layers(network: nn.Module) -> list[nn.Module]:
    """Return the layers with a low-rank update."""
    return [module for module in network.modules() if hasattr(module, "lora_dropout")]


def lora_weights(network: nn.Module) -> list[nn.Module]:
    """Return the low-rank updates themselves, which are trained while the layers are frozen."""
    return [part for layer in lora_layers(network) for part in (layer.lora_A, layer.lora_B)]


def merge_lora(network: nn.Module) -> None:
    """Replace each layer with a low-rank update by a plain one with the sum of both weights, in place."""
    for parent in [*network.modules()]:
        for name, child in [*parent.named_children()]:
            if hasattr(child, "lora_dropout"):
                child.merge()
                setattr(parent, name, child.get_base_layer())
