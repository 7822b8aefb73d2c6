"""Emotion labels: the nine of ArtEmis (Achlioptas et al., 2021), other label sets, and their valence.

A label set is a tuple of names; every histogram, distribution and matrix has its order. EMOTIONS, the default, is the
single source of the order of the nine.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from common.config.rules import MOST_LABELS
from common.errors import UserError

EMOTIONS = (
    *("amusement", "awe", "contentment", "excitement"),
    *("anger", "disgust", "fear", "sadness"),
    "something else",
)
INDEX = {name: i for i, name in enumerate(EMOTIONS)}
MAX_LABEL = 60  # characters

POSITIVE, NEGATIVE = "positive", "negative"
SIGNS = (POSITIVE, NEGATIVE, "")  # display order
_POSITIVE = (
    *("positive", "joy", "happiness", "love", "gratitude", "hope", "pride", "relief", "serenity", "trust"),
    *("calm", "content", "excited", "glad", "happy"),  # with those below: EmoArt's
)
_NEGATIVE = (
    *("negative", "anxiety", "contempt", "despair", "disappointment", "grief", "guilt", "shame"),
    *("alarmed", "annoyed", "bored", "frustrated", "sad", "tired"),
)
# Any other label, such as surprise or EmoArt's aroused, has no valence.
VALENCE = dict.fromkeys((*EMOTIONS[:4], *_POSITIVE), POSITIVE) | dict.fromkeys((*EMOTIONS[4:8], *_NEGATIVE), NEGATIVE)
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def valence(label: str) -> str:
    """Return POSITIVE, NEGATIVE, or "" for a label without valence."""
    return VALENCE.get(label, "")


def by_valence(labels: Sequence[str] = EMOTIONS) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return groups (sign, labels) in the order of SIGNS, without empty groups."""
    groups = ((sign, tuple(name for name in labels if valence(name) == sign)) for sign in SIGNS)
    return tuple((sign, names) for sign, names in groups if names)


def normalize_label(name: str) -> str:
    """Normalize a name to NFC, lower case and single spaces, as it is written in a text."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").split())


def label_set(names: Iterable[object], *, where: str) -> tuple[str, ...]:
    """Return the label set of `names`, normalized by `normalize_label`.

    Raises:
        UserError: fewer than 2 or more than MOST_LABELS, an invalid name, or two names that become the same label; the
            message begins with `where`.
    """
    found: dict[str, object] = {}
    for name in names:
        label = normalize_label(name) if isinstance(name, str) else ""
        if not label or not label.isprintable() or len(label) > MAX_LABEL:
            raise UserError(f"{where}: {str(name)[:MAX_LABEL]!r} cannot be the name of an emotion")
        if label in found:
            raise UserError(f"{where}: {found[label]!r} and {name!r} cannot be told apart; keep one of them")
        found[label] = name
    if not 2 <= len(found) <= MOST_LABELS:
        raise UserError(f"{where}: {len(found)} names, {', '.join(found)[:200]}; a label set has 2 to {MOST_LABELS}")
    return EMOTIONS if tuple(found) == EMOTIONS else tuple(found)


def labels_of(row: Mapping[str, object]) -> tuple[str, ...]:
    """Return the labels of a row of predictions or a mapping of metrics; they are stored unless they are EMOTIONS."""
    return tuple(row.get("labels") or EMOTIONS)


def labels_entry(labels: Sequence[str]) -> dict[str, list[str]]:
    """Return the entry for `labels_of`: nothing for EMOTIONS, so that a row with other labels is self-contained."""
    return {} if tuple(labels) == EMOTIONS else {"labels": list(labels)}


def number_word(labels: Sequence[str]) -> str:
    """Return the number of labels, in words up to ten."""
    return NUMBERS[len(labels)] if len(labels) < len(NUMBERS) else str(len(labels))


def as_shares(numbers: Sequence[float], total: float) -> tuple[float, ...]:
    """Divide counts by `total`; shares stay unchanged, since rounding could move one across one half."""
    return tuple(float(number) if abs(total - 1) <= 1e-3 else number / total for number in numbers)


def one_hot(label: int, labels: Sequence[str]) -> tuple[float, ...]:
    """Return the histogram of an image with a single label."""
    return tuple(float(i == label) for i in range(len(labels)))


def emotion_index(name: object, *, where: str, labels: Sequence[str] = EMOTIONS) -> int:
    """Return the index of `name`, in any spelling that `normalize_label` takes for the same, in `labels`.

    Raises:
        UserError: `name` is not a label; the message begins with `where` (file and image id).
    """
    try:
        return INDEX[name] if labels is EMOTIONS and name in INDEX else labels.index(normalize_label(name))
    except (AttributeError, TypeError, ValueError):
        near = get_close_matches(str(name).strip().lower(), labels, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"{where}: {name!r} is not one of the {number_word(labels)} emotions ({', '.join(labels)}){hint}"
        ) from None
