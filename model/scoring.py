"""The emotion is scored, not parsed: how likely is each of the nine labels after the shared prompt?

Axes: B images, C labels, L tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.captioner import Captioner, Visual
from model.generation import WordVad, prompt_tensors


@torch.no_grad()
def emotion_log_probs(
    captioner: Captioner, visual: Visual, *, prompt: Sequence[int], labels: Sequence[Sequence[int]], vad: WordVad
) -> Tensor:
    """Log-probabilities (B, C) of the labels, normalised over them: exp sums to one in every row.

    A label's score is the sum over its tokens given the image and the prompt; labels are not prefixes of each other.
    The images and the prompt are read once; only the labels of several tokens need a second, short pass.

    Args:
        prompt: token ids before the emotion ("<bos> the emotion is").
        labels: token ids of each label.
        vad: VAD of the words, as in training.
    """
    batch = len(visual.prefix)
    cache = captioner.language.new_cache()
    device = visual.prefix.device
    text = prompt_tensors([list(prompt)] * batch, [0] * batch, vad, device)
    hidden = captioner.read(visual, captioner.embed(*text.embedded), text.attention_mask, cache)
    first = captioner.language.logits(hidden[:, -1]).float().log_softmax(dim=-1)
    scores = first[:, [label[0] for label in labels]]

    longer = [i for i, label in enumerate(labels) if len(label) > 1]
    if longer:
        scores[:, longer] += _rest(captioner, visual, cache, prompt, [labels[i] for i in longer], vad)
    return scores.log_softmax(dim=-1)


def _rest(
    captioner: Captioner,
    visual: Visual,
    cache,
    prompt: Sequence[int],
    labels: Sequence[Sequence[int]],
    vad: WordVad,
) -> Tensor:
    """Σ log p of the tokens after the first, (B, C), from the cache of the prompt."""
    batch, count, device = len(visual.prefix), len(labels), visual.prefix.device
    cache.batch_repeat_interleave(count)
    rows = visual.rows(torch.arange(batch, device=device).repeat_interleave(count))
    width = max(map(len, labels)) - 1
    inputs = torch.zeros(count, width, dtype=torch.long, device=device)
    targets = torch.full((count, width), -1, device=device)
    values = torch.zeros(count, width, 3, device=device)
    known = torch.zeros(count, width, dtype=torch.bool, device=device)
    for i, label in enumerate(labels):
        length = len(label) - 1
        inputs[i, :length] = torch.tensor(label[:-1])
        targets[i, :length] = torch.tensor(label[1:])
        label_vad, label_known, _ = vad.align([*prompt, *label[:-1]])
        values[i, :length], known[i, :length] = label_vad[len(prompt) :], label_known[len(prompt) :]

    embeddings = captioner.embed(inputs, torch.zeros_like(inputs), values, known).repeat(batch, 1, 1)
    seen = torch.cat([rows.prefix_mask, rows.prefix_mask.new_ones(len(embeddings), len(prompt) + width)], dim=1)
    positions = (seen.long().cumsum(dim=1) - 1)[:, -width:]
    hidden = captioner.language(
        embeddings, visual=rows.keys_values, attention_mask=seen.long(), position_ids=positions, cache=cache
    )
    log_probs = captioner.language.logits(hidden).float().log_softmax(dim=-1)
    targets = targets.repeat(batch, 1)
    picked = log_probs.gather(2, targets.clamp(min=0)[..., None]).squeeze(-1)
    return (picked * (targets >= 0)).sum(dim=1).view(batch, count)
