"""Read SEVLM's checkpoints (Zhang et al., ECCV 2024) in the layout of Hugging Face's jing5566/SEVLM.

    nle_model_NAME/            config.json, pytorch_model.bin (or model.safetensors): the decoder with its heads
    nle_gpt2_tokenizer_0/      GPT-2's files and added_tokens.json: <pad> <prefix> <emotion> <explanation> are last
    ckpt_stats_NAME.tar        a dict of torch.save, not a tar: emo_encoder_state_dict (the VAD encoder),
                               encoder_state_dict (the image encoder, only if it was trained), epoch, scheduler, and the
                               optimizer, which is not read

NAME is best-res or best-acc. In the decoder, `transformer.` is GPT-2 with cross-attention and VAD_linear, the fusion;
`sim_mlp` is the contrastive head, VAD_head the head for the VAD of words. A part was trained if its tensors exist; the
flags of config.json are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config

from common.errors import UserError
from model.checkpoint_import.imported import Imported, whole_number
from model.checkpoint_import.towers import openai_tower
from model.vad import VadEncoder
from model.weights.gpt2_layout import gpt2_layout, gpt2_of, is_gpt2_buffer, read_gpt2_settings, tied_head
from model.weights.layout import Layout, Tensors, layout_of, weight_and_bias
from model.weights.plain import as_dict, as_state, numpy_numbers, read_object, read_state, read_torch, weights_file

NAMES = ("best-res", "best-acc")
TOKENIZER = "nle_gpt2_tokenizer_0"
SPECIALS = ("<pad>", "<prefix>", "<emotion>", "<explanation>")
GPT2 = "transformer."


def read_sevlm(folder: Path, *, name: str | None = None) -> Imported:
    """Return the checkpoint in a folder.

    Args:
        name: its name; None selects best-res, else best-acc, else the only one.

    Raises:
        UserError: a file is missing, damaged or refused, or does not hold SEVLM.
    """
    name = name or _select(folder)
    model, stats_path = folder / f"nle_model_{name}", folder / f"ckpt_stats_{name}.tar"
    if not (folder / TOKENIZER).is_dir():
        raise UserError(f"{folder / TOKENIZER} is missing: the folder with the tokenizer's files")
    config = read_object(model / "config.json")
    weights_path = weights_file(model)
    stats = read_torch(stats_path, allowed=numpy_numbers())
    if not isinstance(stats, Mapping):
        raise UserError(f"{stats_path} holds no dict of a training's state")
    settings, weights, gpt2 = _decoder(Tensors(str(weights_path), read_state(weights_path)), config, model)
    remarks: list[str] = []
    settings |= _vad(stats, stats_path, weights, gpt2.n_embd, remarks)
    settings |= _contrastive(weights, gpt2.n_embd)
    settings |= _image_encoder(stats, stats_path, weights)
    return Imported(
        preset="sevlm",
        settings=settings,
        weights=weights,
        vocabulary=gpt2.vocab_size,
        tokens={token: gpt2.vocab_size - len(SPECIALS) + i for i, token in enumerate(SPECIALS)},
        tokenizer=str(folder / TOKENIZER),
        files=[model / "config.json", weights_path, stats_path],
        epoch=whole_number(stats.get("epoch")),
        step=whole_number(as_dict(stats.get("scheduler")).get("last_epoch")),
        facts={"name": name, **{k: float(stats[k]) for k in ("best_acc", "best_res") if _is_number(stats.get(k))}},
        remarks=remarks,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (hasattr(value, "dtype") and getattr(value, "shape", None) == ())


def _select(folder: Path) -> str:
    found = sorted(path.name.removeprefix("nle_model_") for path in folder.glob("nle_model_*") if path.is_dir())
    if name := next((name for name in NAMES if name in found), found[0] if len(found) == 1 else None):
        return name
    if found:
        raise UserError(f"{folder} holds several checkpoints ({', '.join(found)}): choose one with --name")
    inside = next(iter(sorted(folder.glob("*/nle_model_*"))), None)
    hint = f"; did you mean {inside.parent}?" if inside else ""
    raise UserError(
        f"{folder / 'nle_model_best-res'} is missing: give the folder that holds it, {TOKENIZER} and "
        f"ckpt_stats_best-res.tar{hint}"
    )


def _decoder(tensors: Tensors, config: Mapping[str, Any], model: Path) -> tuple[dict, dict[str, Tensor], GPT2Config]:
    """Return settings, weights and sizes of GPT-2 with all heads."""
    if config.get("len_prefix") or tensors.has(f"{GPT2}clip_project."):
        raise UserError(
            f"{model}: it has a visual prefix (len_prefix={config.get('len_prefix')}, clip_project), which cannot be "
            "imported; the published checkpoint has none"
        )
    tensors = tied_head(tensors.without(matching=is_gpt2_buffer), "lm_head.weight", f"{GPT2}wte.weight")
    gpt2 = gpt2_of(tensors, GPT2, cross_attention=True)
    layout = gpt2_layout(gpt2, GPT2, "language.lm.transformer.")
    weights = tensors.match(layout | _heads(tensors, gpt2.n_embd))
    settings = {
        "model.text.pretrained_name": None,
        "model.text.config": read_gpt2_settings(gpt2, model / "config.json"),
        "model.text.trainable": True,
    }
    return settings, weights, gpt2


def _heads(tensors: Tensors, width: int) -> Layout:
    """Return the layout of those of fusion, VAD head and contrastive head that exist."""
    layout: Layout = {}
    if tensors.has(f"{GPT2}VAD_linear."):
        layout |= weight_and_bias(f"{GPT2}VAD_linear", "fusion.linear", width, width + 3)
    if tensors.has("VAD_head."):
        layout |= weight_and_bias("VAD_head", "vad_head", 3, width)
    if tensors.has("sim_mlp."):
        hidden, inputs = tensors.matrix("sim_mlp.pred.0.weight")[0], 3 * width
        last = tensors.count("sim_mlp.pred.") - 1
        for i in range(0, last + 1, 2):  # a ReLU follows each but the last
            outputs = 1 if i == last else hidden
            layout |= weight_and_bias(f"sim_mlp.pred.{i}", f"contrastive.pred.{i}", outputs, inputs)
            inputs = outputs
    return layout


def _contrastive(weights: Mapping[str, Tensor], width: int) -> dict[str, Any]:
    maps = [tensor for name, tensor in weights.items() if name.startswith("contrastive.") and tensor.ndim == 2]
    if not maps:
        return {"model.contrastive.enabled": False}
    hidden = maps[0].shape[0]
    return {
        "model.contrastive.enabled": True,
        "model.contrastive.depth": len(maps) - 1,
        "model.contrastive.hidden_dim": None if hidden == width else hidden,
    }


def _vad(
    stats: Mapping[str, Any], path: Path, weights: dict[str, Tensor], width: int, remarks: list[str]
) -> dict[str, Any]:
    """Return the settings of model.vad; add the VAD encoder to the weights, and remove a fusion that was not used."""
    found = stats.get("emo_encoder_state_dict")
    fused, headed = found is not None, "vad_head.weight" in weights
    settings: dict[str, Any] = {"model.vad.sentence": False, "model.vad.enabled": fused or headed}
    if fused:
        if "fusion.linear.weight" not in weights:
            raise UserError(f"{path} holds a VAD encoder, but the decoder has no {GPT2}VAD_linear for it")
        source = f"{path}: emo_encoder_state_dict"
        tensors = Tensors(source, as_state(found, source))
        layers = tensors.count("encoder.layers.")
        with torch.device("meta"):  # allocates nothing
            encoder = VadEncoder(layers=layers, causal=False)
        weights |= tensors.match(layout_of(encoder, "", "vad_encoder."))
        settings |= {
            "model.vad.fusion": "concat",
            "model.vad.encoder": "bidirectional",
            "model.vad.encoder_layers": layers,
        }
    else:
        weights.pop("fusion.linear.weight", None)
        weights.pop("fusion.linear.bias", None)
        settings |= {"model.vad.fusion": "off", "model.vad.encoder": "none"}
        remarks.append("it was trained without VAD in the text (its VAD_linear, if any, was never used)")
    if fused and not headed:  # generation does not use the head
        weights |= {"vad_head.weight": torch.zeros(3, width), "vad_head.bias": torch.zeros(3)}
        settings["model.loss_weights.vad"] = 0.0
        remarks.append("it has no VAD_head, so the run's is zero and model.loss_weights.vad=0")
    return settings


def _image_encoder(stats: Mapping[str, Any], path: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
    """Return settings of an image encoder that was trained, and add it to the weights; {} if there is none."""
    found = stats.get("encoder_state_dict")
    if found is None:
        return {}
    source = f"{path}: encoder_state_dict"
    config, tower = openai_tower(Tensors(source, as_state(found, source)), "encoder.")
    weights |= tower
    return {
        "model.vision.pretrained_name": None,
        "model.vision.architecture": None,
        "model.vision.config": config,
        "model.vision.trainable": True,
    }
