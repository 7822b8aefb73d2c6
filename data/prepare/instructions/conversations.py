"""Conversations from annotations or a model's answers, and their JSON lines.

The form is that of chat templates (transformers, TRL). `content` is a list of parts in every turn, because tables of
mixed types cannot be loaded; the image is the first part of the user's turn.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

from data.prepare.instructions.observation import tidy, without_class
from data.prepare.instructions.wording import (
    CATEGORICAL,
    OBSERVATION,
    REASONING,
    SYSTEM,
    because,
    question,
    turn,
)
from data.samples import Samples
from data.schema import Sample

ANNOTATION, MODEL = "annotation", "model"  # source of an answer
NO_EMOTION = "its image has no emotion"
NO_TEXT = "its image has no explanation"
NAMES_IT_ONLY = "nothing is left without the name of the emotion"
NO_DOMINANT = "no emotion of its image is the most frequent"
NO_ANSWER = {"dropped": "the model gave no answer; the same command asks again"}


class Conversation(NamedTuple):
    image_id: str
    image: str  # path relative to the image folder
    number: int  # of the annotation among those of its image
    kind: str
    label: str | None
    answer: str | None  # None: left out
    reason: str | None  # for leaving it out
    source: str = ANNOTATION


@dataclass(slots=True)
class Account:
    """Counts of the conversations that were made and left out."""

    made: Counter[tuple[str, str | None]] = field(default_factory=Counter)  # by kind and label
    left_out: Counter[str] = field(default_factory=Counter)  # by reason


def in_order(samples: Samples) -> list[int]:
    """Return the rows of the samples in the order of their ids."""
    return sorted(range(len(samples)), key=lambda row: (samples.ids[row], row))


def dominant(sample: Sample) -> int | None:
    """Return the class that most annotators of an image chose; None for a tie or no votes."""
    shares = Counter(sample.emotions) if sample.histogram is None else Counter(dict(enumerate(sample.histogram)))
    (first, most), (_, second) = [*shares.most_common(2), (None, 0), (None, 0)][:2]
    return None if most == second else first


def chosen(sample: Sample, labels: Sequence[str]) -> str | None:
    """Return the label of the dominant emotion; None if there is none."""
    index = dominant(sample)
    return None if index is None else labels[index]


def from_annotations(samples: Samples, rows: Iterable[int], root: Path, *, each_vote: bool) -> Iterator[Conversation]:
    """Yield the conversations of some samples, in their order.

    Args:
        root: the folder that image paths are relative to.
        each_vote: a categorical conversation for each annotation, not one for the dominant emotion of the image.
    """
    for row in rows:
        sample = samples[row]
        make = partial(Conversation, sample.id, sample.path.relative_to(root).as_posix())
        names = [samples.labels[index] for index in sample.emotions] or [None] * len(sample.texts)
        votes = names if each_vote and sample.texts else [chosen(sample, samples.labels)]
        for number, label in enumerate(votes):
            yield make(number, CATEGORICAL, label, label, _why_no_label(sample))
        texts = zip(names, map(tidy, sample.texts), strict=True) if sample.texts else [(None, "")]
        for number, (label, text) in enumerate(texts):
            reason = because(text, label) if text and label is not None else None
            yield make(number, REASONING, label, reason, NO_EMOTION if text else NO_TEXT)
            seen = text if label is None else without_class(text, label)
            yield make(number, OBSERVATION, label, seen or None, NAMES_IT_ONLY if text else NO_TEXT)


def from_model(
    samples: Samples, rows: Iterable[int], root: Path, answers: Mapping[str, dict]
) -> Iterator[Conversation]:
    """Yield the conversations of some samples with a model's answers.

    Args:
        answers: by image id; see `asking.answers_of`.
    """
    for row in rows:
        sample = samples[row]
        label, answer = chosen(sample, samples.labels), answers.get(sample.id, NO_ANSWER)
        make = partial(Conversation, sample.id, sample.path.relative_to(root).as_posix(), 0)
        why_not = _why_no_label(sample) if label is None else answer.get("dropped")
        reason = None if why_not else because(answer[REASONING], label)
        yield make(CATEGORICAL, label, label, why_not)
        yield make(REASONING, label, reason, why_not, MODEL)
        yield make(OBSERVATION, label, None if why_not else answer[OBSERVATION], why_not, MODEL)


def _why_no_label(sample: Sample) -> str:
    return NO_DOMINANT if sample.emotions or sample.histogram else NO_EMOTION


def lines(
    conversations: Iterable[Conversation], labels: Sequence[str], account: Account, *, seed: int, system: bool
) -> Iterator[str]:
    """Yield the conversations as lines of JSON, and count them in `account`."""
    for talk in conversations:
        if talk.answer is None:
            account.left_out[f"{talk.kind}: {talk.reason}"] += 1
            continue
        account.made[talk.kind, talk.label] += 1
        name = f"{talk.image_id}-{talk.number}"
        asked = question(talk.kind, name, seed=seed, label=talk.label, labels=labels)
        messages = [
            *([turn("system", [_text(SYSTEM)])] if system else []),
            turn("user", [{"type": "image"}, _text(asked)]),
            turn("assistant", [_text(talk.answer)]),
        ]
        row = {"id": f"{name}-{talk.kind}", **{key: getattr(talk, key) for key in ("image", "kind", "label", "source")}}
        yield _json({**row, "messages": messages})


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _json(value: dict) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name with bytes that are not characters
        text = json.dumps(value)
    return text + "\n"
