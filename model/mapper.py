"""Mapper: one visual prefix vector per frame, placed before the token embeddings.

Axes: B images or videos, T frames, P tokens of a frame, Dv width of the vision encoder, D width of GPT-2.
"""

from __future__ import annotations

from torch import Tensor, nn

from common.errors import UserError


class Mapper(nn.Module):
    """tokens (B, T, P, Dv) → prefix (B, T, D): the mean token of each frame, through an MLP or a transformer."""

    def __init__(
        self, dim_visual: int, dim: int, *, mapper_type: str, depth: int, heads: int, dim_feedforward: int, mlp_dim: int
    ) -> None:
        super().__init__()
        if mapper_type == "mlp":
            self._mapper = nn.Sequential(nn.Linear(dim_visual, mlp_dim), nn.Tanh(), nn.Linear(mlp_dim, dim))
        elif mapper_type == "transformer":
            if dim_visual % heads:
                raise UserError(f"model.mapper.heads={heads} does not divide the vision encoder's width {dim_visual}")
            layer = nn.TransformerEncoderLayer(dim_visual, heads, dim_feedforward, batch_first=True)
            self._mapper = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
            self._project = nn.Identity() if dim_visual == dim else nn.Linear(dim_visual, dim)
        else:
            raise UserError(f"model.mapper.mapper_type={mapper_type!r} is not one of mlp, transformer")
        self.mapper_type = mapper_type

    def forward(self, tokens: Tensor, frame_mask: Tensor) -> Tensor:
        """frame_mask: (B, T) bool; the prefix of a padding frame is zero."""
        mean = tokens.mean(dim=2)
        if self.mapper_type == "mlp":
            prefix = self._mapper(mean)
        else:
            prefix = self._project(self._mapper(mean, src_key_padding_mask=~frame_mask))
        return prefix * frame_mask[..., None]
