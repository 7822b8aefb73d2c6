"""What each word of a text looked at, through the resampler and the gated cross-attention.

Parts of the picture are blurred one by one; the map of a word shows how much likelier it is with each part than without
(occlusion: Zeiler & Fergus, 2014). The visual prefix is that of the whole picture. Attention weights would not
do: they hardly depend on the word, and the encoder has mixed the patches before the resampler attends to them.

Axes: L tokens of a text, W words, H × W pixels of a frame, N parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from model.captioner import Captioner, Text, Visual

GRID = 8  # rows or columns of a map, of the longer side
AT_ONCE = 16  # blurred pictures, with logits of all their words


def has_attention(captioner: Captioner) -> bool:
    """Return whether maps can be computed: cross-attention to a resampler's latents with a nonzero gate."""
    gated = captioner.language.cross_attention if captioner.resampler is not None else ()
    return any(bool(block.alpha_attn.any()) for block in gated)


def blurred_parts(frame: Tensor) -> tuple[Tensor, int, int]:
    """frame (3, H, W) → copies (rows·columns, 3, H, W), each blurred in one cell of the grid and its neighbors."""
    height, width = frame.shape[1:]
    rows, columns = (max(1, round(GRID * side / max(height, width))) for side in (height, width))
    near = max(height, width) // GRID
    smooth = F.avg_pool2d(F.pad(frame[None], (near,) * 4, mode="reflect"), 2 * near + 1, stride=1)[0]
    copies = frame.repeat(rows * columns, 1, 1, 1)
    for i, copy in enumerate(copies):
        row, column = divmod(i, columns)
        top, bottom = (height * edge // rows for edge in (max(row - 1, 0), min(row + 2, rows)))
        left, right = (width * edge // columns for edge in (max(column - 1, 0), min(column + 2, columns)))
        copy[:, top:bottom, left:right] = smooth[:, top:bottom, left:right]
    return copies, rows, columns


@torch.no_grad()
def attention_maps(
    captioner: Captioner,
    frames: Tensor,
    *,
    input_ids: Tensor,
    segment: Tensor,
    vad: Tensor,
    vad_known: Tensor,
    words: Sequence[Sequence[int]],
) -> Tensor:
    """Return the maps (W, rows, columns), each of sum 1, or zeros if no part of the picture makes the word likelier.

    The captioner must be in eval mode and `has_attention`.

    Args:
        frames: (1, 1, 3, H, W), one picture.
        input_ids, segment, vad, vad_known: of its text, (1, L) and (1, L, 3), as in `Text`.
        words: positions whose next tokens are the word's.
    """

    def look(pictures: Tensor) -> Visual:
        return captioner.look(pictures[:, None], torch.ones(len(pictures), 1, dtype=torch.bool, device=frames.device))

    def losses(visual: Visual) -> Tensor:  # (N, L − 1)
        count = len(visual.mean)
        text = Text(*(part.expand(count, *part.shape[1:]) for part in (input_ids, segment, vad, vad_known)), None)
        logits = captioner.language.logits(captioner.read(visual, text)[:, :-1]).float()
        return F.cross_entropy(logits.transpose(1, 2), text.input_ids[:, 1:], reduction="none")

    whole = look(frames[0])
    copies, rows, columns = blurred_parts(frames[0, 0])
    parts = [
        losses(replace(look(some), prefix=whole.prefix.expand(len(some), -1, -1))) for some in copies.split(AT_ONCE)
    ]
    gains = torch.cat(parts) - losses(whole)  # (N, L − 1)
    maps = torch.stack([gains[:, list(positions)].sum(dim=1) for positions in words]).clamp(min=0)
    maps /= maps.sum(dim=1, keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)
    return maps.view(-1, rows, columns)
