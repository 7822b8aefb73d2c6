"""VLE as plain functions over a state dict with the published names, to compare the implementation with.

Follows the description of iflytek/VLE (commit e322bb9) formula by formula: full attention matrices, loops over boxes
and samples, no module, no shared code. `state` may have the prefix "vle."; `config` is the content of config.json.
Axes: B pictures or texts, L text tokens, P patches, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

FUSION_EPS, HEAD_EPS, VISION_EPS = 1e-12, 1e-5, 1e-5
Boxes = Sequence[Sequence[Sequence[int]]]  # per text, per box: indices of patches from 0
Types = tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]  # per text: ids of its boxes; ids of its tokens


class Fused(NamedTuple):
    pooled: Tensor  # (B, 2 D)
    text: Tensor  # (B, L, D)
    image: Tensor  # (B, 1 + P + boxes, D)


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("vle."): value for name, value in state.items()}


def linear(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state: Mapping[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    centered = x - x.mean(dim=-1, keepdim=True)
    variance = centered.square().mean(dim=-1, keepdim=True)
    return centered / torch.sqrt(variance + eps) * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def split(x: Tensor, heads: int) -> Tensor:
    """(…, L, D) → (…, heads, L, D / heads)"""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def attend(scores: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """scores (B, heads, L, S), values (B, heads, S, d), mask (B, S) of 0 and 1. Returns (B, L, heads d)."""
    if mask is not None:
        scores = scores + (1 - mask[:, None, None, :].to(scores.dtype)) * torch.finfo(scores.dtype).min
    return (torch.softmax(scores, dim=-1) @ values).transpose(1, 2).flatten(2)


def relative_buckets(length: int, buckets: int, longest: int) -> Tensor:
    """Return δ(i − j) (L, L): the distance itself up to buckets / 2, logarithmic beyond."""
    half = buckets // 2
    table = torch.zeros(length, length, dtype=torch.long)
    for i in range(length):
        for j in range(length):
            distance = abs(i - j)
            if distance > half:
                share = math.log(distance / half) / math.log((longest - 1) / half)
                distance = half + math.ceil(share * (half - 1))
            table[i, j] = distance if i > j else -distance
    return table


def text_features(state: Mapping[str, Tensor], config: Mapping, ids: Tensor, mask: Tensor) -> Tensor:
    """DeBERTa-v2's last hidden states (B, L, D) with content-to-position and position-to-content attention."""
    config, eps = config["text_config"], config["text_config"]["layer_norm_eps"]
    buckets, heads, root = config["position_buckets"], config["num_attention_heads"], "text_model."
    x = norm(state, f"{root}embeddings.LayerNorm", state[f"{root}embeddings.word_embeddings.weight"][ids], eps)
    x = x * mask[..., None].to(x.dtype)
    relative = norm(state, f"{root}encoder.LayerNorm", state[f"{root}encoder.rel_embeddings.weight"], eps)
    distance = relative_buckets(ids.shape[1], buckets, config["max_position_embeddings"])
    place = (distance + buckets).clamp(0, 2 * buckets - 1).expand(len(ids), heads, -1, -1)
    scale = math.sqrt(3 * config["hidden_size"] / heads)  # three terms: content, c2p, p2c
    for i in range(config["num_hidden_layers"]):
        layer = f"{root}encoder.layer.{i}."
        query, key, value = (split(linear(state, f"{layer}attention.self.{n}_proj", x), heads)
                             for n in ("query", "key", "value"))  # fmt: skip
        position_query, position_key = (split(linear(state, f"{layer}attention.self.{n}_proj", relative), heads)
                                        for n in ("query", "key"))  # fmt: skip
        from_content = (query @ position_key.mT).gather(-1, place)
        from_position = (key @ position_query.mT).gather(-1, place.mT).mT
        mixed = attend((query @ key.mT + from_content + from_position) / scale, value, mask)
        x = norm(state, f"{layer}attention.output.LayerNorm",
                 x + linear(state, f"{layer}attention.output.dense", mixed), eps)  # fmt: skip
        inner = gelu(linear(state, f"{layer}intermediate.dense", x))
        x = norm(state, f"{layer}output.LayerNorm", x + linear(state, f"{layer}output.dense", inner), eps)
    return x


