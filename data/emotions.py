"""The nine emotions of ArtEmis (Achlioptas et al., 2021) and their order: the single source of both."""

from __future__ import annotations

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


def emotion_index(name: str, *, where: str) -> int:
    """Index of `name` in the order above.

    Raises:
        UserError: `name` is none of the nine; the message begins with `where` (file and image id).
    """
    try:
        return INDEX[name]
    except (KeyError, TypeError):
        raise UserError(f"{where}: {name!r} is not one of the nine emotions ({', '.join(EMOTIONS)})") from None
