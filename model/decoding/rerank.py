"""How well an explanation goes with its image and its emotion, by the contrastive head on the whole text.

Axes: N texts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.captioner import Captioner, Visual


@torch.no_grad()
def contrastive_scores(captioner: Captioner, visual: Visual, texts) -> Tensor:
    """Scores (N,) of (image, emotion, explanation), each text read as in training; higher fits better.

    They are what training's forward pass gives the true explanation (`CaptionerOutput.contrastive[:, 0]`), and do not
    depend on the other texts. Only scores of the same image and emotion should be compared: training pushes apart no
    others.

    Args:
        visual: one row per text.
        texts: a data.schema.Batch, or anything with the fields of its texts: whole sentences with their emotion, <eos>
            included.

    Raises:
        ValueError: the network has no contrastive head.
    """
    if captioner.contrastive is None:
        raise ValueError("the network has no contrastive head")
    hidden = captioner.read(visual, captioner.text_of(texts))
    return captioner.contrastive(visual.mean, *captioner.pooled(hidden, texts)).float()
