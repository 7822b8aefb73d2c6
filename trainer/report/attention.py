"""What the words of written explanations looked at in their pictures, for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from data.frames import is_clip
from data.images import ImageError, build_transform, open_image
from data.vad.align import WORD
from model.attention_maps import AttentionMaps, attention_maps, has_attention
from trainer.setup.parts import Parts

MOST_WORDS = 4  # of an explanation that are shown
SHORTEST = 4  # letters of a word that counts, where no lexicon knows it
WORD_RULE = (
    f"Shown are up to {MOST_WORDS} words of an explanation: those with the strongest VAD in the lexicon, then the "
    f"longest of at least {SHORTEST} letters"
)


class View(NamedTuple):
    """Where one word, or all words together, looked."""

    word: str  # "" for the whole explanation
    grid: np.ndarray  # (rows, columns), sum 1
    share: float  # of the attention, what the patches had; the rest is the class token's


class Looked(NamedTuple):
    """An explanation, and where its words looked."""

    row: Mapping[str, Any]  # its prediction
    box: tuple[float, float, float, float]  # see seen_box
    views: list[View]  # the whole explanation, then its words in their order


def looked_at(rows: Sequence[Mapping[str, Any]], parts: Parts, *, max_pixels: int) -> list[Looked]:
    """One teacher-forced pass over each row's explanation, without a word on those that cannot be looked at.

    Left out are videos, pictures that can no longer be read and explanations without words; with a model that has no
    cross-attention, or only shut gates, everything.

    Args:
        rows: as in predictions.jsonl: "image", "emotion", "explanation".
    """
    if not has_attention(parts.captioner):
        return []
    parts.captioner.eval()
    found = (_looked(row, parts, max_pixels) for row in rows if row["explanation"] and not is_clip(Path(row["image"])))
    return [one for one in found if one is not None]


def _looked(row: Mapping[str, Any], parts: Parts, max_pixels: int) -> Looked | None:
    preprocess = parts.captioner.vision.preprocess
    words = token_words(row["explanation"], row.get("emotion"), parts)
    try:
        picture = open_image(Path(row["image"]), max_pixels=max_pixels)
    except ImageError:
        return None
    if not words:
        return None
    maps = _maps(build_transform(preprocess)(picture), row, parts)
    everything = sorted({i for _, tokens in words for i in tokens})
    views = [_view("", everything, maps)]
    views += [_view(word, tokens, maps) for word, tokens in strongest(words, parts)]
    return Looked(row, seen_box(preprocess, picture.size), views)


def _maps(frame: torch.Tensor, row: Mapping[str, Any], parts: Parts) -> AttentionMaps:
    encoded = parts.template.encode(row["explanation"], _index(row.get("emotion"), parts))
    vad, known, _ = parts.aligner.align(encoded.input_ids)
    device = next(parts.captioner.parameters()).device
    ids, segment = (torch.tensor(values, device=device)[None] for values in (encoded.input_ids, encoded.segment))
    return attention_maps(
        parts.captioner,
        frame[None, None].to(device),
        input_ids=ids,
        segment=segment,
        vad=vad[None].to(device),
        vad_known=known[None].to(device),
    )


def token_words(text: str, emotion: str | None, parts: Parts) -> list[tuple[str, list[int]]]:
    """The words of an explanation, each with the positions in its sentence that chose the word's tokens.

    A token is chosen at the position before its own. Words beyond dataset.max_length are left out.
    """
    prompt, _ = parts.template.explanation_prompt(_index(emotion, parts))
    spaced = text if emotion is None else f" {text}"  # as Template.encode has it
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
    """The few words that say most, in their order (see WORD_RULE), each once."""
    lexicon = parts.aligner.lexicon

    def weight(word: str) -> tuple[float, int]:
        vad = lexicon.lookup(word) if lexicon is not None else None
        return (0.0 if vad is None else float(np.linalg.norm(vad))), len(word)

    first = {word.lower(): i for i, (word, _) in reversed(list(enumerate(words)))}
    telling = [i for word, i in first.items() if weight(word)[0] > 0 or len(word) >= SHORTEST]
    chosen = sorted(telling, key=lambda i: (*weight(words[i][0]), -i), reverse=True)[:MOST_WORDS]
    return [words[i] for i in sorted(chosen)]


def _view(word: str, tokens: Sequence[int], maps: AttentionMaps) -> View:
    return View(word, maps.patches[tokens].mean(dim=0).cpu().numpy(), float(maps.share[tokens].mean()))


def seen_box(preprocess: Mapping[str, Any], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """(left, top, width, height) of what the network sees, as shares of the picture's width and height.

    The image transform resizes the shorter side and cuts the rest off in the middle, or resizes the longer side and
    pads (then the box is larger than the picture), or squashes the picture into its square.
    """
    wanted = preprocess["size"]
    height, width = (wanted, wanted) if isinstance(wanted, int) else wanted
    across, down = width / size[0], height / size[1]
    mode = preprocess.get("resize_mode") or "shortest"
    if mode == "squash":
        return 0.0, 0.0, 1.0, 1.0
    scale = max(across, down) if mode == "shortest" else min(across, down)
    return (1 - across / scale) / 2, (1 - down / scale) / 2, across / scale, down / scale


def _index(emotion: str | None, parts: Parts) -> int | None:
    return None if emotion is None else parts.template.labels.index(emotion)
