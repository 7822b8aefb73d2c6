"""What each word of a text looked at: maps of the gated cross-attention, through the resampler, to a picture's patches.

The attention weights themselves hardly depend on the word: every word reads the same few latents. So each map shows
which attention made its word likelier: the gradient of the word's log-probability with respect to the logits of the
resampler's attention, a ⊙ (∂a − Σ a ∂a) for the weights a and their gradients ∂a. Positive parts are summed over heads,
latents and layers (gradient times attention, positive parts: Chefer et al., 2021). The visual prefix is held fixed.

Axes: L tokens of a text, W words, Q latents, P tokens of a picture (class token first, if there is one), h heads.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.captioner import Captioner, Text
from model.resampler import PerceiverAttention
from model.vision import VisionEncoder


@contextlib.contextmanager
def attention_biases(captioner: Captioner) -> Iterator[list[Tensor]]:
    """Add zeros that require a gradient, (1, h, Q, P + Q), to the logits of each layer of the resampler.

    The list is filled by a forward pass, whose input must be one picture.
    """
    found: list[Tensor] = []

    def add(attention: PerceiverAttention, args: tuple[Tensor, Tensor, None]) -> tuple[Tensor, Tensor, Tensor]:
        media, latents, _ = args
        keys = media.shape[1] + latents.shape[1]
        found.append(media.new_zeros(1, attention.heads, latents.shape[1], keys).requires_grad_())
        return media, latents, found[-1]

    hooks = [attention.register_forward_pre_hook(add) for attention, _ in captioner.resampler.layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


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
    is_open = any(bool(gated.alpha_attn.any()) for gated in captioner.language.cross_attention)
    return is_open and patch_grid(captioner.vision) is not None


@torch.enable_grad()
def attention_maps(
    captioner: Captioner,
    frames: Tensor,
    *,
    input_ids: Tensor,
    segment: Tensor,
    vad: Tensor,
    vad_known: Tensor,
    words: Sequence[Sequence[int]],
    tokens: Tensor | None = None,
) -> Tensor:
    """Return the maps (W, rows, columns), each of sum 1, or zeros if no patch makes the word likelier.

    The captioner must be in eval mode, `has_attention`, and have gradients: not optimized for generation.

    Args:
        frames: (1, 1, 3, H, W), one picture; tokens: (1, 1, P, Dv) as in `Captioner.look`.
        input_ids, segment, vad, vad_known: of its text, (1, L) and (1, L, 3), as in `Text`.
        words: positions whose next tokens are the word's.
    """
    with attention_biases(captioner) as biases:
        visual = captioner.look(frames, torch.ones(1, 1, dtype=torch.bool, device=frames.device), tokens)
        states = captioner.read(visual, Text(input_ids, segment, vad, vad_known, None))[0, :-1]
    log_probs = -F.cross_entropy(captioner.language.next_word(states).logits(), input_ids[0, 1:], reduction="none")
    before, rows, columns = patch_grid(captioner.vision)
    maps = []
    for positions in words:
        gradients = torch.autograd.grad(log_probs[list(positions)].sum(), biases, retain_graph=True)
        gains = sum(gradient.float().clamp(min=0).sum(dim=(0, 1, 2)) for gradient in gradients)
        maps.append(gains[before : before + rows * columns].view(rows, columns))
    found = torch.stack(maps)
    return found / found.sum(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(found.dtype).tiny)
