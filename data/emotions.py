"""The nine emotions of ArtEmis (Achlioptas et al., 2021) and their order: the single source of both."""

from __future__ import annotations

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
