from __future__ import annotations

from common.config.check import ROOT, defaults, presets
from docs.generate_configuration import PAGE, comments, page


def test_the_committed_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m docs.generate_configuration"


def test_every_key_has_a_comment_on_its_line() -> None:
    assert [key for key in defaults() if not comments()[key]] == []
    assert [name for name, comment in presets().items() if not comment] == []


def test_lines_are_at_most_120_characters_long() -> None:
    assert [line for line in (ROOT / "config.yaml").read_text(encoding="utf-8").splitlines() if len(line) > 120] == []
