"""Perceiver resampler (Alayrac et al., Flamingo, 2022): any number of visual tokens → a fixed number of latents.

Axes: B images or videos, T frames, P tokens of a frame, Q latents, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from common.errors import UserError
from model.attention import attend, feed_forward, split_heads

INITIAL_STD = 0.02  # of the latents before they have attended to a picture


class PerceiverAttention(nn.Module):
    """Latents attend to the visual tokens and to themselves."""

    def __init__(self, dim: int, *, dim_head: int, heads: int) -> None:
        super().__init__()
        inner = dim_head * heads
        self.heads = heads
        self.norm_media = nn.LayerNorm(dim)
        self.norm_latents = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(dim, inner, bias=False)
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.Linear(inner, dim, bias=False)

    def forward(self, media: Tensor, latents: Tensor, mask: Tensor | None) -> Tensor:
        latents = self.norm_latents(latents)
        context = torch.cat([self.norm_media(media), latents], dim=1)
        queries, keys, values = (
            split_heads(x, self.heads) for x in (self.to_q(latents), self.to_k(context), self.to_v(context))
        )
        return self.to_out(attend(queries, keys, values, mask=mask))


class Resampler(nn.Module):
    """tokens (B, T, P, D) → latents (B, Q, D).

    Padding frames are masked, so the latents of a video do not depend on the rest of its batch.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        dim_head: int,
        heads: int,
        num_latents: int,
        num_time_embeds: int,
        ff_mult: int,
        activation: str,
    ) -> None:
        super().__init__()
        # Published with a standard deviation of 1, at which 2 % of the latents' variance is between pictures at first.
        self.latents = nn.Parameter(torch.randn(num_latents, dim) * INITIAL_STD)
        self.time_pos_emb = nn.Parameter(torch.randn(num_time_embeds, 1, dim) * INITIAL_STD)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            attention = PerceiverAttention(dim, dim_head=dim_head, heads=heads)
            self.layers.append(nn.ModuleList([attention, feed_forward(dim, mult=ff_mult, activation=activation)]))
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, frame_mask: Tensor) -> Tensor:
        """frame_mask: (B, T) bool, True for a real frame.

        Raises:
            UserError: more frames than time embeddings.
        """
        batch, frames, per_frame, _ = tokens.shape
        if frames > len(self.time_pos_emb):
            raise UserError(
                f"a video of {frames} frames, but model.resampler.num_time_embeds={len(self.time_pos_emb)}: "
                "raise it, or lower dataset.max_frames"
            )
        media = rearrange(tokens + self.time_pos_emb[:frames], "b t p d -> b (t p) d")
        latents = repeat(self.latents, "q d -> b q d", b=batch)
        mask = None
        if frames > 1:
            visible = frame_mask.repeat_interleave(per_frame, dim=1)
            mask = F.pad(visible, (0, len(self.latents)), value=True)[:, None, None]
        for attention, ff in self.layers:
            latents = latents + attention(media, latents, mask)
            latents = latents + ff(latents)
        return self.norm(latents)
