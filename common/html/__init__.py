"""HTML pages of one look: a file each, everything inside, nothing loaded from elsewhere; light, dark, phone, print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from common.files import write_text


def write_page(
    path: Path,
    template: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    tones: Mapping[str, str] | None = None,
    skipped: Sequence[tuple[str, str]] = (),
    **values: Any,
) -> None:
    """Render `template` (a file that extends `base.html.j2`) with everything escaped, and write it in one piece.

    Args:
        facts: how the page came about, shown at its end.
        tones: names and colours; the classes tone-0, tone-1, … in their order.
        skipped: (path, reason) of images that could not be used, shown before the facts.
        values: further variables of the template; an undefined one is an error.

    Raises:
        UserError: the page cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent / "templates"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    values |= {"title": title, "facts": facts, "tones": tones or {}, "skipped": skipped}
    write_text(Path(path), environment.get_template(template.name).render(values))


def percent(share: float) -> str:
    """Return whole percents; what is there but rounds to nothing is "<1"."""
    rounded = f"{100 * share:.0f}"
    return "<1" if rounded == "0" and share > 0 else rounded
