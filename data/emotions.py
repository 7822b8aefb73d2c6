"""Names of emotions: the nine of ArtEmis (Achlioptas et al., 2021), other sets of labels, and what is known of a name.

A set of labels is a tuple of names; its order is that of every histogram, distribution and matrix. The nine are the
default, and this is the single source of their order.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from common.config.rules import MOST_LABELS
from common.errors import UserError

EMOTIONS = (
    "amusement",
    "awe",
    "contentment",
    "excitement",
    "anger",
    "disgust",
    "fear",
    "sadness",
    "something else",
)
INDEX = {name: i for i, name in enumerate(EMOTIONS)}
LONGEST_LABEL = 60  # characters

POSITIVE, NEGATIVE = "positive", "negative"
SIGNS = (POSITIVE, NEGATIVE, "")  # in the order in which they are shown
# Names that have a valence; surprise, something else and whatever is not here have none.
VALENCE = {
    **dict.fromkeys(("amusement", "awe", "contentment", "excitement", "positive"), POSITIVE),
    **dict.fromkeys(
        ("joy", "happiness", "love", "gratitude", "hope", "pride", "relief", "serenity", "trust"), POSITIVE
    ),
    **dict.fromkeys(("anger", "disgust", "fear", "sadness", "negative"), NEGATIVE),
    **dict.fromkeys(("anxiety", "contempt", "despair", "disappointment", "grief", "guilt", "shame"), NEGATIVE),
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def valence(label: str) -> str:
    """POSITIVE, NEGATIVE, or "" for a label that has none."""
    return VALENCE.get(label, "")


def by_valence(labels: Sequence[str] = EMOTIONS) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """The labels in groups (sign, names), each in the order of the labels; a group without any is left out."""
    groups = ((sign, tuple(name for name in labels if valence(name) == sign)) for sign in SIGNS)
    return tuple((sign, names) for sign, names in groups if names)


def as_label(name: str) -> str:
    """A name as it stands in a text: composed, in small letters, words apart by single spaces."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").split())


def label_set(names: Iterable[object], *, where: str) -> tuple[str, ...]:
    """A set of labels, in the order of `names`, each as `as_label` spells it.

    Raises:
        UserError: fewer than two or too many, a name that is no text, or two that cannot be told apart; the message
            begins with `where`.
    """
    found: dict[str, object] = {}
    for name in names:
        label = as_label(name) if isinstance(name, str) else ""
        if not label or not label.isprintable() or len(label) > LONGEST_LABEL:
            raise UserError(f"{where}: {str(name)[:LONGEST_LABEL]!r} cannot be the name of an emotion")
        if label in found:
            raise UserError(f"{where}: {found[label]!r} and {name!r} cannot be told apart; keep one of them")
        found[label] = name
    if not 2 <= len(found) <= MOST_LABELS:
        raise UserError(f"{where}: {len(found)} names, {', '.join(found)[:200]}; from 2 to {MOST_LABELS} can be labels")
    return EMOTIONS if tuple(found) == EMOTIONS else tuple(found)


def labels_of(row: Mapping[str, object]) -> tuple[str, ...]:
    """The labels of a row of predictions or a mapping of metrics, which names them where they are not the nine."""
    return tuple(row.get("labels") or EMOTIONS)


def labels_entry(labels: Sequence[str]) -> dict[str, list[str]]:
    """What such a row holds of them, so that it can be read by itself."""
    return {} if tuple(labels) == EMOTIONS else {"labels": list(labels)}


def number_of(labels: Sequence[str]) -> str:
    """How many labels there are, in words."""
    return NUMBERS[len(labels)] if len(labels) < len(NUMBERS) else str(len(labels))


def as_shares(numbers: Sequence[float], total: float) -> tuple[float, ...]:
    """Shares as they are, for a rounding error could carry one half over the line; counts are divided."""
    return tuple(float(number) if abs(total - 1) <= 1e-3 else number / total for number in numbers)


def one_hot(label: int, labels: Sequence[str]) -> tuple[float, ...]:
    """The histogram of an image with one label."""
    return tuple(float(i == label) for i in range(len(labels)))


def emotion_index(name: object, *, where: str, labels: Sequence[str] = EMOTIONS) -> int:
    """Index of `name` among the labels.

    Raises:
        UserError: `name` is none of them; the message begins with `where` (file and image id).
    """
    try:
        return INDEX[name] if labels is EMOTIONS else labels.index(name)
    except (KeyError, TypeError, ValueError):
        near = get_close_matches(str(name).strip().lower(), labels, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"{where}: {name!r} is not one of the {number_of(labels)} emotions ({', '.join(labels)}){hint}"
        ) from None
