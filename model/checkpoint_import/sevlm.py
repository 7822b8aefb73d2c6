"""SEVLM's checkpoints (Zhang et al., ECCV 2024), as its code writes and Hugging Face's jing5566/SEVLM holds them.

    nle_model_NAME/            config.json, pytorch_model.bin (or model.safetensors): the decoder with its heads
    nle_gpt2_tokenizer_0/      GPT-2's files and added_tokens.json: <pad> <prefix> <emotion> <explanation> come last
    ckpt_stats_NAME.tar        a dict of torch.save, not a tar: emo_encoder_state_dict (the VAD encoder),
                               encoder_state_dict (the image encoder, only if it was trained), epoch, scheduler, and the
                               optimiser, which is not read

NAME is best-res or best-acc. Of the decoder, `transformer.` is GPT-2 with cross-attention and VAD_linear, the fusion;
`sim_mlp` is the contrastive head, VAD_head the head for the VAD of words. Which of them were trained is told by their
names being there, not by the flags of config.json.
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
from model.weights.layout import Layout, Tensors, layout_of, pair
from model.weights.plain import as_dict, as_state, numpy_numbers, read_object, read_state, read_torch, weights_file

NAMES = ("best-res", "best-acc")
TOKENIZER = "nle_gpt2_tokenizer_0"
SPECIALS = ("<pad>", "<prefix>", "<emotion>", "<explanation>")
GPT2 = "transformer."
WORDS, HEAD = f"{GPT2}wte.weight", "lm_head.weight"


def read_sevlm(folder: Path, *, name: str | None = None) -> Imported:
    """The checkpoint in `folder`.

    Args:
        name: which one; None: best-res, else best-acc, else the only one there is.

    Raises:
        UserError: a file is missing, damaged or refused, or does not hold SEVLM; what is wrong is named.
    """
    name = name or _best(folder)
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
    for part in (
        _vad(stats, stats_path, weights, gpt2.n_embd, remarks),
        _contrastive(weights, gpt2.n_embd),
        _image_encoder(stats, stats_path, weights),
    ):
        settings |= part
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


def _best(folder: Path) -> str:
    there = sorted(path.name.removeprefix("nle_model_") for path in folder.glob("nle_model_*") if path.is_dir())
    for name in (*NAMES, *there[: len(there) == 1]):
        if name in there:
            return name
    if there:
        raise UserError(f"{folder} holds several checkpoints ({', '.join(there)}): choose one with --name")
    inside = next(iter(sorted(folder.glob("*/nle_model_*"))), None)
    hint = f"; did you mean {inside.parent}?" if inside else ""
    raise UserError(
        f"{folder / 'nle_model_best-res'} is missing: give the folder that holds it, {TOKENIZER} and "
        f"ckpt_stats_best-res.tar{hint}"
    )


# --- the decoder ----------------------------------------------------------------------------------------------------


def _decoder(tensors: Tensors, config: Mapping[str, Any], model: Path) -> tuple[dict, dict[str, Tensor], GPT2Config]:
    """GPT-2 and every head, and what the run's configuration says of GPT-2."""
    if config.get("len_prefix") or any(name.startswith(f"{GPT2}clip_project.") for name in tensors.state):
        raise UserError(
            f"{model}: it has a visual prefix (len_prefix={config.get('len_prefix')}, clip_project), which cannot be "
            "imported; the published checkpoint has none"
        )
    tensors = tied_head(tensors.without(ends=is_gpt2_buffer), HEAD, WORDS)
    gpt2 = gpt2_of(tensors, GPT2, _block, cross_attention=True)
    layout = gpt2_layout(gpt2, GPT2, "language.lm.transformer.", _block)
    weights = tensors.match(layout | _heads(tensors, gpt2.n_embd))
    settings = {
        "model.text.pretrained_name": None,
        "model.text.config": read_gpt2_settings(gpt2, model / "config.json"),
        "model.text.trainable": True,
    }
    return settings, weights, gpt2


def _block(i: int) -> str:
    return f"{GPT2}h.{i}."


def _heads(tensors: Tensors, width: int) -> Layout:
    """Those of fusion, VAD and contrastive head that are there."""
    layout: Layout = {}
    if tensors.has(f"{GPT2}VAD_linear."):
        layout |= pair(f"{GPT2}VAD_linear", "fusion.linear", width, width + 3)
    if tensors.has("VAD_head."):
        layout |= pair("VAD_head", "vad_head", 3, width)
    if tensors.has("sim_mlp."):
        hidden, inputs = tensors.matrix("sim_mlp.pred.0.weight")[0], 3 * width
        last = tensors.count("sim_mlp.pred.") - 1
        for i in range(0, last + 1, 2):  # with a ReLU behind each but the last
            outputs = 1 if i == last else hidden
            layout |= pair(f"sim_mlp.pred.{i}", f"contrastive.pred.{i}", outputs, inputs)
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


# --- the rest of the training's state -------------------------------------------------------------------------------


def _vad(
    stats: Mapping[str, Any], path: Path, weights: dict[str, Tensor], width: int, remarks: list[str]
) -> dict[str, Any]:
    """The VAD encoder, added to the weights, and what becomes of fusion and head."""
    found = stats.get("emo_encoder_state_dict")
    fused = found is not None
    settings: dict[str, Any] = {"model.vad.sentence": False}
    if fused:
        if "fusion.linear.weight" not in weights:
            raise UserError(f"{path} holds a VAD encoder, but the decoder beside it has no {GPT2}VAD_linear for it")
        tensors = Tensors(f"{path}: emo_encoder_state_dict", as_state(found, f"{path}: emo_encoder_state_dict"))
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
    headed = "vad_head.weight" in weights
    if fused and not headed:  # the head is nothing that writing needs
        weights |= {"vad_head.weight": torch.zeros(3, width), "vad_head.bias": torch.zeros(3)}
        settings["model.loss_weights.vad"] = 0.0
        remarks.append("it has no VAD_head, so the run's is zero and model.loss_weights.vad=0")
    return settings | {"model.vad.enabled": fused or headed}


def _image_encoder(stats: Mapping[str, Any], path: Path, weights: dict[str, Tensor]) -> dict[str, Any]:
    """The image encoder where it was trained and so is in the file, added to the weights."""
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
