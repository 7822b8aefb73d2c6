"""Conversations from annotations or a model's answers: prompts, answers and JSON lines.

The form is that of chat templates (transformers, TRL). `content` is a list of parts in every turn, because tables of
mixed types cannot be loaded; the image is the first part of the user's turn.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from common.files import to_json
from data.prepare.instructions.class_words import class_words, parts_of_speech
from data.prepare.instructions.clauses import FUNCTION
from data.prepare.instructions.observation import tidy, without_class
from data.samples import Samples
from data.schema import Sample

CATEGORICAL, REASONING, OBSERVATION = KINDS = ("categorical", "reasoning", "observation")

SYSTEM = "You look at pictures and tell which feelings they stir in people, and what in the picture does it."
# {labels}: all of them, in the order of the data; {label}: that of the annotation. A label may be any word or phrase
# (something else, positive), so it is quoted and never part of the sentence's grammar.
PROMPTS = {
    CATEGORICAL: (
        "Which of these categories fits the emotion that this picture evokes: {labels}? Answer with the category only.",
        "Sort this picture by the feeling it gives. The categories are {labels}. Reply with one of them.",
        "What would somebody feel who stands before this picture? Choose among {labels}, and write only your choice.",
        "Pick one category for the emotional effect of this picture ({labels}) and give nothing but its name.",
        "Categories of emotion: {labels}. Which one does this picture call up? Name it, without a reason.",
    ),
    REASONING: (
        'Somebody described the feeling that this picture gives them as "{label}". Why?',
        'The emotion that this picture evokes was put under "{label}". What leads to it?',
        'Asked for their feeling about this picture, a viewer chose "{label}". Give their reason.',
        'One person looked at this picture and answered "{label}". What made them feel so?',
        'Explain how this picture comes to be felt as "{label}".',
    ),
    OBSERVATION: (
        "Tell what you notice in this picture and what it does to you.",
        "What stands out in this picture, and how does it strike you?",
        "Describe what is to be seen here and the impression it leaves.",
        "Say in your own words what this picture shows or brings to mind.",
        "What do you see here, and what do you make of it?",
    ),
}
ANNOTATION, MODEL = "annotation", "model"  # source of an answer
NO_EMOTION = "its image has no emotion"
NO_TEXT = "its image has no explanation"
NAMES_IT_ONLY = "nothing is left without the name of the emotion"
NO_DOMINANT = "no emotion of its image is the most frequent"
NO_ANSWER = {"dropped": "the model gave no answer; the same command requests it again"}


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


def dominant(sample: Sample, labels: Sequence[str]) -> str | None:
    """Return the label that most annotators of an image chose; None for a tie or no votes."""
    shares = Counter(sample.emotions) if sample.histogram is None else Counter(dict(enumerate(sample.histogram)))
    (first, most), (_, second) = [*shares.most_common(2), (None, 0), (None, 0)][:2]
    return None if most == second else labels[first]


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
        votes = names if each_vote and sample.texts else [dominant(sample, samples.labels)]
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
        answers: by image id; see `answers.answers_of`.
    """
    for row in rows:
        sample = samples[row]
        label, answer = dominant(sample, samples.labels), answers.get(sample.id, NO_ANSWER)
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
        messages = [
            *turns_before(talk, labels, seed=str(seed), system=system),
            turn("assistant", [text_part(talk.answer)]),
        ]
        row = {"id": f"{_name(talk)}-{talk.kind}"}
        row |= {key: getattr(talk, key) for key in ("image", "kind", "label", "source")}
        yield to_json({**row, "messages": messages})


def turns_before(talk: Conversation, labels: Sequence[str], *, seed: str, system: bool = True) -> list[dict]:
    """Return the turns up to the answer, with one of the prompts of the kind."""
    asked = question(talk.kind, _name(talk), seed=seed, label=talk.label, labels=labels)
    return asking(asked, system=system)


def asking(question: str, *, system: bool = True) -> list[dict]:
    """Return the turns that ask a question about a picture."""
    user = turn("user", [{"type": "image"}, text_part(question)])
    return [*([turn("system", [text_part(SYSTEM)])] if system else []), user]


def _name(talk: Conversation) -> str:
    return f"{talk.image_id}-{talk.number}"


def text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def turn(role: str, content: object) -> dict:
    return {"role": role, "content": content}


def question(kind: str, id: str, *, seed: str, label: str | None, labels: Sequence[str]) -> str:
    """Return one of the prompts of a kind; the same seed and id give the same one."""
    digest = blake2b(f"{seed}\0{id}\0{kind}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    prompts = PROMPTS[kind]
    return prompts[int.from_bytes(digest) % len(prompts)].format(label=label, labels=listed(labels))


def listed(labels: Sequence[str]) -> str:
    """Return the labels as a choice: `awe, fear or sadness`."""
    *others, last = labels
    return f"{', '.join(others)} or {last}" if others else last


def because(text: str, label: str | None) -> str:
    """Return a reason as a clause that begins with because.

    `I feel sad because it rains` loses its main clause, which only repeats the label.

    Args:
        text: as `observation.tidy` returns it.
    """
    if match := re.fullmatch(r"([^.!?;]*?)\bbecause (.+)", text, flags=re.IGNORECASE):
        before, after = match[1].strip(), match[2]
        if _only_names_the_feeling(before, label):
            text = after
    return f"because {_in_a_sentence(text)}"


def _only_names_the_feeling(text: str, label: str | None) -> bool:
    if re.fullmatch(r"(?:(?:(?:it|this|that)(?:['’]s| is)?|mainly|just|maybe|probably)\s*)*", text, re.IGNORECASE):
        return True
    return label is not None and class_words(label).named_in(text) is not None and without_class(text, label) is None


def _in_a_sentence(text: str) -> str:
    """Return `text` with a lower-case first letter, unless it begins with a name or I."""
    first, second, *_ = [*text.split(" ", 2), ""]
    word = re.sub(r"[^\w].*", "", first)
    if not word or word == "I" or word != word.capitalize():
        return text
    if word.lower() in FUNCTION or (parts_of_speech(word) and not second[:1].isupper()):
        return text[0].lower() + text[1:]
    return text
