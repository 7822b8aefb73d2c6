"""Score how well explanations fit their image and emotion, by the contrastive head. Axes: N texts."""

from __future__ import annotations

import torch
from torch import Tensor

from model.captioner import Captioner, Visual


@torch.no_grad()
def contrastive_scores(captioner: Captioner, visual: Visual, texts) -> Tensor:
    """Return scores (N,) of (image, emotion, explanation); a higher score is a better fit.

    They equal `CaptionerOutput.contrastive[:, 0]` times the temperature, and do not depend on the other texts. Only
    scores for the same image and emotion are comparable, since training contrasts no others.

    Args:
        visual: one row per text.
        texts: a data.schema.Batch, or an object with the fields of its texts: whole ones, from emotion to <eos>.

    Raises:
        ValueError: the network has no contrastive head.
    """
    if captioner.contrastive is None:
        raise ValueError("the network has no contrastive head")
    hidden = captioner.read(visual, captioner.text_of(texts))
    return captioner.contrastive(visual.mean, *captioner.pooled(hidden, texts)).float()
