"""From annotations to conversations, and the form in which they are written.

A line of JSON for each, in the form of chat templates (transformers, TRL): `content` is a list of parts in every turn,
because tables of mixed types cannot be loaded, and the image is the first part of the user's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data.prepare.instructions.observation import tidy, without_class
from data.prepare.instructions.wording import (
    CATEGORICAL,
    KINDS,
    OBSERVATION,
    REASONING,
    SYSTEM,
    because,
    question,
)
from data.samples import Samples
from data.schema import Sample

ANNOTATION, MODEL = "annotation", "model"  # where an answer comes from
NO_EMOTION = "its image has no emotion"
NO_TEXT = "its image has no explanation"
WITHOUT_TEXT = ((REASONING, None, NO_TEXT), (OBSERVATION, None, NO_TEXT))
NAMES_IT_ONLY = "nothing is left without the name of the emotion"
NO_DOMINANT = "no emotion of its image is the most frequent"


class Conversation(NamedTuple):
    image_id: str
    number: int  # of the annotation among those of its image
    kind: str
    image: str  # path below the image folder
    label: str | None
    answer: str
    source: str

    @property
    def id(self) -> str:
        return f"{self.image_id}-{self.number}-{self.kind}"


@dataclass(slots=True)
class Account:
    """What was made, and what could not be."""

    made: Counter[tuple[str, str | None]] = field(default_factory=Counter)  # by kind and label
    left_out: Counter[str] = field(default_factory=Counter)  # by reason

    def leave_out(self, kind: str, reason: str) -> None:
        self.left_out[f"{kind}: {reason}"] += 1


def in_order(samples: Samples) -> list[int]:
    """The rows of the samples in the order of their ids."""
    return sorted(range(len(samples)), key=lambda row: (samples.ids[row], row))


def dominant(sample: Sample) -> int | None:
    """The class that most annotators of an image chose; None if two share the first place or nobody chose one."""
    if sample.histogram is not None:
        shares = list(enumerate(sample.histogram))
    else:
        shares = list(Counter(sample.emotions).items())
    most = max((share for _, share in shares), default=0)
    first = [index for index, share in shares if share == most]
    return first[0] if len(first) == 1 else None


def from_annotations(
    samples: Samples, rows: Sequence[int], root: Path, account: Account, *, each_vote: bool
) -> Iterator[Conversation]:
    """The conversations that the annotations of some samples give, in their order.

    Args:
        root: the folder that image paths are relative to.
        account: gets the reasons for what is not made.
        each_vote: a categorical conversation for each annotation, not one for the dominant emotion of its image.
    """
    labels = samples.labels
    for row in rows:
        sample = samples[row]
        image = sample.path.relative_to(root).as_posix()
        names = [labels[index] for index in sample.emotions] or [None] * len(sample.texts)
        votes = list(enumerate(names)) if each_vote and sample.texts else [(0, chosen(sample, labels))]
        for number, label in votes:
            if label is None:
                has_votes = bool(sample.emotions or sample.histogram)
                account.leave_out(CATEGORICAL, NO_DOMINANT if has_votes else NO_EMOTION)
            else:
                yield Conversation(sample.id, number, CATEGORICAL, image, label, label, ANNOTATION)
        for kind, _, reason in () if sample.texts else WITHOUT_TEXT:
            account.leave_out(kind, reason)
        for number, (label, text) in enumerate(zip(names, map(tidy, sample.texts), strict=True)):
            for kind, answer, reason in _answers(label, text) if text else WITHOUT_TEXT:
                if answer:
                    yield Conversation(sample.id, number, kind, image, label, answer, ANNOTATION)
                else:
                    account.leave_out(kind, reason)


def chosen(sample: Sample, labels: Sequence[str]) -> str | None:
    index = dominant(sample)
    return None if index is None else labels[index]


def _answers(label: str | None, text: str) -> Iterator[tuple[str, str | None, str]]:
    """Kind, answer, and the reason if there is none."""
    yield REASONING, None if label is None else because(text, label), NO_EMOTION
    yield OBSERVATION, text if label is None else without_class(text, label), NAMES_IT_ONLY


def from_model(
    samples: Samples, rows: Sequence[int], root: Path, answers: dict[str, dict], account: Account
) -> Iterator[Conversation]:
    """The conversations of images that a model was asked about.

    Args:
        answers: by image id; see `answers.py`.
    """
    labels = samples.labels
    for row in rows:
        sample = samples[row]
        label, answer = chosen(sample, labels), answers.get(sample.id)
        image = sample.path.relative_to(root).as_posix()
        if label is None:
            for kind in KINDS:
                account.leave_out(kind, NO_DOMINANT if sample.emotions or sample.histogram else NO_EMOTION)
            continue
        yield Conversation(sample.id, 0, CATEGORICAL, image, label, label, ANNOTATION)
        reason = "the model gave no answer; the same command asks again" if answer is None else answer.get("dropped")
        if reason is not None:
            account.leave_out(REASONING, reason)
            account.leave_out(OBSERVATION, reason)
            continue
        yield Conversation(sample.id, 0, REASONING, image, label, because(answer[REASONING], label), MODEL)
        yield Conversation(sample.id, 0, OBSERVATION, image, label, answer[OBSERVATION], MODEL)


def lines(
    conversations: Iterator[Conversation], labels: Sequence[str], account: Account, *, seed: int, system: bool
) -> Iterator[str]:
    """The conversations as lines of JSON; the account gets their number."""
    for talk in conversations:
        asked = question(talk.kind, f"{talk.image_id}-{talk.number}", seed=seed, label=talk.label, labels=labels)
        turns = [_turn("system", SYSTEM)] if system else []
        turns += [_turn("user", asked, image=True), _turn("assistant", talk.answer)]
        account.made[talk.kind, talk.label] += 1
        yield _json(
            {
                "id": talk.id,
                "image": talk.image,
                "kind": talk.kind,
                "label": talk.label,
                "source": talk.source,
                "messages": turns,
            }
        )


def _turn(role: str, text: str, *, image: bool = False) -> dict:
    return {"role": role, "content": [*([{"type": "image"}] if image else []), {"type": "text", "text": text}]}


def _json(value: dict) -> str:
    text = json.dumps(value, ensure_ascii=False)
    if not text.isprintable() and any("\ud800" <= char <= "\udfff" for char in text):
        text = json.dumps(value)  # a file name of bytes that are no characters
    return text + "\n"
