"""The part of the pages that shows the emotions of each group of images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.emotion_colors import groups_of
from trainer.metrics.groups import MOST_SHOWN
from trainer.report.thumbnails import thumbnail


def groups_section(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the values of templates/groups.html.j2; None without groups.

    Args:
        found: as returned by trainer.metrics.groups.by_group; the rows may lack "examples".
    """
    if not found:
        return None
    labels = found["labels"]
    order = [labels.index(name) for _, names in groups_of(labels) for name in names]

    def parts(shares: list[float] | None) -> list[dict[str, Any]]:
        return [{"name": labels[i], "share": shares[i], "tone": i} for i in order] if shares else []

    rows = [
        {
            **row,
            "shares": parts(row["shares"]),
            "people": parts(row["people"]),
            "pictures": [made for image in row.get("examples", ()) if (made := thumbnail(Path(image)))],
        }
        for row in found["rows"][:MOST_SHOWN]
    ]
    people, most = any(row["people"] for row in rows), math.log2(max(len(labels), 1))
    return {"by": found["by"], "rows": rows, "total": len(found["rows"]), "people": people, "most": most}