def image_features(state: Mapping[str, Tensor], config: Mapping, pixels: Tensor) -> Tensor:
    """CLIP's tokens (B, 1 + P, D), its post-layernorm applied to all of them. pixels (B, 3, H, W)."""
    config, root = config["vision_config"], "vision_model.vision_model."
    patch, heads = config["patch_size"], config["num_attention_heads"]
    kernel = state[f"{root}embeddings.patch_embedding.weight"].flatten(1)
    cells = pixels.unfold(2, patch, patch).unfold(3, patch, patch)  # (B, 3, rows, columns, patch, patch)
    patches = cells.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2) @ kernel.T
    first = state[f"{root}embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches], dim=1) + state[f"{root}embeddings.position_embedding.weight"]
    x = norm(state, f"{root}pre_layrnorm", x, VISION_EPS)
    for i in range(config["num_hidden_layers"]):
        layer = f"{root}encoder.layers.{i}."
        inner = norm(state, f"{layer}layer_norm1", x, VISION_EPS)
        query, key, value = (split(linear(state, f"{layer}self_attn.{n}_proj", inner), heads) for n in "qkv")
        mixed = attend(query @ key.mT / math.sqrt(query.shape[-1]), value, None)
        x = x + linear(state, f"{layer}self_attn.out_proj", mixed)
        inner = linear(state, f"{layer}mlp.fc1", norm(state, f"{layer}layer_norm2", x, VISION_EPS))
        x = x + linear(state, f"{layer}mlp.fc2", inner * torch.sigmoid(1.702 * inner))  # quick gelu
    return norm(state, f"{root}post_layernorm", x, VISION_EPS)


def _sublayer(state: Mapping[str, Tensor], name: str, x: Tensor, other: Tensor, mask: Tensor, heads: int) -> Tensor:
    """Multi-head attention of x to other, then residual and norm."""
    query = split(linear(state, f"{name}.self.query", x), heads)
    key, value = (split(linear(state, f"{name}.self.{n}", other), heads) for n in ("key", "value"))
    mixed = attend(query @ key.mT / math.sqrt(query.shape[-1]), value, mask)
    return norm(state, f"{name}.output.LayerNorm", x + linear(state, f"{name}.output.dense", mixed), FUSION_EPS)


def fusion_layer(
    state: Mapping[str, Tensor], name: str, x: Tensor, mask: Tensor, other: Tensor, other_mask: Tensor, heads: int
) -> Tensor:
    """Self-attention, cross-attention to the other stream, feed-forward; a norm after each."""
    x = _sublayer(state, f"{name}.attention", x, x, mask, heads)
    x = _sublayer(state, f"{name}.crossattention", x, other, other_mask, heads)
    inner = gelu(linear(state, f"{name}.intermediate.dense", x))
    return norm(state, f"{name}.output.LayerNorm", x + linear(state, f"{name}.output.dense", inner), FUSION_EPS)


def with_boxes(image: Tensor, boxes: Boxes, types: Types, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Append each box, the mean of its patches, to the projected image tokens (B, 1 + P, D).

    Returns tokens, mask, token types of the image and token types of the text; padded with zeros.
    """
    most, tokens = max(map(len, boxes)), image.shape[1]
    mask = torch.zeros(len(image), tokens + most)
    image_types, text_types = torch.zeros(len(image), tokens + most).long(), torch.zeros(len(image), length).long()
    rows = []
    for row, of_text in enumerate(boxes):
        means = [torch.stack([image[row, 1 + patch] for patch in box]).mean(dim=0) for box in of_text]
        padding = [torch.zeros_like(image[row, 0])] * (most - len(means))
        rows.append(torch.stack([*image[row], *means, *padding]))
        mask[row, : tokens + len(means)] = 1
        image_types[row, :tokens] = 1
        image_types[row, tokens : tokens + len(means)] = torch.tensor(list(types[0][row])).long()
        text_types[row, : len(types[1][row])] = torch.tensor(list(types[1][row]))
    return torch.stack(rows), mask, image_types, text_types


def encode(
    state: Mapping[str, Tensor],
    config: Mapping,
    ids: Tensor,
    mask: Tensor,
    pixels: Tensor,
    boxes: Boxes | None = None,
    types: Types | None = None,
) -> Fused:
    """Both towers, projections, token types, co-attention and poolers."""
    state = without_prefix(state)
    text = linear(state, "text_projection_layer", text_features(state, config, ids, mask))
    image = linear(state, "image_projection_layer", image_features(state, config, pixels))
    image_mask = torch.ones(image.shape[:2])
    text_types, image_types = torch.zeros_like(ids), torch.ones(image.shape[:2]).long()
    if boxes is not None:
        image, image_mask, image_types, text_types = with_boxes(image, boxes, types, ids.shape[1])
    table = state["token_type_embeddings.weight"]
    text, image = text + table[text_types], image + table[image_types]
    heads = config["num_attention_heads"]
    for i in range(config["num_hidden_layers"]):  # both read the other's states of the layer before
        text, image = (
            fusion_layer(state, f"cross_modal_text_layers.{i}", text, mask, image, image_mask, heads),
            fusion_layer(state, f"cross_modal_image_layers.{i}", image, image_mask, text, mask, heads),
        )
    pooled = [
        torch.tanh(linear(state, f"cross_modal_{name}_pooler.dense", stream[:, 0]))
        for name, stream in (("text", text), ("image", image))
    ]
    return Fused(torch.cat(pooled, dim=-1), text, image)


def classifier(state: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """The head of VQA, PBC and VCR: linear, norm, gelu, linear."""
    return linear(state, f"{name}.3", gelu(norm(state, f"{name}.1", linear(state, f"{name}.0", x), HEAD_EPS)))


def mlm_logits(state: Mapping[str, Tensor], config: Mapping, text: Tensor) -> Tensor:
    """Logits (B, L, vocabulary): the output layer is the text model's word table."""
    state, head = without_prefix(state), "mlm_score.1.predictions."
    x = gelu(linear(state, f"{head}transform.dense", linear(state, "mlm_score.0", text)))
    x = norm(state, f"{head}transform.LayerNorm", x, config["text_config"]["layer_norm_eps"])
    return x @ state["text_model.embeddings.word_embeddings.weight"].T + state[f"{head}bias"]


def head_logits(state: Mapping[str, Tensor], config: Mapping, head: str, fused: Fused) -> Tensor:
    if head == "mlm":
        return mlm_logits(state, config, fused.text)
    if head == "itm":
        return linear(state, "itm_score.fc", fused.pooled)
    if head == "pbc":
        return classifier(state, "pbc_classifier", fused.image[:, 1:])
    return classifier(state, {"vqa": "vqa_classifier"}.get(head, f"vcr_{head}_logit"), fused.pooled)


def vqa_loss(logits: Tensor, labels: Sequence[Sequence[int]], scores: Sequence[Sequence[float]]) -> Tensor:
    """Binary cross-entropy summed over answers, mean over questions; answers not named have the target 0."""
    targets = torch.zeros_like(logits)
    for row, (names, values) in enumerate(zip(labels, scores, strict=True)):
        for name, value in zip(names, values, strict=True):
            targets[row, name] = value
    each = -(targets * F.logsigmoid(logits) + (1 - targets) * F.logsigmoid(-logits))
    return each.mean() * logits.shape[1]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """logits (…, classes), labels (…); −100 is not counted."""
    counted = labels != -100
    chosen = logits[counted].log_softmax(dim=-1).gather(-1, labels[counted][:, None])
    return -chosen.mean()
