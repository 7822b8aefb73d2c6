"""Pages of VLE: scores of a test, and pictures with questions, matching texts or the regions of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from common.html import write_page
from common.html.tables import Table
from data.images import ImageError, open_image
from model.vle.overlay import draw_overlay
from trainer.report.cards import display_names
from trainer.report.page import TEMPLATES
from trainer.report.thumbnails import LARGEST, THUMBNAIL, data_uri, thumbnail

Result = Mapping[str, Any]


def write_vle_page(
    path: Path,
    results: Mapping[Path, Sequence[Result]],
    *,
    title: str,
    lead: str,
    facts: Mapping[str, str],
    tables: Sequence[Table] = (),
    heading: str = "Pictures",
    skipped: Sequence[tuple[str, str]] = (),
    visible: Any = None,
) -> None:
    """Write one card for each picture.

    Args:
        results: by picture, as in predictions.jsonl.
        visible: (width, height) → part of a picture that the patches cover, in pixels; for overlays.

    Raises:
        UserError: the page cannot be written.
    """
    names = display_names([{"image": picture} for picture in results])
    cards = [
        {"name": name, "picture": thumbnail(picture), "lines": [_line(row, picture, visible) for row in rows]}
        for name, (picture, rows) in zip(names, results.items(), strict=True)
    ]
    page = TEMPLATES / "vle_report.html.j2"
    shown = {"lead": lead, "tables": tables, "cards": cards, "heading": heading}
    write_page(path, page, title=title, facts=facts, skipped=skipped, emotions=[], other="other", **shown)


def _line(row: Result, picture: Path, visible: Any) -> dict[str, Any]:
    line: dict[str, Any] = {"asked": None, "said": "", "right": None, "truth": None, "overlay": None, "width": 0}
    if "question" in row:
        line |= {"asked": row["question"], "said": f"{row['answer']} ({row['score']:.0%})"}
        if row.get("answers"):
            best = max(row["answers"], key=row["answers"].get)
            right = row["answers"].get(row["answer"], 0.0) > 0
            line |= {"right": right, "truth": None if right else best}
    elif "text" in row:
        line["said"] = row["text"]
        if "score" in row:
            line["truth"] = f"match {row['score']:.0%}"
            if row.get("match") is not None:
                line["right"] = (row["score"] > 0.5) == bool(row["match"])
        if row.get("scores") and (drawn := overlay_uri(picture, row["scores"], visible)):
            line |= {"overlay": drawn, "width": THUMBNAIL // 2}
    return line


def overlay_uri(picture: Path, scores: Sequence[float], visible: Any) -> str | None:
    """Return the picture with the patches darkened that a text is not about, as a data URI; None if unreadable."""
    try:
        image = open_image(picture, max_pixels=LARGEST, about=2 * THUMBNAIL)
    except ImageError:
        return None
    part = None if visible is None else visible(*image.size)
    drawn = draw_overlay(image, torch.tensor(scores).logit(eps=1e-6), part)
    drawn.thumbnail((THUMBNAIL, THUMBNAIL))
    return data_uri(drawn.convert("RGB"), "PNG")
