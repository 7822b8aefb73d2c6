"""CLIPScore and RefCLIPScore (Hessel et al., 2021, arXiv 2104.08718): how well a caption matches the picture.

CLIPScore is 2.5 max(cos(picture, caption), 0); RefCLIPScore is the harmonic mean of that and of the largest cosine, at
least 0, of the caption and a reference. Every text is encoded after "A photo depicts ". The values depend on the CLIP
model (OpenAI's ViT-B/32 in the paper), which the results name; a model that shares its image encoder with the
captioner favors that captioner.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import UserError
from common.progress import progress
from data.images import MAX_PIXELS, ImageError, build_transform, open_image
from model.weights.clip import architecture_and_tag, create_model, create_tokenizer
from trainer.metrics.captions import CaptionScores, check_ids, clean

WEIGHT = 2.5
PREFIX = "A photo depicts "
MATCH = "CLIP match"


def clip_scores(
    captions: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    images: Mapping[str, Path],
    *,
    blocks: Sequence[Sequence[str]] = (),
    pretrained_name: str,
    architecture: str | None = None,
    section: str = "model.vision",
    device: torch.device | str = "cpu",
    batch_size: int = 64,
    max_pixels: int = MAX_PIXELS,
) -> CaptionScores:
    """Score one caption per image against its picture, and against picture and references.

    Args:
        captions: image id → caption; an empty caption scores 0.
        references: image id → one or more references; empty ones do not count.
        images: image id → file of the picture.
        blocks: ids of images to compare. "CLIP match" is 1 if a caption's cosine is higher with its own picture than
            with every other one of its first block, else 0; an image without another one has none.
        pretrained_name, architecture: CLIP, as in the configuration's model.vision; its text encoder is used too.
        section: configuration section of the two, for messages.

    If CLIP cannot be loaded, or no picture can be read, a note replaces the scores.

    Raises:
        UserError: the ids of the three differ, or an image has no reference.
    """
    check_ids(captions, references)
    if without := [image for image in captions if image not in images]:
        raise UserError(f"image {without[0]!r} has a caption but no picture ({len(without)} such images)")
    hypotheses, targets = clean(captions, references)
    try:
        clip = Clip(pretrained_name, architecture, section=section, device=device)
    except UserError as error:
        return CaptionScores(notes=[f"CLIPScore and RefCLIPScore left out: {error}"])
    result = CaptionScores(clip=clip.name)
    vectors = clip.pictures({image: images[image] for image in captions}, batch_size, max_pixels, result.notes)
    texts = clip.texts([t for image in vectors for t in (*hypotheses[image], *targets[image])], batch_size)
    for image, picture in vectors.items():
        caption = texts[hypotheses[image][0]]
        by_picture = clip_s(picture, caption) if hypotheses[image][0] else 0.0
        both = ref_clip_s(by_picture, caption, torch.stack([texts[text] for text in targets[image]]))
        result.per_image[image] = {"CLIPScore": by_picture, "RefCLIPScore": both}
    for block in ([image for image in block if image in vectors] for block in blocks):
        cosines = torch.stack([texts[hypotheses[i][0]] for i in block]) @ torch.stack([vectors[i] for i in block]).T
        lead = cosines.diagonal().clone() - cosines.fill_diagonal_(-torch.inf).amax(dim=1)
        for image, difference in zip(block, lead.tolist() if len(block) > 1 else (), strict=False):
            result.per_image[image].setdefault(MATCH, float(difference > 0))
    for name in ("CLIPScore", "RefCLIPScore", MATCH):
        if values := [each[name] for each in result.per_image.values() if name in each]:
            result.scores[name] = sum(values) / len(values)
    return result


def clip_s(picture: Tensor, caption: Tensor) -> float:
    """Return the CLIPScore of two unit vectors (D)."""
    return WEIGHT * max(float(picture @ caption), 0.0)


def ref_clip_s(clip_s: float, caption: Tensor, references: Tensor) -> float:
    """Return the RefCLIPScore from the CLIPScore, the caption's vector (D) and the references' (R, D), unit vectors."""
    nearest = max(float((references @ caption).max()), 0.0)
    return 2 * clip_s * nearest / (clip_s + nearest) if clip_s and nearest else 0.0


class Clip:
    """A CLIP model with both encoders, in float32; returns unit vectors on the CPU."""

    def __init__(
        self, pretrained_name: str, architecture: str | None, *, section: str, device: torch.device | str = "cpu"
    ) -> None:
        """Load the model that these two keys of `section` name.

        Raises:
            UserError: unknown name, or weights or tokenizer neither on disk nor downloadable.
        """
        try:
            model_name, tag = architecture_and_tag(pretrained_name, architecture)
            model, self.tokenizer = create_model(model_name, tag), create_tokenizer(model_name)
        except UserError as error:
            raise UserError(str(error).replace("model.vision", section)) from error
        self.model = model.float().eval().to(device)
        self.transform = build_transform(open_clip.get_model_preprocess_cfg(model))
        self.name = pretrained_name if architecture is None else f"{architecture} ({Path(pretrained_name).name})"
        self.device = device

    @torch.inference_mode()
    def texts(self, texts: Sequence[str], batch_size: int) -> dict[str, Tensor]:
        """Return text → vector (D); each distinct text is encoded once, after PREFIX."""
        vectors = {}
        distinct = list(dict.fromkeys(texts))
        with progress(len(distinct), "CLIP texts", unit="text") as bar:
            for start in range(0, len(distinct), batch_size):
                batch = distinct[start : start + batch_size]
                tokens = self.tokenizer([PREFIX + text for text in batch]).to(self.device)
                vectors |= zip(batch, _unit(self.model.encode_text(tokens)), strict=True)
                bar.update(len(batch))
        return vectors

    @torch.inference_mode()
    def pictures(
        self, paths: Mapping[str, Path], batch_size: int, max_pixels: int, notes: list[str]
    ) -> dict[str, Tensor]:
        """Return image id → vector (D) for the readable pictures, and add one note on the others."""

        def read(path: Path) -> Tensor | ImageError:
            try:
                return self.transform(open_image(path, max_pixels=max_pixels))
            except ImageError as error:
                return error

        vectors, faults = {}, []
        with (
            progress(len(paths), "CLIP pictures", unit="image") as bar,
            ThreadPoolExecutor(os.cpu_count()) as threads,  # decoding releases the GIL
        ):
            for start in range(0, len(paths), batch_size):
                batch = list(paths)[start : start + batch_size]
                seen = dict(zip(batch, threads.map(read, (paths[image] for image in batch)), strict=True))
                faults += [f"{paths[i]}: {fault}" for i, fault in seen.items() if isinstance(fault, ImageError)]
                frames = {image: frame for image, frame in seen.items() if isinstance(frame, Tensor)}
                if frames:
                    encoded = self.model.encode_image(torch.stack(list(frames.values())).to(self.device))
                    vectors |= zip(frames, _unit(encoded), strict=True)
                bar.update(len(batch))
        if faults:
            what = f"leave out {len(faults)} of {len(paths)} images" if vectors else "left out: no picture can be read"
            notes.append(f"CLIPScore and RefCLIPScore {what} ({faults[0]})")
        return vectors


def _unit(vectors: Tensor) -> Tensor:
    return F.normalize(vectors.float(), dim=-1).cpu()
