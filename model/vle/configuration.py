"""Configuration of VLE: two towers and the fusion encoder on top of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from transformers import CLIPVisionConfig, DebertaV2Config, PreTrainedConfig

from common.errors import UserError

# The base model's towers: DeBERTa-v3-base, and CLIP ViT-B/16 without its last block, as in METER.
TEXT_BASE = {
    "vocab_size": 128100,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "position_buckets": 256,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "position_biased_input": False,
    "type_vocab_size": 0,
}
VISION_BASE = {"num_hidden_layers": 11, "patch_size": 16, "image_size": 224}


class VLEConfig(PreTrainedConfig):
    """Sizes of VLE; the defaults are those of hfl/vle-base.

    Args:
        text_config, vision_config: of DebertaV2Model and CLIPVisionModel, as objects or mappings (then on top of the
            base model's values, unless the mapping is a complete dump, which has every key).
        num_token_types: 2 (text, image), and one for each object that a text can refer to (VCR).
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, hidden_act, hidden_dropout_prob,
            attention_probs_dropout_prob, layer_norm_eps: of the fusion encoder.
        id2label: answers (VQA) or labels, as a list or a mapping with whole numbers or their strings as keys.
        object_names: classes of the objects that pre-training hides; not a published setting.
    """

    model_type = "vle"
    sub_configs: ClassVar = {"text_config": DebertaV2Config, "vision_config": CLIPVisionConfig}

    def __init__(
        self,
        text_config: Mapping[str, Any] | DebertaV2Config | None = None,
        vision_config: Mapping[str, Any] | CLIPVisionConfig | None = None,
        num_token_types: int = 2,
        hidden_size: int = 768,
        num_hidden_layers: int = 6,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        id2label: Mapping[int | str, str] | Sequence[str] | None = None,
        object_names: Sequence[str] = (),
        **others: Any,
    ) -> None:
        self.text_config = _tower(text_config, DebertaV2Config, TEXT_BASE)
        self.vision_config = _tower(vision_config, CLIPVisionConfig, VISION_BASE)
        self.num_token_types, self.hidden_size = num_token_types, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.intermediate_size, self.hidden_act = intermediate_size, hidden_act
        self.hidden_dropout_prob, self.attention_probs_dropout_prob = hidden_dropout_prob, attention_probs_dropout_prob
        self.initializer_range, self.layer_norm_eps = initializer_range, layer_norm_eps
        self.object_names = [*object_names]
        if id2label is not None:
            others["id2label"] = _labels(id2label)
            others["label2id"] = {label: key for key, label in others["id2label"].items()}
        super().__init__(**others)


def _labels(given: Mapping[int | str, str] | Sequence[str]) -> dict[int, str]:
    """Return the labels by number from 0; raise UserError for gaps, other keys, or two equal labels."""
    pairs = given.items() if isinstance(given, Mapping) else enumerate(given)
    try:
        found = {int(key): str(label) for key, label in pairs}
    except ValueError:
        raise UserError("id2label: its keys must be whole numbers, or it must be a list") from None
    if sorted(found) != [*range(len(found))]:
        raise UserError(f"id2label: its keys must be 0 to {len(found) - 1}, without a gap")
    if twice := [label for label, times in Counter(found.values()).items() if times > 1]:
        raise UserError(f"id2label: the label {twice[0]!r} occurs twice")
    return dict(sorted(found.items()))


def _tower(given: Mapping[str, Any] | PreTrainedConfig | None, kind: type, base: Mapping[str, Any]) -> PreTrainedConfig:
    """Return a tower's configuration; dumps of older versions of transformers also name their model_type."""
    if isinstance(given, PreTrainedConfig):
        return given
    values = {key: value for key, value in (given or {}).items() if key not in ("model_type", "transformers_version")}
    return kind(**{**base, **values})
