"""Which patches of a picture the words of a text looked at, from the weights of the gated cross-attention.

Words attend to latents, in front of several GPT-2 blocks; latents attend to patches and to each other, in the layers of
the resampler. The two are joined by attention rollout (Abnar & Zuidema, 2020): heads are averaged, and as every
resampler layer adds to what its latents were, it passes on half of what it attends to and half of what came in. The
blocks count by how far their gates are open, |tanh(a)|.

What this leaves out: the visual prefix, self-attention among the words, and what the values do to what is looked at.
It says where a network looked, not why it wrote a word.

Axes: B = 1 picture, L tokens of its text, Q latents, P tokens of a picture (class token first, where there is one).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.attention import split_heads
from model.captioner import Captioner, Text, Visual
from model.gated_xattn import CrossAttention, KeysValues
from model.resampler import PerceiverAttention
from model.vision import VisionEncoder


@dataclass(slots=True)
class AttentionMaps:
    """Where each token of a text looked as the *next* token was chosen."""

    patches: Tensor  # (L, rows, columns), each token's sum 1; zeros where the class token has it all
    share: Tensor  # (L,) of the attention to the picture's tokens, what the patches had; the rest is the class token's


@dataclass(slots=True)
class Recorded:
    """Attention weights, averaged over heads, in the order in which they were computed."""

    resampler: list[Tensor] = field(default_factory=list)  # a layer: (B, Q, P + Q)
    words: list[Tensor] = field(default_factory=list)  # a block with cross-attention: (B, positions, Q)


@contextlib.contextmanager
def recorded(captioner: Captioner) -> Iterator[Recorded]:
    """Notes the attention weights of every pass inside the `with`, without a say in what is computed."""
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
    """(B, Q, P + Q) of the arguments of its forward pass, averaged over heads."""
    latents = attention.norm_latents(latents)
    context = torch.cat([attention.norm_media(media), latents], dim=1)
    queries, keys = (split_heads(x, attention.heads) for x in (attention.to_q(latents), attention.to_k(context)))
    return _weights(queries, keys, mask).mean(dim=1)


def word_weights(attention: CrossAttention, y: Tensor, keys_values: KeysValues) -> Tensor:
    """(B, positions, Q) of the arguments of its forward pass, averaged over heads."""
    queries = split_heads(attention.to_q(attention.layer_norm(y)), attention.heads)
    return _weights(queries, keys_values[0], None).mean(dim=1)


def _weights(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    logits = queries.float() @ keys.float().transpose(-1, -2) / math.sqrt(queries.shape[-1])
    return (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(dim=-1)


def rollout(layers: list[Tensor]) -> Tensor:
    """Weights of the resampler's layers, each (B, Q, P + Q) → (B, Q, P): what each latent has of each token at the end.

    Rows sum to less than one: the rest is what the latents were before they looked.
    """
    batch, latents, keys = layers[0].shape
    carried = layers[0].new_zeros(batch, latents, keys - latents)
    for weights in layers:
        media, others = weights.split([keys - latents, latents], dim=-1)
        carried = (carried + media + others @ carried) / 2
    return carried


def gate_weights(captioner: Captioner) -> Tensor:
    """(blocks with cross-attention,) of sum 1; zeros where all gates are shut."""
    gates = torch.cat([gated.alpha_attn.detach() for gated in captioner.language.cross_attention]).float().tanh().abs()
    return gates / gates.sum().clamp(min=torch.finfo(gates.dtype).tiny)


def patch_grid(vision: VisionEncoder) -> tuple[int, int, int] | None:
    """(tokens before the patches, rows, columns), the grid being shaped like the picture; None where there is none."""
    size = vision.preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else size
    for before in range(vision.num_tokens):
        rows = round(math.sqrt((vision.num_tokens - before) * height / width))
        columns = round(rows * width / height)
        if rows and rows * columns == vision.num_tokens - before:
            return before, rows, columns
    return None


def has_attention(captioner: Captioner) -> bool:
    """Whether there is anything to see: cross-attention with a gate that is open, over patches on a grid."""
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
    """One pass over a written text; the captioner must be in eval mode and `has_attention`.

    Args:
        frames: (1, 1, 3, H, W), one picture; tokens: (1, 1, P, Dv) as in `Captioner.look`.
        input_ids, segment, vad, vad_known: of its text, (1, L) and (1, L, 3), as in `Text`.
    """
    with recorded(captioner) as found:
        visual = captioner.look(frames, torch.ones(1, 1, dtype=torch.bool, device=frames.device), tokens)
        captioner.read(visual, Text(input_ids, segment, vad, vad_known, None))
    return _joined(captioner, visual, found)


def _joined(captioner: Captioner, visual: Visual, found: Recorded) -> AttentionMaps:
    before, rows, columns = patch_grid(captioner.vision)
    gates = gate_weights(captioner).tolist()
    to_latents = sum(gate * words[0] for gate, words in zip(gates, found.words, strict=True))
    seen = to_latents[visual.prefix.shape[1] :] @ rollout(found.resampler)[0]  # (L, P)
    patches = seen[:, before:]
    total = patches.sum(dim=-1)
    maps = patches / total.clamp(min=torch.finfo(total.dtype).tiny)[:, None]
    return AttentionMaps(maps.view(-1, rows, columns), total / seen.sum(dim=-1))
