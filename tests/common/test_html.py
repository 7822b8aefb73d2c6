"""HTML pages, figures in their colors, and colors of labels."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import jinja2
import pytest

from common.errors import UserError
from common.html import percent, write_page
from common.html.figures import INK, VARIABLES, inline_svg, new_figure
from data.emotion_colors import EMOTION_COLORS, FURTHER_COLORS, colors_of, groups_of
from data.emotions import EMOTIONS
from tests.helpers.html_page import Page

EVIL = '<b onclick="x">\'&</b>'


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "one.html.j2"
    path.write_text('{% extends "base.html.j2" %}{% block main %}<p>{{ words }}</p>{{ figure }}{% endblock %}')
    return path


def bars(label: str = "a plot", height: float = 2.0) -> str:
    figure, axes = new_figure(3, 2)
    axes.bar([1, 2], [1, height], color="#4a7fb5")
    axes.set_xlabel("x <y> & z", color=INK)
    return inline_svg(figure, label=label)


def test_page_is_self_contained_and_escaped(template, tmp_path):
    values = {"title": EVIL, "facts": {EVIL: EVIL}, "skipped": [(EVIL, EVIL)], "words": EVIL}
    write_page(tmp_path / "page.html", template, **values, figure=bars())
    page = Page(tmp_path / "page.html")
    page.require_self_contained()
    assert page.text.count(EVIL) >= 6 and "b" not in {tag for tag, _ in page.tags}
    assert "prefers-color-scheme: dark" in page.html and "@media print" in page.html
    assert any(attrs.get("name") == "viewport" for _, attrs in page.tags)


def test_undefined_variable_is_an_error(template, tmp_path):
    with pytest.raises(jinja2.UndefinedError, match="words"):
        write_page(tmp_path / "page.html", template, title="t", facts={}, figure="")


def test_unwritable_page(template, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"page\.html cannot be written"):
        write_page(tmp_path / "file" / "page.html", template, title="t", facts={}, words="", figure="")


def test_figures_use_colors_and_font_of_the_page():
    svg = bars()
    assert svg.startswith("<svg") and 'aria-label="a plot"' in svg
    assert not any(color in svg for color in VARIABLES) and "var(--ink)" in svg and "var(--line)" in svg
    assert "font-family" not in svg and "x &lt;y&gt; &amp; z" in svg
    assert "#4a7fb5" in svg, "colors of the data are kept"


def test_figures_are_reproducible_with_unique_ids():
    assert bars() == bars()
    one, two = (set(re.findall(r' id="([^"]+)"', bars(label))) for label in ("one", "two"))
    assert one and two and not one & two
    for svg in (bars("one"), bars("two")):
        referred = {a or b for a, b in re.findall(r"url\(#([\w.-]+)\)|href=\"#([\w.-]+)\"", svg)}
        assert referred == set(re.findall(r' id="([^"]+)"', svg))


def test_percent():
    assert [percent(share) for share in (0, 0.001, 0.005, 0.006, 0.5, 1)] == ["0", "<1", "<1", "1", "50", "100"]


def test_every_emotion_has_a_color():
    assert tuple(EMOTION_COLORS) == EMOTIONS
    assert len(set(EMOTION_COLORS.values())) == 9
    assert all(re.fullmatch(r"#[0-9a-f]{6}", colour) for colour in EMOTION_COLORS.values())


SIX = ("anger", "disgust", "fear", "joy", "sadness", "surprise")


def test_colors_of_other_label_sets():
    assert colors_of(EMOTIONS) == EMOTION_COLORS
    assert {name: colors_of(SIX)[name] for name in SIX if name in EMOTION_COLORS} == {
        name: EMOTION_COLORS[name] for name in SIX if name in EMOTION_COLORS
    }
    assert colors_of(("negative", "positive")) == {
        "negative": EMOTION_COLORS["anger"],
        "positive": EMOTION_COLORS["amusement"],
    }
    for labels in (SIX, tuple(f"name {i}" for i in range(15)), (*EMOTIONS, "joy", "love")):
        found = colors_of(labels)
        assert tuple(found) == labels and len({*found.values()}) == len(labels)
    assert len(colors_of([f"name {i}" for i in range(40)])) == 40


def test_further_colors_are_distinguishable():
    def rgb(color: str) -> tuple[int, ...]:
        return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))

    colours = [*EMOTION_COLORS.values(), *FURTHER_COLORS]
    for one, other in itertools.combinations(map(rgb, colours), 2):
        assert max(abs(a - b) for a, b in zip(one, other, strict=True)) > 40


def test_groups_of_labels():
    assert [len(names) for _, names in groups_of(EMOTIONS)] == [4, 4, 1]
    assert [sign for sign, _ in groups_of(EMOTIONS)] == ["positive", "negative", ""]
    assert groups_of(("negative", "positive")) == (("", ("negative", "positive")),)
    assert groups_of(SIX) == (("", SIX),)
