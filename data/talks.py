"""Pictures with conversations about them, for a vision-language model: data set, batch and loader.

Axes: B pictures, N conversations (of all pictures), L tokens of the longest, C emotions.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from common.errors import UserError
from common.reading import expand_user
from data.images import MAX_PIXELS, ImageError, open_image
from data.prepare.instructions.conversations import KINDS, from_annotations, turns_before
from data.samples import Samples
from data.schema import Movable, Sample, Skipped

Messages = list[dict[str, Any]]


class Talk(NamedTuple):
    kind: str  # one of KINDS
    messages: Messages  # up to the answer
    answer: str


@dataclass(slots=True)
class TalkItem:
    sample: Sample
    picture: Image.Image
    talks: list[Talk]


@dataclass(slots=True)
class TalkBatch(Movable):
    """B pictures; N conversations about them, as inputs of the model, if the data set has any."""

    ids: list[str]  # B
    pictures: list[Image.Image]  # B, or none
    histogram: Tensor  # (B, C) shares of the annotators; zeros without annotations
    inputs: dict[str, Tensor] = field(default_factory=dict)  # of the model
    labels: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.long))  # (N, L)
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def input_ids(self) -> Tensor:
        return self.labels


class TalkDataset(Dataset):
    """Maps (epoch, index) to a TalkItem, or to Skipped if the picture cannot be used.

    Args:
        talks: (index, epoch) → conversations about a picture.
        seed: of the order of the pictures.
        max_side: longest side of a picture, in pixels; larger ones are reduced.
    """

    def __init__(
        self,
        samples: Samples,
        *,
        talks: Callable[[int, int], list[Talk]] = lambda index, epoch: [],
        seed: int,
        max_side: int,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.samples, self.talks, self.seed = samples, talks, seed
        self.max_side, self.max_pixels = max_side, max_pixels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> TalkItem | Skipped:
        epoch, index = key
        sample = self.samples[index]
        try:
            picture = open_reduced(sample.path, max_side=self.max_side, max_pixels=self.max_pixels)
        except ImageError as error:
            return Skipped(sample.id, sample.path, str(error))
        return TalkItem(sample, picture, self.talks(index, epoch))


def open_reduced(path: Path, *, max_side: int, max_pixels: int) -> Image.Image:
    """Return a picture whose sides are at most `max_side` pixels; raise ImageError if it cannot be read."""
    return reduced(open_image(path, max_pixels=max_pixels), max_side=max_side)


def reduced(picture: Image.Image, *, max_side: int) -> Image.Image:
    """Return the picture itself, changed in place so that its sides are at most `max_side` pixels."""
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return picture


@dataclass(frozen=True, slots=True)
class TalkCollate:
    """Items → TalkBatch.

    Args:
        tokenize: conversations (messages, answer) and their pictures → inputs and labels, see model.vlm.chat.
        classes: C.
        pictures: whether the batch holds the pictures.
    """

    tokenize: Callable[[Sequence[tuple[Messages, str]], Sequence[Image.Image]], tuple[dict[str, Tensor], Tensor]]
    classes: int
    pictures: bool = True

    def __call__(self, items: Sequence[TalkItem | Skipped]) -> TalkBatch:
        good = [item for item in items if isinstance(item, TalkItem)]
        histograms = [item.sample.histogram or (0.0,) * self.classes for item in good]
        batch = TalkBatch(
            ids=[item.sample.id for item in good],
            pictures=[item.picture for item in good] if self.pictures else [],
            histogram=torch.tensor(histograms).reshape(-1, self.classes),
            skipped=[item for item in items if isinstance(item, Skipped)],
        )
        talks = [((talk.messages, talk.answer), item.picture) for item in good for talk in item.talks]
        if talks:
            batch.inputs, batch.labels = self.tokenize(*zip(*talks, strict=True))
        return batch


@dataclass(frozen=True, slots=True)
class AnnotatedTalks:
    """Conversations made from the annotations, in every epoch others: of each kind one, with random wording.

    Args:
        count: of a picture, of different kinds.
    """

    samples: Samples
    seed: int
    count: int

    def __call__(self, index: int, epoch: int) -> list[Talk]:
        sample, seed = self.samples[index], f"{self.seed}/{epoch}"
        found = [
            talk
            for talk in from_annotations(self.samples, [index], sample.path.parent, each_vote=True)
            if talk.answer is not None
        ]
        chosen = _one_of_each(found, self.count, key=f"{seed}/{sample.id}")
        labels = self.samples.labels
        return [Talk(talk.kind, turns_before(talk, labels, seed=seed), talk.answer) for talk in chosen]


@dataclass(frozen=True, slots=True)
class WrittenTalks:
    """Conversations from a file of data.prepare instructions; see AnnotatedTalks.

    written: by image id.
    """

    samples: Samples
    seed: int
    count: int
    written: Mapping[str, Sequence[Talk]]

    def __call__(self, index: int, epoch: int) -> list[Talk]:
        id = self.samples[index].id
        return _one_of_each(self.written[id], self.count, key=f"{self.seed}/{epoch}/{id}")


def _one_of_each(talks: Sequence[Any], count: int, *, key: str) -> list[Any]:
    """Return up to `count` random talks of different kinds."""
    order = [*talks]
    random.Random(key).shuffle(order)
    return [*{talk.kind: talk for talk in order}.values()][:count]


def read_talks(path: Path) -> dict[str, list[Talk]]:
    """Return the conversations of a file of data.prepare instructions, by image id.

    Raises:
        UserError: there is no such file, or a line is not one of its conversations.
    """
    found: dict[str, list[Talk]] = defaultdict(list)
    try:
        with expand_user(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                id, talk = _talk(line, where=f"{path}, line {number}")
                found[id].append(talk)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"vlm.instructions: {path} cannot be read ({getattr(error, 'strerror', None) or error}); "
            "`python -m data.prepare instructions` writes it"
        ) from error
    return found


def _talk(line: str, *, where: str) -> tuple[str, Talk]:
    try:
        row = json.loads(line)
        *messages, last = row["messages"]
        roles = [turn["role"] for turn in messages]
        images = [part["type"] for turn in messages for part in turn["content"]].count("image")
        (answer,) = (part["text"] for part in last["content"])
        whole = last["role"] == "assistant" and roles in (["user"], ["system", "user"]) and images == 1
        id = row["id"].removesuffix(f"-{row['kind']}").rpartition("-")[0]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole or row["kind"] not in KINDS or not id or not isinstance(answer, str):
        raise UserError(f"{where}: not a conversation of `python -m data.prepare instructions`")
    return id, Talk(row["kind"], messages, answer)
