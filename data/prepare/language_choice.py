"""Choose the languages of ArtELingo's rows, and count what became of the rows of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from common.errors import UserError
from data.prepare.export import Prepared
from data.prepare.rows import Row

ALL = "all"


def choose_languages(rows: list[Row], wanted: Sequence[str] | None, prepared: Prepared, path: Path) -> list[Row]:
    """Return the rows of the `wanted` languages; without a column language, `wanted` names the language of all rows.

    Raises:
        UserError: several languages and no choice, or a language that the file does not have.
    """
    counts = Counter(row.language for row in rows)
    listed = ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
    if not any(counts):
        if wanted is not None and (len(wanted) > 1 or ALL in wanted):
            raise UserError(f"--language {','.join(wanted)}: {path} has no column language; name the one of its texts")
        return [row._replace(language=wanted[0]) for row in rows] if wanted else rows
    if wanted is None and len(counts) > 1:
        raise UserError(f"{path} has {len(counts)} languages ({listed}): choose with --language NAME[,NAME] or all")
    if unknown := [name for name in wanted or () if name not in counts and name != ALL]:
        raise UserError(f"--language {unknown[0]}: {path} has {listed}")
    prepared.rows_by_language = counts + Counter(item.language for item in prepared.left_out)
    if wanted is None or ALL in wanted:
        return rows
    prepared.dropped.update({(name, "not chosen"): count for name, count in counts.items() if name not in wanted})
    return [row for row in rows if row.language in wanted]
