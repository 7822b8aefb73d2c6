"""Language model, expert and gate in the pages and in the table on screen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from data.emotions import EMOTIONS
from tests.helpers.html_page import Page
from tests.helpers.predictions import PLAIN, both_explanations, drawn, peak
from trainer.report.page import write_predictions_page, write_test_report
from trainer.report.predictions_table import table_lines
from trainer.score.measure import measure


@pytest.fixture
def rows(tmp_path) -> list[dict]:
    path = tmp_path / "x.png"
    Image.new("RGB", (64, 48), "teal").save(path)
    found = [row | {"image": str(path)} for row in both_explanations(drawn(12))]
    said = {"language_model": peak("fear", 0.5), "student": peak("sadness", 0.4)}
    found[0] |= {"emotion": "awe", "emotion_distribution": peak("awe", 0.6), "sources": found[0]["sources"] | said}
    return found


def predicted(rows: list[dict], tmp_path: Path) -> Page:
    write_predictions_page(rows, tmp_path / "p.html", title="t", facts={})
    page = Page(tmp_path / "p.html")
    page.require_self_contained()
    return page


def report_of(rows: list[dict], tmp_path: Path) -> Page:
    found = measure(rows, PLAIN)
    write_test_report(rows, found.metrics, tmp_path / "t.html", title="t", facts={}, per_image=found.per_image)
    page = Page(tmp_path / "t.html")
    page.require_self_contained()
    return page


def widths(page: Page, kind: str) -> list[float]:
    return [float(width) for width in re.findall(rf'class="fill {kind}" style="width:([\d.]+)%', page.html)]


def test_card_shows_each_source_and_the_weight(rows, tmp_path):
    page = predicted(rows[:1], tmp_path)
    assert "fused awe 60 % language model fear 50 % expert sadness 40 %" in page.text
    assert "weights here: language model 25 %, expert 75 %" in page.text
    assert widths(page, "language_model")[EMOTIONS.index("fear")] == 50
    assert widths(page, "student")[EMOTIONS.index("sadness")] == 40
    assert page.classes("fill") == 3 * 9 and page.classes("best") == 1


def test_card_shows_a_further_source_by_its_name(rows, tmp_path):
    gate = {"name": "average", "weights": {"language_model": 0.2, "student": 0.3, "my_vle": 0.5}}
    row = rows[0] | {"sources": rows[0]["sources"] | {"my_vle": peak("anger", 0.7)}, "gate": gate}
    page = predicted([row], tmp_path)
    assert "language model fear 50 % expert sadness 40 % my_vle anger 70 %" in page.text
    assert "weights here: language model 20 %, expert 30 %, my_vle 50 %" in page.text
    assert widths(page, "other")[EMOTIONS.index("anger")] == 70 and page.classes("fill") == 4 * 9
    assert 'style="--more:1"' in page.html and 'style="--more' not in predicted(rows[1:2], tmp_path).html
    assert widths(report_of([row, *rows[1:]], tmp_path), "other")


def test_card_without_a_gate_shows_language_model_and_expert(rows, tmp_path):
    row = {key: value for key, value in rows[0].items() if key not in ("gate", "gates")}
    page = predicted([row | {"emotion": "fear", "emotion_distribution": peak("fear", 0.5)}], tmp_path)
    assert "language model fear 50 % expert sadness 40 %" in page.text and "fused" not in page.text
    assert page.classes("fill") == 2 * 9 and "weight" not in page.text


def test_card_with_two_labels(rows, tmp_path):
    said = {"language_model": [0.75, 0.25], "student": [0.125, 0.875]}
    fused = {"emotion": "positive", "emotion_distribution": [0.4, 0.6], "sources": said}
    page = predicted([rows[0] | fused | {"labels": ["negative", "positive"]}], tmp_path)
    assert "fused positive 60 % language model negative 75 % expert positive 88 %" in page.text
    assert widths(page, "language_model") == [75, 25] and widths(page, "student") == [12.5, 87.5]


def test_rows_without_sources_show_none(rows, tmp_path):
    plain = [{key: row[key] for key in row if key not in ("sources", "gates", "gate", "own")} for row in rows]
    for page in (predicted(plain, tmp_path), report_of(plain, tmp_path)):
        for name in ("legend", "weight", "sources", "language_model", "student"):
            assert page.classes(name) == 0, name
        assert "expert" not in page.text and "fused" not in page.text


def test_report_has_a_section_on_language_model_and_expert(rows, tmp_path):
    page = report_of(rows, tmp_path)
    part = page.html.split("<h2>Language model and expert</h2>")[1].split("</section>")[0]
    for words in ("majority class", "concat linear <small>in use</small>", "oracle", "student − probe", "<small>p "):
        assert words in part, words
    assert part.count('class="marked"') == 1
    assert "12 images with a label are too few for evidence" in part
    assert page.text.count("too few for evidence") == 1, "not among the other notes too"
    assert "the fused emotion is another than the language model's own" in page.text
    assert "annotators" in page.html.split('class="legend"')[1].split("</ul>")[0]


def test_table_shows_sources_that_differ(rows, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    same = rows[1] | {"emotion": "awe", "sources": {"language_model": peak("awe", 0.7), "student": peak("awe", 0.4)}}
    one, two = rows[0] | {"image": "a.png"}, same | {"image": "b.png", "emotion_distribution": peak("awe", 0.5)}
    head, first, second = table_lines([one, two])
    assert head.strip() == "language model / expert"
    assert first.startswith("a.png  awe 60%  fear 50% / sadness 40%  ")
    assert second.startswith("b.png  awe 50%  " + " " * 25)
    assert first.index(one["explanation"]) == second.index(two["explanation"])
    (alone,) = table_lines([two])
    assert alone == f"b.png  awe 50%  {two['explanation']}"
    third = one | {"sources": one["sources"] | {"vle": peak("awe", 0.7)}}
    head, first, second = table_lines([third, one])
    assert head.strip() == "language model / expert / vle"
    assert "fear 50% / sadness 40% / awe 70%" in first and "fear 50% / sadness 40% / –" in second
