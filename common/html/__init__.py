"""Self-contained HTML pages of one design, for light and dark mode, phones and print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from common.cli import CONTROL
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
    """Render `template`, which extends `base.html.j2`, all values escaped, and write it without control characters.

    Args:
        facts: provenance, shown at the end of the page.
        tones: colors by name; the CSS classes tone-0, tone-1, … in this order.
        skipped: (path, reason) of unusable images, shown before the facts.
        values: further variables of the template.

    Raises:
        UserError: the page cannot be written.
        jinja2.UndefinedError: the template needs a variable that is missing.
    """
    values |= {"title": title, "facts": facts, "tones": tones or {}, "skipped": skipped}
    write_text(Path(path), render(template, **values))


def render(template: Path, **values: Any) -> str:
    """Render a template, all values escaped, without control characters.

    Raises:
        jinja2.UndefinedError: the template needs a variable that is missing.
    """
    return CONTROL.sub("", _environment(template.parent).get_template(template.name).render(values))


@cache
def _environment(folder: Path) -> jinja2.Environment:
    """Return the environment of the templates in `folder`; it keeps them compiled."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent / "templates"]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment


def percent(share: float) -> str:
    """Format a share as whole percent; "<1" for a positive share that rounds to 0."""
    rounded = f"{100 * share:.0f}"
    return "<1" if rounded == "0" and share > 0 else rounded
