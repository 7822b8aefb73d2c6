"""Images that could not be used: each listed once, on screen and in skipped.jsonl."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from common.files import to_json, write_text
from data.schema import Skipped

SHOWN = 10  # on screen; the file has all


def unique(skipped: Iterable[Skipped]) -> list[Skipped]:
    return list(dict.fromkeys(skipped))


def reasons(skipped: Iterable[Skipped]) -> list[tuple[str, str]]:
    """Return path and reason of each image, for a page."""
    return [(str(image.path), image.reason) for image in unique(skipped)]


def write_skipped(skipped: Iterable[Skipped], folder: Path) -> None:
    rows, path = unique(skipped), folder / "skipped.jsonl"
    if not rows:
        path.unlink(missing_ok=True)  # of an earlier run in this folder
        return
    write_text(path, (to_json({"id": s.id, "image": str(s.path), "reason": s.reason}) for s in rows))
    shown = "".join(f"\n  {s.path} ({s.reason})" for s in rows[:SHOWN])
    more = f"\n  … and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
    noun = "image was" if len(rows) == 1 else "images were"
    print(f"{len(rows)} {noun} skipped; the list is in {path}:{shown}{more}", file=sys.stderr)
