"""Predict VAD (−1..1) of the reaction to an image before its explanation is generated. Axes: N texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.captioner import Captioner, Visual
from model.decoding.reader import WordVad, prompt_text


@torch.no_grad()
def sentence_vad(
    captioner: Captioner,
    visual: Visual,
    prompts: Sequence[Sequence[int]],
    *,
    explanation_tokens: Sequence[int],
    vad: WordVad,
) -> Tensor:
    """Return (N, 3), predicted from the state at the end of each prompt, as in training, and clipped to the scale.

    Args:
        visual: one row per prompt.
        prompts, explanation_tokens: as in model.decoding.generation.generate.

    Raises:
        ValueError: the network has no head for it.
    """
    if captioner.vad_sentence_head is None:
        raise ValueError("the network has no head for the VAD of a sentence")
    text = prompt_text(prompts, explanation_tokens, vad, visual.prefix.device)
    hidden = captioner.read(visual, text)
    return captioner.vad_sentence_head(hidden[:, -1]).float().clamp(-1, 1)
