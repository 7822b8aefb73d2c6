"""Folders in the published layout of VLE with random weights: names and shapes, config.json, quirks of the files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
HEADS = ("vqa", "itm", "pbc", "mlm", "q2a", "qa2r")
GENERATION = {  # a part of what transformers 4.26 wrote into every config.json
    "return_dict": True, "output_hidden_states": False, "output_attentions": False, "torchscript": False,
    "torch_dtype": None, "use_bfloat16": False, "tf_legacy_loss": False, "pruned_heads": {},
    "tie_word_embeddings": True, "is_encoder_decoder": False, "is_decoder": False, "add_cross_attention": False,
    "cross_attention_hidden_size": None, "tie_encoder_decoder": False, "max_length": 20, "min_length": 0,
    "do_sample": False, "early_stopping": False, "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0,
    "temperature": 1.0, "top_k": 50, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0,
    "length_penalty": 1.0, "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "bad_words_ids": None,
    "num_return_sequences": 1, "chunk_size_feed_forward": 0, "output_scores": False,
    "return_dict_in_generate": False, "forced_bos_token_id": None, "forced_eos_token_id": None,
    "remove_invalid_values": False, "exponential_decay_length_penalty": None, "suppress_tokens": None,
    "begin_suppress_tokens": None, "architectures": None, "finetuning_task": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "tokenizer_class": None,
    "prefix": None, "bos_token_id": None, "pad_token_id": None, "eos_token_id": None, "sep_token_id": None,
    "decoder_start_token_id": None, "task_specific_params": None, "problem_type": None, "_name_or_path": "",
    "transformers_version": None,
}  # fmt: skip
TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 44}
TINY_TEXT = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 36,
             "vocab_size": 60, "max_position_embeddings": 32, "position_buckets": 8}  # fmt: skip
TINY_VISION = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 5, "intermediate_size": 28,
               "image_size": 32, "patch_size": 8}  # fmt: skip
LARGE_FUSION = {"hidden_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 16, "intermediate_size": 4096}
LARGE = {"fusion": LARGE_FUSION, "text": {**LARGE_FUSION, "num_hidden_layers": 24},
         "vision": {**LARGE_FUSION, "num_hidden_layers": 23, "patch_size": 14}}  # fmt: skip


def published_config(
    *, fusion: Mapping = {}, text: Mapping = {}, vision: Mapping = {}, labels: int = 7, token_types: int = 2
) -> dict:
    """Return config.json as published: base values, changed by the mappings; id2label has string keys."""
    text_config = {
        **GENERATION, "model_type": "deberta-v2", "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
        "layer_norm_eps": 1e-07, "max_position_embeddings": 512, "max_relative_positions": -1,
        "norm_rel_ebd": "layer_norm", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 0,
        "pooler_dropout": 0, "pooler_hidden_act": "gelu", "pooler_hidden_size": 768, "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False, "position_buckets": 256, "relative_attention": True, "share_att_key": True,
        "type_vocab_size": 0, "vocab_size": 128100, **text,
    }  # fmt: skip
    vision_config = {
        **GENERATION, "model_type": "clip_vision_model", "attention_dropout": 0.0, "dropout": 0.0,
        "hidden_act": "quick_gelu", "hidden_size": 768, "image_size": 224, "initializer_factor": 1.0,
        "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05, "num_attention_heads": 12,
        "num_channels": 3, "num_hidden_layers": 11, "patch_size": 16, "projection_dim": 512, **vision,
    }  # fmt: skip
    return {
        "_commit_hash": None, "transformers_version": None, "torch_dtype": "float32", "model_type": "vle",
        "attention_probs_dropout_prob": 0.1, "classifier_dropout": None, "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072,
        "layer_norm_eps": 1e-12, "num_attention_heads": 12, "num_hidden_layers": 6, "num_token_types": token_types,
        "id2label": {str(i): f"answer {i}" for i in range(labels)}, **fusion,
        "text_config": text_config, "vision_config": vision_config,
    }  # fmt: skip


def tiny_config(**changes) -> dict:
    """Return a configuration whose towers and fusion differ in width, heads and layers."""
    return published_config(**{"fusion": TINY, "text": TINY_TEXT, "vision": TINY_VISION, **changes})


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _transformer(name: str, config: Mapping, attentions: Mapping[str, tuple[str, ...]]) -> Shapes:
    """One BERT-like layer: attentions (name → its projections), then the feed-forward part."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes = _linear(f"{name}.intermediate.dense", inner, width) | _linear(f"{name}.output.dense", width, inner)
    shapes |= _norm(f"{name}.output.LayerNorm", width)
    for attention, projections in attentions.items():
        for projection in projections:
            shapes |= _linear(f"{name}.{attention}.self.{projection}", width, width)
        shapes |= _linear(f"{name}.{attention}.output.dense", width, width)
        shapes |= _norm(f"{name}.{attention}.output.LayerNorm", width)
    return shapes


