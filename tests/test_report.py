from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import trainer.report as report
from data.emotions import EMOTIONS, INDEX
from errors import UserError
from trainer.metrics.emotions import emotion_scores
from trainer.report import EMOTION_COLOURS, thumbnail, write_predictions_page, write_test_report

FACTS = {"checkpoint": "runs/demo/best", "seed": "2021"}


class Page(HTMLParser):
    """Tags, attributes and visible text; fails on tags that are not closed in order."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> in line {self.getpos()[0]} closes something else"

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def classes(self, name: str) -> int:
        return sum(name in (attrs.get("class") or "").split() for _, attrs in self.tags)


def picture(path: Path, size: tuple[int, int] = (64, 48), colour: str = "teal") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return str(path)


def one_hot(name: str, share: float = 0.6) -> list[float]:
    rest = (1 - share) / (len(EMOTIONS) - 1)
    return [share if emotion == name else rest for emotion in EMOTIONS]


def row(path: str, emotion: str = "awe", felt: str = "awe", **more) -> dict:
    return {
        "id": "17",
        "image": path,
        "emotion": emotion,
        "emotion_distribution": one_hot(emotion),
        "explanation": f"reason for {emotion}",
        "references": ["the sky is wide"] * 7,
        "reference_emotions": [felt] * 7,
        "histogram": one_hot(felt, 0.9),
    } | more


def metrics_of(rows: list[dict]) -> dict:
    scores = emotion_scores([INDEX[r["emotion"]] for r in rows], [r["histogram"] for r in rows])
    return {
        "emotion": scores.to_dict(),
        "captions": {"BLEU-1": 0.5, "CIDEr": 0.25},
        "tokenizer": "PTB (Stanford)",
        "notes": ["METEOR left out: no Java"],
        "images": len(rows),
        "decoding": {"decoding_strategy": "beam", "beam_width": 5},
    }


@pytest.fixture
def tested(tmp_path) -> list[dict]:
    """Three right, two wrong, one without a label."""
    paths = [picture(tmp_path / "art" / f"p{i}.png") for i in range(6)]
    rows = [row(path, id=f"id{i}") for i, path in enumerate(paths)]
    rows[3] |= {"emotion": "fear", "emotion_distribution": one_hot("fear"), "explanation": "it looms"}
    rows[4] |= {"emotion": "anger", "emotion_distribution": one_hot("anger")}
    rows[5] |= {"histogram": [0.5, 0.5] + [0.0] * 7}
    return rows


def pages(tmp_path, rows, skipped=()) -> list[Page]:
    one, two = tmp_path / "out" / "predict.html", tmp_path / "out" / "test.html"
    write_predictions_page(rows, one, title="Predictions", facts=FACTS, skipped=skipped)
    write_test_report(rows, metrics_of(rows), two, title="Test", facts=FACTS, skipped=skipped)
    return [Page(one), Page(two)]


def test_pages_are_self_contained_and_well_formed(tmp_path, tested):
    for page in pages(tmp_path, tested):
        without_pictures = re.sub(r"data:image/jpeg;base64,[\w+/=]+", "", page.html)
        assert not re.search(r"https?:|//\w|@import|url\(|<script", without_pictures)
        for tag, attrs in page.tags:
            assert not any(name.startswith("on") for name in attrs), tag
            for name in ("src", "href", "srcset", "poster", "data", "action"):
                assert attrs.get(name) is None or attrs[name].startswith("data:"), (tag, attrs)
        assert "default-src 'none'" in page.html


def test_pages_care_for_dark_paper_and_phone(tmp_path, tested):
    for page in pages(tmp_path, tested):
        assert "prefers-color-scheme: dark" in page.html
        assert "@media print" in page.html
        assert any(attrs.get("name") == "viewport" for _, attrs in page.tags)
        assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")


def test_every_text_is_escaped(tmp_path):
    evil = '<b onclick="x">\'"&</b><script>alert(1)</script>'
    path = picture(tmp_path / "a<b>&'\"c.png")
    rows = [row(path, id=evil, explanation=evil, references=[evil], reference_emotions=["awe"])]
    metrics = metrics_of(rows) | {"notes": [evil], "tokenizer": evil, "decoding": {evil: evil}}
    one, two = tmp_path / "1.html", tmp_path / "2.html"
    write_predictions_page(rows, one, title=evil, facts={evil: evil}, skipped=[(evil, evil)])
    write_test_report(rows, metrics, two, title=evil, facts={evil: evil}, skipped=[(evil, evil)])
    for page in (Page(one), Page(two)):
        assert {tag for tag, _ in page.tags}.isdisjoint({"b", "script"})
        assert page.text.count(evil) >= 5
        assert "a<b>&'\"c.png" in page.text
        assert all("onclick" not in attrs for _, attrs in page.tags)


def test_predictions_show_picture_emotion_bars_and_reason(tmp_path):
    rows = [row(picture(tmp_path / "x.png"), "fear", asked_emotion=True, explanation="a dark wood")]
    page = pages(tmp_path, rows)[0]
    assert "x.png" in page.text and "a dark wood" in page.text and "asked for" in page.text
    assert all(name in page.text for name in (*EMOTIONS, "positive", "negative"))
    assert page.classes("best") == 1 and page.classes("fill") == 9
    assert f"tone-{INDEX['fear']} best" in page.html and "width:60.0%" in page.html
    assert "runs/demo/best" in page.text


def test_prediction_without_emotion_or_words(tmp_path):
    rows = [{"image": picture(tmp_path / "x.png"), "emotion": None, "emotion_distribution": None, "explanation": ""}]
    write_predictions_page(rows, tmp_path / "p.html", title="t", facts={})
    page = Page(tmp_path / "p.html")
    assert page.classes("bars") == 0 and "(no words)" in page.text


def test_no_predictions_at_all(tmp_path):
    write_predictions_page([], tmp_path / "p.html", title="t", facts={}, skipped=[("a.png", "broken")])
    page = Page(tmp_path / "p.html")
    assert "No picture was captioned" in page.text and "a.png" in page.text and "broken" in page.text


def test_long_galleries_are_cut_and_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "GALLERY_LIMIT", 2)
    path = picture(tmp_path / "x.png")
    write_predictions_page([row(path)] * 3, tmp_path / "p.html", title="t", facts={})
    page = Page(tmp_path / "p.html")
    assert page.classes("card") == 2 and "3 pictures; the first 2 are shown" in page.text


def test_report_shows_scores_confusion_recall_and_people(tmp_path, tested):
    page = pages(tmp_path, tested, skipped=[("broken.jpg", "truncated")])[1]
    for words in (
        "60.0 %",  # 3 of 5 with a label
        "5 of 6 images",
        "0.500",
        "PTB (Stanford)",
        "METEOR left out: no Java",
        "beam width 5",
        "3 of 5",  # recall of awe
        "annotators: awe",
        "the sky is wide",
        "2 more",
        "broken.jpg",
    ):
        assert words in page.text, words
    assert page.classes("cell") == 81 and page.classes("hit") == 9
    assert page.html.index("Where the model agrees") < page.html.index("Where it does not")
    wrong = page.html[page.html.index("Where it does not") : page.html.index("Where the annotators do not agree")]
    assert "it looms" in wrong and wrong.count('class="card"') == 2


def test_report_without_emotions(tmp_path):
    paths = [picture(tmp_path / f"{i}.png") for i in range(30)]
    none = {"emotion": None, "emotion_distribution": None, "histogram": None, "reference_emotions": []}
    rows = [row(path) | none for path in paths]
    metrics = {"emotion": None, "captions": {"BLEU-4": 0.31}, "tokenizer": "PTB", "notes": [], "images": 30}
    write_test_report(rows, metrics, tmp_path / "t.html", title="COCO", facts=FACTS)
    page = Page(tmp_path / "t.html")
    assert page.classes("bars") == page.classes("confusion") == page.classes("verdict") == 0
    assert "0.310" in page.text and "accuracy" not in page.text and "annotators" not in page.text
    assert page.classes("card") == report.PLAIN_EXAMPLES


def test_report_where_no_image_has_a_label(tmp_path):
    rows = [row(picture(tmp_path / "x.png"), histogram=None)]
    page = pages(tmp_path, rows)[1]
    assert "–" in page.text and page.classes("confusion") == 0 and page.classes("card") == 1


def test_examples_are_limited_and_follow_the_seed(tmp_path):
    paths = [picture(tmp_path / f"p{i:02}.png") for i in range(40)]
    rows = [row(path, id=f"id{i}", explanation=f"reason {i:02}") for i, path in enumerate(paths)]

    def shown(seed: int) -> list[str]:
        write_test_report(rows, metrics_of(rows), tmp_path / "t.html", title="t", facts={}, seed=seed)
        return re.findall(r"reason \d\d", Page(tmp_path / "t.html").text)

    first = shown(1)
    assert len(first) == report.EXAMPLES["right"] and first == sorted(first)
    assert shown(1) == first != shown(2)


def test_names_hide_the_folders_above(tmp_path):
    rows = [row(picture(tmp_path / "art" / style / "a.png")) for style in ("Rococo", "Realism")]
    page = pages(tmp_path, rows)[0]
    assert "Rococo/a.png" in page.text and "Realism/a.png" in page.text
    assert str(tmp_path) not in page.html


def test_unreadable_picture_keeps_its_card(tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    rows = [row(str(broken)), row(str(tmp_path / "missing.png")), row(picture(tmp_path / "good.png"))]
    page = pages(tmp_path, rows)[0]
    assert page.classes("card") == 3 and page.text.count("no picture to show") == 2


def decoded(found: dict) -> Image.Image:
    head, data = found["uri"].split(",", 1)
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_thumbnails(tmp_path):
    large = thumbnail(Path(picture(tmp_path / "large.jpg", (1000, 500))))
    assert decoded(large).size == (320, 160) == (large["width"], large["height"]) and not large["small"]
    tiny = thumbnail(Path(picture(tmp_path / "tiny.png", (64, 64))))
    assert decoded(tiny).size == (64, 64) and tiny["small"]
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert np.asarray(decoded(thumbnail(tmp_path / "clear.png"))).min() > 250, "transparent parts are white"
    for mode in ("L", "P", "1", "LA", "I;16", "CMYK"):
        path = tmp_path / f"{mode.replace(';', '')}.tif"
        Image.new(mode, (30, 20)).save(path)
        assert thumbnail(path) is not None, mode


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "x.jpg", exif=exif)
    assert decoded(thumbnail(tmp_path / "x.jpg")).size == (20, 40)


def test_small_pictures_are_enlarged_in_whole_pixels(tmp_path):
    rows = [row(picture(tmp_path / "s.png", (64, 64))), row(picture(tmp_path / "l.png", (640, 480)))]
    page = pages(tmp_path, rows)[0]
    assert page.classes("small") == 1 and "image-rendering: pixelated" in page.html


def test_writing_is_atomic(tmp_path, monkeypatch):
    path = tmp_path / "p.html"
    rows = [row(picture(tmp_path / "x.png"))]
    write_predictions_page(rows, path, title="first", facts={})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=r"p\.html.*No space left"):
        write_predictions_page(rows, path, title="second", facts={})
    assert "first" in Page(path).text
    assert {p.name for p in tmp_path.iterdir()} == {"p.html", "x.png"}


def test_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the page .*p\.html"):
        write_predictions_page([], tmp_path / "file" / "p.html", title="t", facts={})


def test_undecodable_file_names_do_not_stop_the_page(tmp_path):
    write_predictions_page([], tmp_path / "p.html", title="t", facts={}, skipped=[("bad\udcff.png", "broken")])
    assert "bad?.png" in Page(tmp_path / "p.html").text


def test_colours_are_one_per_emotion():
    assert tuple(EMOTION_COLOURS) == EMOTIONS
    assert len(set(EMOTION_COLOURS.values())) == 9
    assert all(re.fullmatch(r"#[0-9a-f]{6}", colour) for colour in EMOTION_COLOURS.values())
