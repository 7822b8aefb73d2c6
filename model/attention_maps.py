"""Attention of the words of a text to the patches of a picture, from the weights of the gated cross-attention.

Words attend to latents in front of several GPT-2 blocks; latents attend to patches and to each other in the layers of
the resampler. The two are combined by attention rollout (Abnar & Zuidema, 2020): heads are averaged, and a resampler
layer, being residual, counts half for its attention and half for its input. Blocks are weighted by their gates,
|tanh(a)|. The maps ignore the visual prefix, self-attention among the words, and the values; they do not explain why a
word was chosen.

Axes: B = 1 picture, L tokens of its text, Q latents, P tokens of a picture (class token first, if there is one).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.attention import split_heads
from model.captioner import Captioner, Text
from model.gated_xattn import CrossAttention, KeysValues
from model.resampler import PerceiverAttention
from model.vision import VisionEncoder


@dataclass(slots=True)
class AttentionMaps:
    """Attention of each token of a text, whose state predicts the *next* token."""

    patches: Tensor  # (L, rows, columns), sum 1 for each token; zeros if the class token has all the attention
    share: Tensor  # (L,) of the attention to the picture's tokens that is on patches; the rest is on the class token


@dataclass(slots=True)
class Recorded:
    """Attention weights, averaged over heads, in the order in which they were computed."""

    resampler: list[Tensor] = field(default_factory=list)  # a layer: (B, Q, P + Q)
    words: list[Tensor] = field(default_factory=list)  # a block with cross-attention: (B, positions, Q)


@contextlib.contextmanager
def recorded(captioner: Captioner) -> Iterator[Recorded]:
    """Record the attention weights of every forward pass inside the context."""
    found = Recorded()
    hooks = [
        gated.attn.register_forward_pre_hook(lambda module, args: found.words.append(word_weights(module, *args)))
        for gated in captioner.language.cross_attention
    ]
    hooks += [
        attention.register_forward_pre_hook(lambda module, args: found.resampler.append(latent_weights(module, *args)))
        for attention, _ in (captioner.resampler.layers if captioner.resampler is not None else ())
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def latent_weights(attention: PerceiverAttention, media: Tensor, latents: Tensor, mask: Tensor | None) -> Tensor:
    """Return the weights (B, Q, P + Q) of a forward pass with these arguments, averaged over heads."""
    latents = attention.norm_latents(latents)
    context = torch.cat([attention.norm_media(media), latents], dim=1)
    queries, keys = (split_heads(x, attention.heads) for x in (attention.to_q(latents), attention.to_k(context)))
    return _weights(queries, keys, mask).mean(dim=1)


def word_weights(attention: CrossAttention, y: Tensor, keys_values: KeysValues) -> Tensor:
    """Return the weights (B, positions, Q) of a forward pass with these arguments, averaged over heads."""
    queries = split_heads(attention.to_q(attention.layer_norm(y)), attention.heads)
    return _weights(queries, keys_values[0], None).mean(dim=1)


def _weights(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    logits = queries.float() @ keys.float().transpose(-1, -2) / math.sqrt(queries.shape[-1])
    return (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(dim=-1)


def rollout(layers: list[Tensor]) -> Tensor:
    """Weights of the resampler's layers, each (B, Q, P + Q) → share of each token in each latent (B, Q, P).

    Rows sum to less than one: the rest is the share of the initial latents.
    """
    batch, latents, keys = layers[0].shape
    total = layers[0].new_zeros(batch, latents, keys - latents)
    for weights in layers:
        media, others = weights.split([keys - latents, latents], dim=-1)
        total = (total + media + others @ total) / 2
    return total


def gate_weights(captioner: Captioner) -> Tensor:
    """Return the weights (blocks with cross-attention,) of sum 1; zeros if all gates are zero."""
    gates = torch.cat([gated.alpha_attn.detach() for gated in captioner.language.cross_attention]).float().tanh().abs()
    return gates / gates.sum().clamp(min=torch.finfo(gates.dtype).tiny)


def patch_grid(vision: VisionEncoder) -> tuple[int, int, int] | None:
    """Return (tokens before the patches, rows, columns), in the aspect ratio of the picture; None without a grid."""
    size = vision.preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    for before in range(vision.num_tokens):
        rows = round(math.sqrt((vision.num_tokens - before) * height / width))
        columns = round(rows * width / height)
        if rows and rows * columns == vision.num_tokens - before:
            return before, rows, columns
    return None


def has_attention(captioner: Captioner) -> bool:
    """Return whether maps can be computed: cross-attention with a nonzero gate, over patches on a grid."""
    if captioner.resampler is None or not captioner.language.cross_attention:
        return False
    return bool(gate_weights(captioner).sum() > 0) and patch_grid(captioner.vision) is not None


@torch.no_grad()
def attention_maps(
    captioner: Captioner,
    frames: Tensor,
    *,
    input_ids: Tensor,
    segment: Tensor,
    vad: Tensor,
    vad_known: Tensor,
    tokens: Tensor | None = None,
) -> AttentionMaps:
    """Compute the maps of one text in one pass; the captioner must be in eval mode and `has_attention`.

    Args:
        frames: (1, 1, 3, H, W), one picture; tokens: (1, 1, P, Dv) as in `Captioner.look`.
        input_ids, segment, vad, vad_known: of its text, (1, L) and (1, L, 3), as in `Text`.
    """
    with recorded(captioner) as found:
        visual = captioner.look(frames, torch.ones(1, 1, dtype=torch.bool, device=frames.device), tokens)
        captioner.read(visual, Text(input_ids, segment, vad, vad_known, None))
    before, rows, columns = patch_grid(captioner.vision)
    gates = gate_weights(captioner).tolist()
    to_latents = sum(gate * words[0] for gate, words in zip(gates, found.words, strict=True))
    to_tokens = to_latents[visual.prefix.shape[1] :] @ rollout(found.resampler)[0]  # (L, P)
    patches = to_tokens[:, before:]
    total = patches.sum(dim=-1)
    maps = patches / total.clamp(min=torch.finfo(total.dtype).tiny)[:, None]
    return AttentionMaps(maps.view(-1, rows, columns), total / to_tokens.sum(dim=-1))