def _text_shapes(config: Mapping) -> Shapes:
    width, root = config["hidden_size"], "text_model"
    shapes = {
        f"{root}.embeddings.position_ids": (1, config["max_position_embeddings"]),
        f"{root}.embeddings.word_embeddings.weight": (config["vocab_size"], width),
        f"{root}.encoder.rel_embeddings.weight": (2 * config["position_buckets"], width),
    }
    shapes |= _norm(f"{root}.embeddings.LayerNorm", width) | _norm(f"{root}.encoder.LayerNorm", width)
    for i in range(config["num_hidden_layers"]):
        projections = ("query_proj", "key_proj", "value_proj")
        shapes |= _transformer(f"{root}.encoder.layer.{i}", config, {"attention": projections})
    return shapes


def positions(config: Mapping) -> int:
    return (config["vision_config"]["image_size"] // config["vision_config"]["patch_size"]) ** 2 + 1


def _vision_shapes(config: Mapping) -> Shapes:
    count, config, root = positions(config), config["vision_config"], "vision_model.vision_model"
    width, inner, patch = config["hidden_size"], config["intermediate_size"], config["patch_size"]
    shapes = {
        f"{root}.embeddings.class_embedding": (width,),
        f"{root}.embeddings.patch_embedding.weight": (width, 3, patch, patch),
        f"{root}.embeddings.position_embedding.weight": (count, width),
        f"{root}.embeddings.position_ids": (1, count),
    }
    shapes |= _norm(f"{root}.pre_layrnorm", width) | _norm(f"{root}.post_layernorm", width)
    for i in range(config["num_hidden_layers"]):
        layer = f"{root}.encoder.layers.{i}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{projection}", width, width)
        shapes |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
        shapes |= _linear(f"{layer}.mlp.fc1", inner, width) | _linear(f"{layer}.mlp.fc2", width, inner)
    return shapes


def published_shapes(config: Mapping) -> Shapes:
    """Return name → shape of the encoder, without prefix and with both position_ids buffers."""
    width, text = config["hidden_size"], config["text_config"]
    shapes = _text_shapes(text) | _vision_shapes(config)
    shapes |= _linear("text_projection_layer", width, text["hidden_size"])
    shapes |= _linear("image_projection_layer", width, config["vision_config"]["hidden_size"])
    shapes["token_type_embeddings.weight"] = (config["num_token_types"], width)
    projections = ("query", "key", "value")
    for stream in ("image", "text"):
        shapes |= _linear(f"cross_modal_{stream}_pooler.dense", width, width)
        for i in range(config["num_hidden_layers"]):
            attentions = {"attention": projections, "crossattention": projections}
            shapes |= _transformer(f"cross_modal_{stream}_layers.{i}", config, attentions)
    return shapes


def head_shapes(config: Mapping, head: str) -> Shapes:
    """Return name → shape of a head; MLM with its output layer, which published files may lack."""
    width, text = config["hidden_size"], config["text_config"]
    if head == "itm":
        return _linear("itm_score.fc", 2, 2 * width)
    if head == "mlm":
        root, vocabulary, width_text = "mlm_score.1.predictions", text["vocab_size"], text["hidden_size"]
        shapes = _linear("mlm_score.0", width_text, width) | {f"{root}.bias": (vocabulary,)}
        shapes |= _linear(f"{root}.transform.dense", width_text, width_text)
        shapes |= _norm(f"{root}.transform.LayerNorm", width_text)
        return shapes | _linear(f"{root}.decoder", vocabulary, width_text)
    name, inner, outputs = {
        "vqa": ("vqa_classifier", 2 * width, len(config["id2label"])),
        "pbc": ("pbc_classifier", width, 2),
    }.get(head, (f"vcr_{head}_logit", 2 * width, 1))
    return _linear(f"{name}.0", inner, inner) | _norm(f"{name}.1", inner) | _linear(f"{name}.3", outputs, inner)


def random_state(config: Mapping, heads: Iterable[str] = (), *, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights without prefix, large enough that attention is far from uniform; no position_ids."""
    generator = torch.Generator().manual_seed(seed)
    shapes = published_shapes(config)
    for head in heads:
        shapes |= head_shapes(config, head)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("position_ids"):
            continue
        scale = 0.2 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
        around = 1.0 if name.endswith("weight") and len(shape) == 1 else 0.0
        state[name] = around + scale * torch.randn(shape, generator=generator)
    if "mlm" in heads:  # tied
        state["mlm_score.1.predictions.decoder.weight"] = state["text_model.embeddings.word_embeddings.weight"].clone()
        state["mlm_score.1.predictions.decoder.bias"] = state["mlm_score.1.predictions.bias"].clone()
    return state


def write_folder(
    folder: Path,
    config: Mapping,
    state: Mapping[str, Tensor],
    *,
    prefix: bool = True,
    position_ids: torch.dtype | None = torch.int64,
    decoder: bool = True,
    safetensors: bool = False,
) -> Path:
    """Write config.json and weights as published. Heads never have a prefix.

    position_ids: type of the two buffers, None for none. decoder: write MLM's tied output layer a second time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    encoder, written = published_shapes(config), {}
    for name, value in state.items():
        if decoder or ".decoder." not in name:
            written[f"vle.{name}" if prefix and name in encoder else name] = value
    if position_ids is not None:
        for name in (name for name in encoder if name.endswith("position_ids")):
            written[f"vle.{name}" if prefix else name] = torch.arange(encoder[name][1], dtype=position_ids)[None]
    if safetensors:
        save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        torch.save(written, folder / "pytorch_model.bin")
    return folder
