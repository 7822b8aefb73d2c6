"""Scores by the network: of emotions, of the VAD of the reaction, and of whole explanations.

Axes: B images, C labels, N texts; VAD in −1..1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import permutations

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from model.captioner import Captioner, Text, Visual
from model.decoding.reader import CachedReader, Reader, WordVad, prompt_text
from model.decoding.transformers_reader import TransformersReader, cached_reader
from model.next_word import LOGITS_AT_ONCE

MODES = ("sequence", "first_token")


@torch.no_grad()
def emotion_log_probs(
    captioner: Captioner,
    visual: Visual,
    *,
    prompt: Sequence[int],
    labels: Sequence[Sequence[int]],
    vad: WordVad,
    mode: str = "sequence",
) -> Tensor:
    """Return log-probabilities (B, C) of the labels, normalized over the labels.

    Args:
        prompt: token ids before the emotion ("<bos> the emotion is").
        labels: token ids of each label.
        vad: VAD of the words, as in training.
        mode: "sequence": the sum over a label's tokens, which is its probability, as no label is a prefix of another.
            Images and prompt are read once; only labels of several tokens need a second, short pass.
            "first_token": that of the first token.

    Raises:
        UserError: unknown mode; a label that is a prefix of another; first_token and labels with equal first tokens.
    """
    _check(labels, mode)
    batch = len(visual.prefix)
    text = prompt_text([prompt] * batch, [0] * batch, vad, visual.prefix.device)
    reader = (cached_reader(captioner) if captioner.causal else Reader)(captioner, visual, text, None)
    scores = reader.start().log_softmax(dim=-1)[:, [label[0] for label in labels]]
    longer = [i for i, label in enumerate(labels) if len(label) > 1]
    if mode == "sequence" and longer:
        rest = _rest_cached if captioner.causal else _rest_reread
        scores[:, longer] += rest(reader, prompt, [labels[i] for i in longer], vad)
    return scores.log_softmax(dim=-1)


def _check(labels: Sequence[Sequence[int]], mode: str) -> None:
    if mode not in MODES:
        raise UserError(f"trainer.test.emotion_scoring={mode!r} is not one of {', '.join(MODES)}")
    for one, other in permutations(map(list, labels), 2):
        if one == other[: len(one)]:
            raise UserError(
                f"dataset.tokenizer: the tokens of one emotion, {one}, are a prefix of those of another, {other}, so "
                "their probabilities cannot be compared; use another tokenizer"
            )
    token, count = Counter(label[0] for label in labels).most_common(1)[0]
    if mode == "first_token" and count > 1:
        raise UserError(
            "trainer.test.emotion_scoring=first_token needs emotions that differ in their first token, but with this "
            f"tokenizer {count} of them begin with token {token}; set trainer.test.emotion_scoring=sequence"
        )


def _rest_cached(
    reader: CachedReader | TransformersReader, prompt: Sequence[int], labels: Sequence[Sequence[int]], vad: WordVad
) -> Tensor:
    """Return Σ log p of the tokens after the first, (B, C), read as branches of the cached prompt."""
    batch, count, device = len(reader.visual.prefix), len(labels), reader.visual.prefix.device
    start, width = len(prompt), max(map(len, labels)) - 1
    tokens, targets = torch.zeros(2, count, width, dtype=torch.long)
    values = torch.zeros(count, start + width, 3)
    known, mask = torch.zeros(2, count, start + width, dtype=torch.bool)
    for i, label in enumerate(labels):
        end = start + len(label) - 1
        tokens[i, : end - start], targets[i, : end - start] = torch.tensor(label[:-1]), torch.tensor(label[1:])
        values[i, :end], known[i, :end], _ = vad.align([*prompt, *label[:-1]])
        mask[i, :end] = True
    tensors = (tokens, torch.zeros_like(tokens), values, known, mask)
    text = Text(*(tensor.to(device) for tensor in tensors)).rows(torch.arange(count, device=device).repeat(batch))
    log_probs = reader.captioner.language.logits(reader.read_branches(text)).float().log_softmax(dim=-1)
    picked = log_probs.gather(2, targets.to(device).repeat(batch, 1)[..., None]).squeeze(-1)
    return (picked * text.attention_mask[:, start:]).sum(dim=1).view(batch, count)


def _rest_reread(reader: Reader, prompt: Sequence[int], labels: Sequence[Sequence[int]], vad: WordVad) -> Tensor:
    """As _rest_cached, reading the text again for each token, in batches of equal length without padding."""
    captioner, visual = reader.captioner, reader.visual
    batch, device = len(visual.prefix), visual.prefix.device
    scores = torch.zeros(batch, len(labels), device=device)
    for end in range(1, max(map(len, labels))):
        longer = [i for i, label in enumerate(labels) if len(label) > end]
        prompts = [[*prompt, *labels[i][:end]] for i in longer] * batch
        text = prompt_text(prompts, [0] * len(prompts), vad, device)
        images = torch.arange(batch, device=device).repeat_interleave(len(longer))
        logits = Reader(captioner, visual.rows(images), text, None).start()
        log_probs = logits.log_softmax(dim=-1).view(batch, len(longer), -1)
        for column, i in enumerate(longer):
            scores[:, i] += log_probs[:, column, labels[i][end]]
    return scores


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


@torch.no_grad()
def text_log_probs(captioner: Captioner, visual: Visual, texts, *, rows: Tensor | None = None) -> Tensor:
    """Return (N,), Σ log p of each explanation's tokens including <eos>, given image, emotion and "because".

    Args:
        visual, texts: as in contrastive_scores.
        rows: (N,) the text that is read for each row of `visual`, to read one text for several images; None: its own.

    Raises:
        ValueError: the network's states depend on later words, so that a text has no probability.
    """
    if not captioner.causal:
        raise ValueError("the network's states depend on later words")
    text, input_ids, start = captioner.text_of(texts), texts.input_ids, texts.explanation_start
    if rows is not None:
        text, input_ids, start = text.rows(rows), input_ids[rows], start[rows]
    hidden = captioner.read(visual, text)[:, : input_ids.shape[1]]
    places = torch.arange(1, input_ids.shape[1], device=hidden.device)
    counted = text.attention_mask[:, 1:] & (places >= start[:, None])
    states, targets = hidden[:, :-1][counted], input_ids[:, 1:][counted]
    step = max(LOGITS_AT_ONCE // captioner.language.vocab_size, 1)
    losses = [
        F.cross_entropy(captioner.language.logits(part).float(), target, reduction="none")
        for part, target in zip(states.split(step), targets.split(step), strict=True)
    ]
    return torch.zeros(len(hidden), device=hidden.device).index_add(0, counted.nonzero()[:, 0], -torch.cat(losses))
