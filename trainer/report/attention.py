"""Attention of generated words to image patches, for the test report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from data.frames import is_clip
from data.images import ImageError, build_transform, open_image
from data.vad.align import WORD
from model.attention_maps import attention_maps, has_attention
from trainer.setup.parts import Parts

if TYPE_CHECKING:
    from trainer.prediction.judge import Judge

Box = tuple[float, float, float, float]  # left, top, width, height, as shares of the image
MOST_WORDS = 4  # shown of an explanation
SHORTEST = 4  # letters of a word without a value in the lexicon
WORD_RULE = (
    f"Shown are up to {MOST_WORDS} words of an explanation: those with the strongest VAD in the lexicon, then the "
    f"longest of at least {SHORTEST} letters"
)


VLE_MAP = "VLE: patches that the reason is about"


class View(NamedTuple):
    """The map of one word, or of all words together, see model.attention_maps; or VLE's map, with its own box."""

    word: str  # "" for the whole explanation
    grid: np.ndarray  # (rows, columns), sum 1; of VLE: the probability of each patch
    box: Box | None = None  # the part of the image that VLE receives


class AttentionExample(NamedTuple):
    row: Mapping[str, Any]  # the prediction
    box: Box  # see visible_box
    views: list[View]  # the whole explanation, then its words in order, then VLE's map


def attention_examples(
    rows: Sequence[Mapping[str, Any]], parts: Parts, *, max_pixels: int, judge: Judge | None = None
) -> list[AttentionExample]:
    """Return the attention of each row's explanation, by a teacher-forced pass.

    Left out are videos, unreadable images and explanations without words. The list is empty for a model without
    cross-attention or with all gates closed.

    Args:
        rows: as in predictions.jsonl: "image", "emotion", "explanation".
        judge: adds a map of its own to each example, if it classifies regions.
    """
    if not has_attention(parts.captioner):
        return []
    found = []
    for row in rows:
        words = words_of(row, parts) if row["explanation"] else []
        if not words or is_clip(Path(row["image"])):
            continue
        with suppress(ImageError):
            picture = open_image(Path(row["image"]), max_pixels=max_pixels)
            shown = [("", every_token(words)), *strongest(words, parts)]
            maps = word_maps(picture, row, parts, [tokens for _, tokens in shown])
            views = [View(word, grid) for (word, _), grid in zip(shown, maps, strict=True)]
            if judge is not None and judge.points:
                (grid,), box = judge.regions([row["explanation"]], picture)
                views.append(View(VLE_MAP, grid, box))
            found.append(AttentionExample(row, visible_box(parts.captioner.vision.preprocess, picture.size), views))
    return found


def every_token(words: Sequence[tuple[str, list[int]]]) -> list[int]:
    return sorted({position for _, tokens in words for position in tokens})


def word_maps(picture: Image.Image, row: Mapping[str, Any], parts: Parts, words: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the maps (W, rows, columns) of words, given by their positions as in `token_words`."""
    frame = build_transform(parts.captioner.vision.preprocess)(picture)
    encoded = parts.template.encode(
        row["explanation"], _index(row.get("emotion"), parts), language=row.get("language", "")
    )
    vad, known, _ = parts.aligner.align(encoded.input_ids)
    device = next(parts.captioner.parameters()).device
    ids, segment = (torch.tensor(values, device=device)[None] for values in (encoded.input_ids, encoded.segment))
    maps = attention_maps(
        parts.captioner.eval(),
        frame[None, None].to(device),
        input_ids=ids,
        segment=segment,
        vad=vad[None].to(device),
        vad_known=known[None].to(device),
        words=words,
    )
    return maps.cpu().numpy()


def words_of(row: Mapping[str, Any], parts: Parts) -> list[tuple[str, list[int]]]:
    return token_words(row["explanation"], row.get("emotion"), parts, language=row.get("language", ""))


def token_words(text: str, emotion: str | None, parts: Parts, *, language: str = "") -> list[tuple[str, list[int]]]:
    """Return the words of an explanation, each with the positions that predict the word's tokens.

    A token is predicted at the position before its own. Words beyond dataset.max_length are left out.
    """
    prompt, _ = parts.template.explanation_prompt(_index(emotion, parts), language)
    follows = emotion is not None or len(prompt) > 1  # as in Template.encode
    spaced = parts.template.spaced(f" {text}" if follows else text)
    encoded = parts.template.tokenizer(
        spaced, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
    )
    offsets = encoded["offset_mapping"][: parts.template.max_length - 1 - len(prompt)]
    found = []
    for match in WORD.finditer(spaced):
        tokens = [i for i, (start, end) in enumerate(offsets) if start < match.end() and end > match.start()]
        if tokens:
            found.append((match[0], [len(prompt) + i - 1 for i in tokens]))
    return found


def strongest(words: Sequence[tuple[str, list[int]]], parts: Parts) -> list[tuple[str, list[int]]]:
    """Return the words selected by WORD_RULE, in order, each once."""
    lexicon = parts.aligner.lexicon

    def weight(word: str) -> tuple[float, int]:
        vad = lexicon.lookup(word) if lexicon is not None else None
        return (0.0 if vad is None else float(np.linalg.norm(vad))), len(word)

    first = {word.lower(): i for i, (word, _) in reversed(list(enumerate(words)))}
    candidates = [i for word, i in first.items() if weight(word)[0] > 0 or len(word) >= SHORTEST]
    chosen = sorted(candidates, key=lambda i: (*weight(words[i][0]), -i), reverse=True)[:MOST_WORDS]
    return [words[i] for i in sorted(chosen)]


def visible_box(preprocess: Mapping[str, Any], size: tuple[int, int]) -> Box:
    """Return (left, top, width, height) of the network's view, as shares of the image's width and height.

    The image transform resizes the shorter side and crops the center, or resizes the longer side and pads (the box is
    then larger than the image), or squashes the image into a rectangle; see data.images.build_transform.
    """
    view, resized = (
        (pixels, pixels) if isinstance(pixels, int) else pixels
        for pixels in (preprocess["size"], preprocess.get("resize_to") or preprocess["size"])
    )
    across, down = resized[1] / size[0], resized[0] / size[1]
    mode = preprocess.get("resize_mode") or "shortest"
    if mode != "squash":
        across = down = max(across, down) if mode == "shortest" else min(across, down)
    width, height = view[1] / size[0] / across, view[0] / size[1] / down
    return (1 - width) / 2, (1 - height) / 2, width, height


def _index(emotion: str | None, parts: Parts) -> int | None:
    return None if emotion is None else parts.template.labels.index(emotion)
