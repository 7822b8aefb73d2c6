"""Tiny VLE parts for the tests: a configuration, random models, and the files of a published processor."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.vle.configuration import VLEConfig

# fmt: off
WORDS = [
    "a", "an", "and", "answer", "are", "awe", "because", "blue", "boat", "calm", "car", "cat", "color", "colour", "dog",
    "does", "emotion", "enormous", "evoke", "feel", "fear", "green", "grey", "horse", "house", "how", "in", "is", "it",
    "light", "live", "lost", "man", "many", "me", "no", "of", "on", "painting", "person", "question", "red", "sea",
    "see", "shown", "sky", "small", "storm", "sun", "the", "there", "this", "tiny", "tree", "under", "visitor", "what",
    "where", "which", "why", "with", "woman", "yellow", "yes", "Casey", "Riley", "Jessie", "Jackie", "Avery",
]
# fmt: on
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:?!'-/()"
NORMAL, UNKNOWN, CONTROL = 1, 2, 3  # types of pieces in a sentencepiece model
TEXT = {
    "vocab_size": 256,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "relative_attention": True,
    "position_buckets": 8,
    "max_relative_positions": -1,
    "max_position_embeddings": 64,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "hidden_act": "quick_gelu",
}
ANSWERS = {0: "yes", 1: "no", 2: "blue", 3: "boat", 4: "awe"}


def tiny_config(**changes: Any) -> VLEConfig:
    """Return a configuration with widths 16 (text), 24 (vision), 20 (fusion), 32 px in 4 × 4 patches, 5 answers.

    `text_config` and `vision_config` in `changes` replace single entries; every other key replaces the value.
    """
    text = TEXT | changes.pop("text_config", {})
    vision = VISION | changes.pop("vision_config", {})
    fusion = {
        "num_token_types": 8,
        "hidden_size": 20,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "id2label": ANSWERS,
    }
    return VLEConfig(text_config=text, vision_config=vision, **(fusion | changes))


def tiny_model(model_class: type[torch.nn.Module], seed: int = 0, **changes: Any) -> Any:
    """Return a model of `model_class` with random weights from `seed`, in eval mode; `changes` as in tiny_config."""
    torch.manual_seed(seed)
    model = model_class(tiny_config(**changes)).eval()
    with torch.no_grad():  # the usual initial values are so small that all inputs give nearly the same outputs
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


def spm_bytes(pieces: Sequence[tuple[str, float, int]], charsmap: bytes = b"", model_type: int = 1) -> bytes:
    """Return a sentencepiece model file: pieces (text, score, type), and the compiled rules of its normaliser."""
    model = b"".join(
        _field(1, _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind))
        for text, score, kind in pieces
    )
    normaliser = _field(1, b"nmt_nfkc" if charsmap else b"identity") + _field(2, charsmap)
    return model + _field(2, b"\x18" + _varint(model_type)) + _field(3, normaliser)


def write_spm(folder: Path, words: Sequence[str] = WORDS, charsmap: bytes = b"") -> Path:
    """Write `spm.model` with [PAD], [CLS], [SEP], [UNK], "▁", the words, and single characters; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [(token, 0.0, CONTROL) for token in ("[PAD]", "[CLS]", "[SEP]")] + [("[UNK]", 0.0, UNKNOWN)]
    pieces += [("▁", -3.0, NORMAL)]
    pieces += [(f"▁{word}", -4.0 - 0.01 * rank, NORMAL) for rank, word in enumerate(dict.fromkeys(words))]
    pieces += [(letter, -9.0, NORMAL) for letter in CHARACTERS]
    path = folder / "spm.model"
    path.write_bytes(spm_bytes(pieces, charsmap))
    return path


def write_processor(folder: Path, size: int = 32, words: Sequence[str] = WORDS, charsmap: bytes = b"") -> Path:
    """Write the processor files of a published checkpoint, with pictures of `size` px, into `folder`; return it."""
    write_spm(folder, words, charsmap)
    mask = 5 + len(dict.fromkeys(words)) + len(CHARACTERS)
    files = {
        "added_tokens.json": {"[MASK]": mask},
        "tokenizer_config.json": {"do_lower_case": False, "vocab_type": "spm", "tokenizer_class": "DebertaV2Tokenizer"},
        "preprocessor_config.json": {
            "crop_size": {"height": size, "width": size},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_processor_type": "CLIPFeatureExtractor",
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"shortest_edge": size},
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def _varint(value: int) -> bytes:
    low = bytearray()
    while value >= 128:
        low.append(value % 128 + 128)
        value //= 128
    return bytes([*low, value])


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content
