"""Picture with the patches darkened that a text is not about, drawn as the published pipeline does."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

BLACK_POINT = 0.4  # share of the range of values below which a patch is black
OPACITY = 178  # of 255: 0.7, rounded down


def draw_overlay(
    image: Image.Image, logits: Tensor, part: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """Return a copy of `image`, same mode and size, in which patches are covered the more, the lower their value.

    The values are the softmax over all patches. A patch is painted grey with the level g = its value, scaled from the
    black point to the largest, and with the opacity 0.7 · (1 − g).

    Args:
        logits: (P,) of the class "yes", for a square grid of patches, row by row.
        part: left, top, right and bottom of the part of the picture that the grid covers, in pixels; what is outside
            was not seen and is painted like the lowest value. None: the whole picture, as published.
    """
    values = logits.detach().float().softmax(dim=-1).cpu().numpy()
    lowest, highest = values.min(), values.max()
    black = lowest + BLACK_POINT * (highest - lowest)
    scaled = (values - black) / (highest - black) if highest > black else np.zeros_like(values)
    grey = (255 * scaled.clip(0, 1)).astype(np.uint8)
    cover = np.stack([grey, grey, grey, (OPACITY * (1 - grey / 255)).astype(np.uint8)], axis=-1)
    side = round(len(values) ** 0.5)
    front = Image.fromarray(cover.reshape(side, side, 4))
    left, top, right, bottom = (0, 0, *image.size) if part is None else (round(edge) for edge in part)
    front = front.resize((right - left, bottom - top), Image.Resampling.NEAREST)
    if front.size != image.size:
        seen, front = front, Image.new("RGBA", image.size, (0, 0, 0, OPACITY))
        front.paste(seen, (left, top))
    result = image.copy()
    result.paste(front, (0, 0), front)
    return result
