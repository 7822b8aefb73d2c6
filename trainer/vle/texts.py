"""The texts beside each picture, by task: (index, epoch, part of the picture that is seen) → texts with targets.

Each is a pure function of seed, epoch and index. The objects hold no network, so loader processes can copy them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from common.errors import UserError
from data.pairs import IGNORED, PairText, Part
from data.readers.picture_rows import PictureRows
from data.readers.vcr import VcrRows
from data.samples import Samples
from model.vle.heads import EMOTION_QUESTION
from model.vle.vcr import Words, box_inputs, build_q2a, build_qa2r, name_objects, patch_range
from trainer.metrics.vle import patches_in_boxes

Box = Sequence[float]  # left, top, right, bottom, as shares of the picture
WHOLE: Part = (0.0, 0.0, 1.0, 1.0)
ATTEMPTS = 20  # to find another picture whose text is not also true of this one


@dataclass
class Encoder:
    """Text → token ids with [CLS] and [SEP], cut to `length` tokens."""

    tokenizer: PreTrainedTokenizerFast
    length: int

    def __call__(self, text: str, **others: Any) -> PairText:
        return PairText(self.tokenizer(text, truncation=True, max_length=self.length)["input_ids"], **others)


@dataclass
class VqaTexts:
    """All questions of a picture; the target of each is the soft score of every answer."""

    rows: PictureRows
    encode: Encoder
    answers: dict[str, int]  # label of each answer

    def __call__(self, index: int, epoch: int, part: Part = WHOLE) -> list[PairText]:
        return [self._text(question) for question in self.rows[index]["questions"]]

    def _text(self, question: dict[str, Any]) -> PairText:
        target = torch.zeros(len(self.answers))
        for answer, score in question["answers"].items():
            if answer in self.answers:
                target[self.answers[answer]] = score
        about = {key: question[key] for key in ("id", "question", "type", "answers")}
        return self.encode(question["question"], targets={"answers": target}, about=about)


class Captions:
    """The captions of each picture, from annotations or from picture rows."""

    def __init__(self, source: Samples | PictureRows) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __call__(self, index: int) -> list[tuple[str, int | None]]:
        """Return the texts of a picture, each with its emotion if it has one."""
        if isinstance(self.source, PictureRows):
            return [(text["text"], None) for text in self.source[index]["texts"]]
        sample = self.source[index]
        emotions = sample.emotions or [None] * len(sample.texts)
        return [pair for pair in zip(sample.texts, emotions, strict=True) if pair[0].strip()]


@dataclass
class MatchTexts:
    """One text of the picture (match = 1) and one of another picture (match = 0).

    Args:
        same_emotion: take the other text from a picture with the same emotion, if one is found: it is about another
            picture, but not recognizable by the emotion alone.
    """

    captions: Captions
    encode: Encoder
    seed: int
    same_emotion: bool = False

    def __call__(self, index: int, epoch: int, part: Part = WHOLE) -> list[PairText]:
        r = Random(f"{self.seed}/{epoch}/{index}/match")
        own = self.captions(index)
        if not own:
            return []
        text, emotion = r.choice(own)
        texts = [self.encode(text, targets={"match": 1}, about={"text": text})]
        if other := self._other(index, {text for text, _ in own}, emotion, r):
            texts.append(self.encode(other, targets={"match": 0}, about={"text": other}))
        return texts

    def _other(self, index: int, own: set[str], emotion: int | None, r: Random) -> str | None:
        """Return a text of another picture that is none of `own`; None if there is none."""
        found = None
        for _ in range(ATTEMPTS):
            other = r.randrange(len(self.captions))
            if other == index:
                continue
            texts = [pair for pair in self.captions(other) if pair[0] not in own]
            alike = [text for text, mood in texts if mood == emotion]
            if texts:
                found = r.choice(alike) if alike else r.choice(texts)[0]
            if alike or (texts and not self.same_emotion):
                break
        return found


@dataclass
class RegionTexts:
    """The texts of a picture that name a region; the target of a patch is 1 where a box covers its center.

    Args:
        grid: patches in each row and column.
        count: texts of a picture in training, chosen at random; None: all.
    """

    rows: PictureRows
    encode: Encoder
    grid: int
    seed: int
    count: int | None = None

    def __call__(self, index: int, epoch: int, part: Part = WHOLE) -> list[PairText]:
        texts = [text for text in self.rows[index]["texts"] if text.get("boxes")]
        if self.count is not None:
            Random(f"{self.seed}/{epoch}/{index}/regions").shuffle(texts)
            texts = texts[: self.count]
        return [self._text(text, part) for text in texts]

    def _text(self, text: dict[str, Any], part: Part) -> PairText:
        about = {"text": text["text"], "boxes": seen_boxes(text["boxes"], part)}
        return self.encode(text["text"], targets={"patches": patch_labels(about["boxes"], self.grid)}, about=about)


def seen_boxes(boxes: Sequence[Box], part: Part) -> list[Box]:
    """Return the boxes as shares of the part of the picture that is seen; those outside it are left out."""
    left, top, right, bottom = part
    corner, size = np.array([left, top] * 2), np.array([right - left, bottom - top] * 2)
    found = [np.clip((np.array(box) - corner) / size, 0, 1).round(6).tolist() for box in boxes]
    return [box for box in found if box[0] < box[2] and box[1] < box[3]]


def patch_labels(boxes: Sequence[Box] | None, grid: int) -> Tensor:
    """Return (grid²,) int64: 1 for patches whose center lies in a box, else 0; IGNORED everywhere for boxes=None."""
    if boxes is None:
        return torch.full((grid * grid,), IGNORED)
    return torch.from_numpy(patches_in_boxes(boxes, (grid, grid))).long()


@dataclass
class PretrainTexts:
    """A matching and a foreign text, the matching one with masked words, and an object whose patches are hidden.

    Targets: match (IGNORED for the others), patches (likewise), words, object. After the published objectives, whose
    code was never published; the rates are METER's.
    """

    match: MatchTexts
    grid: int
    masked: float
    objects: dict[str, int]  # class of each name; empty: no objects are classified
    rows: PictureRows | None

    def __call__(self, index: int, epoch: int, part: Part = WHOLE) -> list[PairText]:
        texts = self.match(index, epoch)
        if not texts:
            return []
        nothing = patch_labels(None, self.grid)
        row = self.rows[index] if self.rows is not None else {"texts": [], "objects": []}
        regions = {text["text"]: text.get("boxes") for text in row["texts"]}
        for text in texts:
            boxes = regions.get(text.about["text"]) if text.targets["match"] == 1 else None
            boxes = None if boxes is None else seen_boxes(boxes, part)
            text.about["boxes"] = boxes
            text.targets |= {"patches": patch_labels(boxes, self.grid), "object": IGNORED}
        r = Random(f"{self.match.seed}/{epoch}/{index}/pretrain")
        others = {"match": IGNORED, "patches": nothing, "object": IGNORED}
        texts.append(self._masked(texts[0], others, r))
        known = [found for found in row["objects"] if found["name"] in self.objects]
        if known:
            texts.append(self._hidden(texts[0], r.choice(known), others, part))
        return texts

    @cached_property
    def _masker(self) -> DataCollatorForLanguageModeling:
        return DataCollatorForLanguageModeling(self.match.encode.tokenizer, mlm_probability=self.masked)

    def _masked(self, text: PairText, others: dict[str, Any], r: Random) -> PairText:
        """Mask words as BERT does: 80 % become [MASK], 10 % another token, 10 % stay."""
        self._masker.generator = torch.Generator().manual_seed(r.getrandbits(63))
        ids, words = self._masker.torch_mask_tokens(torch.tensor([text.input_ids]))
        return PairText(ids[0].tolist(), {**others}, words=words[0].tolist())

    def _hidden(self, text: PairText, found: dict[str, Any], others: dict[str, Any], part: Part) -> PairText:
        patches = patch_labels(seen_boxes([found["box"]], part), self.grid).nonzero().flatten().tolist()
        if not patches:  # the box covers no center
            return PairText(text.input_ids, {**others})
        return PairText(text.input_ids, {**others, "object": self.objects[found["name"]]}, boxes=[patches])


@dataclass
class EmotionTexts:
    """A fixed question, whose target are the annotators' shares; or a reason, whose target is its own emotion.

    Args:
        reasons: share of the pictures that get a reason instead of the question.
    """

    samples: Samples
    encode: Encoder
    seed: int
    reasons: float = 0.0

    def __call__(self, index: int, epoch: int, part: Part = WHOLE) -> list[PairText]:
        sample, r = self.samples[index], Random(f"{self.seed}/{epoch}/{index}/emotion")
        shares = torch.tensor(sample.histogram or [0.0] * len(self.samples.labels))
        if sample.emotions and r.random() < self.reasons:
            text, emotion = r.choice([*zip(sample.texts, sample.emotions, strict=True)])
            if text.strip():
                own = torch.zeros(len(shares))
                own[emotion] = 1.0
                return [self.encode(text, targets={"shares": own}, about={"id": sample.id})]
        return [self.encode(EMOTION_QUESTION, targets={"shares": shares}, about={"id": sample.id})]


@dataclass
class VcrTexts:
    """The four choices of a VCR question, with the boxes of the objects that they mention.

    Args:
        rationales: choose among rationales, given the right answer (QA2R), instead of among answers (Q2A).
    """

    rows: VcrRows
    encode: Encoder
    grid: int
    rationales: bool

    def __call__(self, index: int, epoch: int, part: Part = WHOLE) -> list[PairText]:
        row = self.rows[index]
        names, _ = name_objects(row["objects"])
        shared = {"names": names, "tokenizer": self.encode.tokenizer, "max_length": self.encode.length}
        kind = "rationale" if self.rationales else "answer"
        if self.rationales:
            if row["answer_label"] is None:
                raise UserError(f"{self.rows.file}: vle.vcr=qa2r needs the right answer, and answer_label is missing")
            right = row["answer_choices"][row["answer_label"]]
            choices = build_qa2r(row["question"], right, row["rationale_choices"], **shared)
        else:
            choices = build_q2a(row["question"], row["answer_choices"], **shared)
        boxes, size = self.rows.boxes(row)
        seen = tuple(share * side for share, side in zip(part, size * 2, strict=True))
        patches = {number: patch_range(box, size, self.grid, seen) for number, box in enumerate(boxes)}
        label = row[f"{kind}_label"]
        about = {"id": row.get("annot_id", str(index)), "img_fn": row["img_fn"]}
        about |= {"question": _sentence(row["question"], names)}
        about |= {"choices": [_sentence(words, names) for words in row[f"{kind}_choices"]]}
        return [
            PairText(
                choice.input_ids,
                {"choice": IGNORED if label is None else label},
                None,
                *box_inputs(choice, patches),
                about=about,
            )
            for choice in choices
        ]


def _sentence(words: Words, names: Sequence[str]) -> str:
    """Return VCR's words, with the names of its objects."""
    return " ".join(word if isinstance(word, str) else " and ".join(names[number] for number in word) for word in words)
