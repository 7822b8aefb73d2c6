"""The nine emotions of ArtEmis (Achlioptas et al., 2021) and their order: the single source of both."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from errors import UserError

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


def as_shares(numbers: Sequence[float], total: float) -> tuple[float, ...]:
    """Nine shares as they are, for a rounding error could carry one half over the line; counts are divided."""
    return tuple(float(number) if abs(total - 1) <= 1e-3 else number / total for number in numbers)


def emotion_index(name: object, *, where: str) -> int:
    """Index of `name` in the order above.

    Raises:
        UserError: `name` is none of the nine; the message begins with `where` (file and image id).
    """
    try:
        return INDEX[name]
    except (KeyError, TypeError):
        near = get_close_matches(str(name).strip().lower(), EMOTIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{where}: {name!r} is not one of the nine emotions ({', '.join(EMOTIONS)}){hint}") from None
