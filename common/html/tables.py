"""Tables of numbers, for the terminal (`screen_text`) and for pages (macro in templates/tables.html.j2)."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

NONE = "–"  # no value
WIDTHS = (80, 120)  # smallest and largest width of the output, in columns

Written = Callable[[float | None], str]


class Cell(NamedTuple):
    """A number with its 95 % interval, or text."""

    number: float | str | None
    written: Callable[..., str] = str
    bounds: Sequence[float] | None = None  # (low, high)
    about: str = ""
    key: str = ""  # in metrics.json: emotion.accuracy, captions.BLEU-4, …

    @property
    def value(self) -> str:
        return self.written(self.number)

    @property
    def interval(self) -> str:
        return interval(self.bounds, self.written)


class Row(NamedTuple):
    name: str
    cells: Sequence[Cell]
    about: str = ""


class Table(NamedTuple):
    title: str
    about: str
    columns: Sequence[str]  # headings; empty: a single column without a heading, explained by `about` of each row
    rows: Sequence[Row]


def interval(bounds: Sequence[float] | None, written: Written) -> str:
    """Return "[low, high]", or "" without bounds."""
    if not bounds:
        return ""
    low, high = (written(bound) for bound in bounds)
    return f"[{low.removesuffix(' %').removesuffix(' pp')}, {high}]"


def signed(written: Written) -> Written:
    """Return a formatter of differences: with sign, in percentage points instead of percent, never -0.000."""

    def difference(value: float | None) -> str:
        if value is None:
            return NONE
        size = written(abs(value)).replace("%", "pp")
        return f"-{size}" if value < 0 and re.search("[1-9]", size) else f"+{size}"

    return difference


def count(value: float | None) -> str:
    return _rounded(value, 0)


def length(value: float | None) -> str:
    return _rounded(value, 1)


def percent(value: float | None) -> str:
    return NONE if value is None else f"{_rounded(100 * value, 1)} %"


def number(value: float | None) -> str:
    return _rounded(value, 3)


def _rounded(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:z.{digits}f}"  # z: never -0.000


def screen_text(parts: Iterable[Table | str]) -> str:
    """Return tables and sentences as text as wide as the terminal, within WIDTHS; bold only on a terminal."""
    from rich.console import Console  # imported here: --help must be fast
    from rich.text import Text

    width = min(max(shutil.get_terminal_size((100, 24)).columns, WIDTHS[0]), WIDTHS[1])
    console = Console(width=width, height=100, highlight=False, markup=False, emoji=False)

    def print_text(text: str, indent: str = "") -> None:
        for line in textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False):
            console.print(line, overflow="ignore", crop=False)

    with console.capture() as captured:
        for part in parts:
            if isinstance(part, str):
                print_text(part, "  ")
                continue
            if part.title:
                console.print(Text(part.title, style="bold"))
            print_text(part.about)
            for table in _fitting(part, console):
                console.print(table)
            console.print()
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def _fitting(table: Table, console: Console) -> list[RichTable]:
    """Return the table with intervals to the right of the values, else below, else split into halves of the columns."""
    right, below = (_rich_table(table, between) for between in (" ", "\n"))
    if not table.columns:
        return [right]  # its last column wraps
    unlimited, half = console.options.update(width=10_000), len(table.columns) // 2
    for made in (right, below):
        if console.measure(made, options=unlimited).maximum <= console.width or (made is below and not half):
            return [made]
    parts = [
        table._replace(columns=table.columns[part], rows=[row._replace(cells=row.cells[part]) for row in table.rows])
        for part in (slice(half), slice(half, None))
    ]
    return [made for part in parts for made in _fitting(part, console)]


def _rich_table(table: Table, between: str) -> RichTable:
    from rich.table import Table as RichTable

    heads = table.columns or ("",)
    cells = zip(*(row.cells for row in table.rows), strict=True)
    columns = [_aligned(head, column, between) for head, column in zip(heads, cells, strict=True)]
    made = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=any(heads))
    for head in ("", *(head for head, *_ in columns)):
        made.add_column(head, no_wrap=True)
    if not table.columns:
        made.add_column("")
    for i, row in enumerate(table.rows, start=1):
        name = f"{row.name}, {row.about}" if table.columns and row.about else row.name
        made.add_row(f"  {name}", *(column[i] for column in columns), *([] if table.columns else [row.about]))
    return made


def _aligned(head: str, cells: Sequence[Cell], between: str) -> list[str]:
    """Return a heading and its cells, right-aligned; if on one line, values and intervals are aligned separately."""
    parts = [(cell.value, cell.interval, cell.about) for cell in cells]
    texts = ["\n".join(filter(None, texts)) for texts in parts]
    if between == " ":
        widths = [max(map(cell_len, column)) for column in zip(*parts, strict=True)]
        shown = [i for i, width in enumerate(widths) if width]
        texts = ["  ".join(padded(part[i], widths[i], left=not i) for i in shown) for part in parts]
    lines = [text.split("\n") for text in (head, *texts)]
    width = max(cell_len(line) for text in lines for line in text)
    return ["\n".join(padded(line, width, left=True) for line in text) for text in lines]


def padded(text: str, width: int, *, left: bool = False) -> str:
    """Return text with spaces up to `width` columns; a Chinese or Japanese character takes two."""
    space = " " * (width - cell_len(text))
    return space + text if left else text + space
