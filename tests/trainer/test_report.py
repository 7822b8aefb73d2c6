from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from data.emotions import EMOTIONS, INDEX
from tests.helpers.html_page import Page
from trainer.metrics.emotions import emotion_report, emotion_rows
from trainer.report import cards
from trainer.report import page as report
from trainer.report.attention import AttentionExample, View
from trainer.report.page import sample_rows, write_predictions_page, write_test_report

FACTS = {"checkpoint": "runs/demo/best", "seed": "2021"}


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
    return {
        "emotion": emotion_report(*emotions_of(rows)),
        "captions": {"BLEU-1": 0.5, "CIDEr": 0.25},
        "intervals": {"captions.CIDEr": [0.21, 0.28]},
        "bootstrap": {"replicates": 1000, "seed": 0},
        "tokenizer": "PTB (Stanford)",
        "notes": ["METEOR left out: no Java"],
        "images": len(rows),
        "decoding": {"decoding_strategy": "beam", "beam_width": 5},
    }


def emotions_of(rows: list[dict]) -> tuple[list, list, list]:
    return [INDEX[r["emotion"]] for r in rows], *([r[k] for r in rows] for k in ("emotion_distribution", "histogram"))


def per_image_of(rows: list[dict]) -> list[dict]:
    """CIDEr rises with the position; the VAD of every third image is unknown."""
    found = []
    for i, (row, emotion) in enumerate(zip(rows, emotion_rows(*emotions_of(rows)), strict=True)):
        vad = {f"{who}{name}": None if i % 3 == 2 else 0.1 * i for who in ("", "people_") for name in DIMENSIONS}
        found.append({"id": row["id"], **emotion, "CIDEr": i / 10, **vad})
    return found


DIMENSIONS = ("valence", "arousal", "dominance")


def attention_of(row: dict, box=(0.0, 0.0, 1.0, 1.0), words: str = "sky") -> AttentionExample:
    grid = np.array([[0.1, 0.6], [0.1, 0.2]])
    return AttentionExample(row, box, [View("", grid), View(words, grid[::-1])])


@pytest.fixture
def tested(tmp_path) -> list[dict]:
    """Return three correct rows, two wrong ones, and one without a label."""
    paths = [picture(tmp_path / "art" / f"p{i}.png") for i in range(6)]
    rows = [row(path, id=f"id{i}") for i, path in enumerate(paths)]
    rows[3] |= {"emotion": "fear", "emotion_distribution": one_hot("fear"), "explanation": "it looms"}
    rows[4] |= {"emotion": "anger", "emotion_distribution": one_hot("anger")}
    rows[5] |= {"histogram": [0.5, 0.5] + [0.0] * 7}
    return rows


def pages(tmp_path, rows, skipped=()) -> list[Page]:
    one, two = tmp_path / "out" / "predict.html", tmp_path / "out" / "test.html"
    write_predictions_page(rows, one, title="Predictions", facts=FACTS, skipped=skipped)
    more = {"per_image": per_image_of(rows), "attention": [attention_of(row) for row in rows[:1]]}
    write_test_report(rows, metrics_of(rows), two, title="Test", facts=FACTS, skipped=skipped, **more)
    return [Page(one), Page(two)]


def test_pages_are_self_contained_and_well_formed(tmp_path, tested):
    for page in pages(tmp_path, tested):
        page.require_self_contained()


def test_pages_have_styles_for_dark_mode_print_and_phones(tmp_path, tested):
    for page in pages(tmp_path, tested):
        assert "prefers-color-scheme: dark" in page.html
        assert "@media print" in page.html
        assert any(attrs.get("name") == "viewport" for _, attrs in page.tags)
        assert all(attrs.get("alt") for tag, attrs in page.tags if tag == "img")


def test_every_text_is_escaped(tmp_path):
    hostile = '<b onclick="x">\'"&</b><script>alert(1)</script>'
    path = picture(tmp_path / "a<b>&'\"c.png")
    others = [reason("awe", 0.6), {**reason("fear", 0.1), "explanation": hostile}]
    rows = [
        row(path, id=hostile, explanation=hostile, references=[hostile], reference_emotions=["awe"], reasons=others)
    ]
    metrics = metrics_of(rows) | {"notes": [hostile], "tokenizer": hostile, "decoding": {hostile: hostile}}
    one, two = tmp_path / "1.html", tmp_path / "2.html"
    write_predictions_page(rows, one, title=hostile, facts={hostile: hostile}, skipped=[(hostile, hostile)])
    attention = [attention_of(row, words=hostile) for row in rows]
    write_test_report(
        rows, metrics, two, title=hostile, facts={hostile: hostile}, skipped=[(hostile, hostile)], attention=attention
    )
    for page in (Page(one), Page(two)):
        assert {tag for tag, _ in page.tags}.isdisjoint({"b", "script"})
        assert page.text.count(hostile) >= 5
        assert "a<b>&'\"c.png" in page.text
        assert all("onclick" not in attrs for _, attrs in page.tags)


def test_predictions_show_picture_emotion_bars_and_reason(tmp_path):
    rows = [row(picture(tmp_path / "x.png"), "fear", asked_emotion=True, explanation="a dark wood")]
    page = pages(tmp_path, rows)[0]
    assert "x.png" in page.text and "a dark wood" in page.text and "chosen by you" in page.text
    assert all(name in page.text for name in (*EMOTIONS, "positive", "negative"))
    assert page.classes("best") == 1 and page.classes("fill") == 9
    assert f"tone-{INDEX['fear']} best" in page.html and "width:60.0%" in page.html
    assert "runs/demo/best" in page.text


VAD = [0.5, -0.25, 0.0]


def reason(emotion: str, probability: float, **more) -> dict:
    return {"emotion": emotion, "probability": probability, "explanation": f"reason for {emotion}"} | more


def test_reasons_of_other_emotions_follow_the_first(tmp_path):
    reasons = [reason("awe", 0.6), reason("fear", 0.123), reason("sadness", 0.001)]
    write_predictions_page(
        [row(picture(tmp_path / "x.png"), reasons=reasons)], tmp_path / "p.html", title="t", facts={}
    )
    page = Page(tmp_path / "p.html")
    page.require_self_contained()
    assert [page.text.count(f"reason for {name}") for name in ("awe", "fear", "sadness")] == [1, 1, 1]
    assert (
        page.text.index("reason for awe") < page.text.index("fear 12 % reason") < page.text.index("sadness <1 % reason")
    )


def test_vad_is_shown_as_centered_bar_and_signed_number(tmp_path):
    rows = [
        row(picture(tmp_path / "x.png"), vad=VAD, reasons=[reason("awe", 0.6), reason("fear", 0.1, vad=[-1, 1, 0.004])])
    ]
    write_predictions_page(rows, tmp_path / "p.html", title="t", facts={})
    page = Page(tmp_path / "p.html")
    page.require_self_contained()
    assert "valence +0.50 arousal −0.25 dominance +0.00" in page.text
    assert "valence −1.00 · arousal +1.00 · dominance +0.00" in page.text
    assert "from −1 to 1" in page.text
    for style in ("left:50.0%;width:25.0%", "left:37.5%;width:12.5%", "left:50.0%;width:0.0%"):
        assert style in page.html
    write_predictions_page([row(picture(tmp_path / "x.png"))], tmp_path / "p.html", title="t", facts={})
    assert "valence" not in Page(tmp_path / "p.html").text.lower()


def test_generated_emotion_outside_the_labels_is_quoted(tmp_path):
    said = row(picture(tmp_path / "x.png")) | {"emotion": None, "emotion_text": "<peace>"}
    write_predictions_page([said], tmp_path / "p.html", title="t", facts={})
    page = Page(tmp_path / "p.html")
    assert "“<peace>” none of the nine" in page.text and page.classes("fill") == 9
    metrics = metrics_of([row("x.png")])
    for histogram, beside in ((one_hot("awe"), "; annotators: awe"), (None, "")):
        write_test_report([said | {"histogram": histogram}], metrics, tmp_path / "t.html", title="t", facts={})
        assert f"“<peace>” none of the nine{beside} " in Page(tmp_path / "t.html").text


def test_page_states_the_calibration_temperature(tmp_path):
    path = picture(tmp_path / "x.png")
    for temperatures, said in ([(1.2345, 1.2345), True], [(1.2, 1.3), False], [(None, 1.3), False], [(None,), False]):
        rows = [row(path) | ({} if t is None else {"emotion_temperature": t}) for t in temperatures]
        write_predictions_page(rows, tmp_path / "p.html", title="t", facts={})
        assert ("calibrated by the temperature 1.23." in Page(tmp_path / "p.html").text) == said


def test_prediction_without_emotion_or_explanation(tmp_path):
    rows = [{"image": picture(tmp_path / "x.png"), "emotion": None, "emotion_distribution": None, "explanation": ""}]
    write_predictions_page(rows, tmp_path / "p.html", title="t", facts={})
    page = Page(tmp_path / "p.html")
    assert page.classes("bars") == 0 and "(no words)" in page.text


def test_page_without_predictions(tmp_path):
    write_predictions_page([], tmp_path / "p.html", title="t", facts={}, skipped=[("a.png", "broken")])
    page = Page(tmp_path / "p.html")
    assert "No picture was captioned" in page.text and "a.png" in page.text and "broken" in page.text


def test_long_galleries_are_truncated_with_a_note(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "GALLERY_LIMIT", 2)
    path = picture(tmp_path / "x.png")
    write_predictions_page([row(path)] * 3, tmp_path / "p.html", title="t", facts={})
    page = Page(tmp_path / "p.html")
    assert page.classes("card") == 2 and "3 pictures; the first 2 are shown" in page.text


def test_report_shows_scores_confusion_recall_and_annotations(tmp_path, tested):
    page = pages(tmp_path, tested, skipped=[("broken.jpg", "truncated")])[1]
    for words in (
        "60.0 %",  # 3 of 5 with a label
        "5 of 6 images",
        "0.500",
        "PTB (Stanford)",
        "METEOR left out: no Java",
        "beam width 5",
        "[0.210, 0.280]",
        "95 % intervals of 1000",
        "of 5",  # images whose label is awe
        "annotators: awe",
        "the sky is wide",
        "2 more",
        "broken.jpg",
    ):
        assert words in page.text, words
    assert page.classes("cell") == 81 and page.classes("hit") == 9
    for rule in ("more than half", "at least half", "unique maximum"):
        assert rule in page.text


def test_report_names_tokenizer_clip_and_classifier_of_the_scores(tmp_path, tested):
    metrics = metrics_of(tested) | {
        "clip": "ViT-B-32/openai",
        "explanations": {"novelty": {"captions": 6, "training_texts": 99, "seed": 7}},
        "alignment": {"classifier": {"network": "lstm", "folder": "classifier/<a>", "words": 5}, "accuracy": 0.5}
        | {"count": 5, "total": 6, "rule": "more_than_half"},
    }
    write_test_report(tested, metrics, tmp_path / "t.html", title="t", facts=FACTS)
    text = Page(tmp_path / "t.html").text
    for words in ("ViT-B-32/openai", "6 explanations and 99 training texts, seed 7", "lstm, classifier/<a>"):
        assert words in text
    assert "bootstrap, 1000 samples, seed 0" in text and "runs/demo/best" in text


def section(page: Page, title: str) -> str:
    return page.html.split(f"<h2>{title}</h2>")[1].split("</section>")[0]


def test_best_and_worst_examples_name_their_score(tmp_path):
    rows = [row(picture(tmp_path / f"{i}.png"), id=f"id{i}", explanation=f"reason {i:02}") for i in range(14)]
    page = pages(tmp_path, rows)[1]
    best, worst = section(page, "The best explanations"), section(page, "The worst explanations")
    assert re.findall(r"reason \d\d", best) == [f"reason {i:02}" for i in (13, 12, 11, 10, 9, 8)]
    assert re.findall(r"reason \d\d", worst) == [f"reason {i:02}" for i in range(6)]
    assert "By CIDEr of each image: the highest 6 of 14" in best and "CIDEr 1.300" in best
    assert "the lowest 6 of 14" in worst and "CIDEr 0.000" in worst


def test_no_image_is_both_best_and_worst(tmp_path):
    rows = [row(picture(tmp_path / f"{i}.png"), id=f"id{i}", explanation=f"reason {i:02}") for i in range(3)]
    page = pages(tmp_path, rows)[1]
    assert re.findall(r"reason \d\d", section(page, "The best explanations")) == ["reason 02"]
    assert re.findall(r"reason \d\d", section(page, "The worst explanations")) == ["reason 00"]


def test_labels_with_the_lowest_probability_are_shown(tmp_path, tested):
    page = pages(tmp_path, tested)[1]
    mistaken = section(page, "Labels with the lowest probability")
    assert mistaken.count('class="card"') == 5, "the sixth has no label"
    first, second = mistaken.split('class="card"')[1:3]
    for card in (first, second):
        assert "annotators: awe" in card and "log loss 2.996" in card  # minus the logarithm of 0.4 / 8


def test_without_scores_per_image_only_random_examples_are_shown(tmp_path, tested):
    write_test_report(tested, metrics_of(tested), tmp_path / "t.html", title="t", facts={})
    page = Page(tmp_path / "t.html")
    assert "best" not in page.text and page.html.count("<svg") == 1 and "Random examples" in page.text


def test_page_has_plots_and_attention_maps(tmp_path, tested):
    page = pages(tmp_path, tested)[1]
    assert [svg for svg in page.tags if svg[0] == "svg" and svg[1]["role"] != "img"] == []
    labels = {attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"}
    assert {"reliability diagram of the emotions", *(f"scatter plot of {name}" for name in DIMENSIONS)} < labels
    assert "attention of sky" in labels and "attention of the whole explanation" in labels
    assert "2.4 times the even share" in page.text
    identities = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(identities) == len(set(identities))
    used = {attrs["href"][1:] for tag, attrs in page.tags if tag == "use"}
    assert used <= set(identities)


def test_heat_map_covers_the_visible_box(tmp_path):
    rows = [row(picture(tmp_path / "x.png", (600, 400)))]
    attention = [attention_of(rows[0], box=(1 / 6, 0, 2 / 3, 1))]
    write_test_report(rows, metrics_of(rows), tmp_path / "t.html", title="t", facts={}, attention=attention)
    page = Page(tmp_path / "t.html")
    heat = [attrs for tag, attrs in page.tags if tag == "image" and "png" in attrs["href"]]
    assert len(heat) == 2
    for attrs in heat:  # the thumbnail is 320 x 213
        place = [float(attrs[key]) for key in ("x", "y", "width", "height")]
        assert place == pytest.approx([320 / 6, 0, 640 / 3, 213], abs=0.01)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(heat[0]["href"].split(",")[1]))))
    assert pixels.shape == (2, 2, 4)
    assert pixels[..., 3].argmax() == 1 and "The dashed frame is what the network sees" in page.text


def test_even_attention_is_pale():
    strong, even = (np.array([[high, 1 - high], [0.0, 0.0]]) / 1.0 for high in (0.95, 0.5))
    opacity = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(cards._view(View("", grid))["uri"].split(",")[1]))))
        for grid in (strong, even)
    ]
    assert opacity[0][..., 3].max() > 1.3 * opacity[1][..., 3].max()


def test_report_without_emotions(tmp_path):
    paths = [picture(tmp_path / f"{i}.png") for i in range(30)]
    none = {"emotion": None, "emotion_distribution": None, "histogram": None, "reference_emotions": []}
    rows = [row(path) | none for path in paths]
    metrics = {"emotion": None, "captions": {"BLEU-4": 0.31}, "tokenizer": "PTB", "notes": [], "images": 30}
    write_test_report(rows, metrics, tmp_path / "t.html", title="COCO", facts=FACTS)
    page = Page(tmp_path / "t.html")
    assert page.classes("bars") == page.classes("confusion") == page.classes("verdict") == 0
    assert "0.310" in page.text and "accuracy" not in page.text and "annotators" not in page.text
    assert page.classes("card") == report.EXAMPLES["random"] and "Captions" in page.text


def test_report_where_no_image_has_a_label(tmp_path):
    rows = [row(picture(tmp_path / "x.png"), histogram=None)]
    page = pages(tmp_path, rows)[1]
    assert "–" in page.text and page.classes("confusion") == 0 and "Calibration" not in page.text
    assert section(page, "Random examples").count('class="card"') == 1


def test_random_examples_depend_on_the_seed_not_on_the_order(tmp_path):
    rows = [row("x.png", id=f"id{i}") for i in range(40)]
    first = [r["id"] for r in sample_rows(rows, 9, seed=1)]
    assert len(first) == 9 and first == sorted(first, key=lambda name: int(name[2:])), "in the order of the rows"
    assert first == [r["id"] for r in sample_rows(rows, 9, seed=1)] != [r["id"] for r in sample_rows(rows, 9, seed=2)]
    assert set(first) == {r["id"] for r in sample_rows(rows[::-1], 9, seed=1)}
    assert {r["id"] for r in sample_rows(rows, 4, seed=1)} < set(first)
    assert sample_rows(rows[:3], 9, seed=1) == rows[:3]


def test_names_are_relative_to_the_common_folder(tmp_path):
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


def test_small_images_are_shown_with_sharp_pixels(tmp_path):
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


def test_unwritable_path_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"p\.html cannot be written"):
        write_predictions_page([], tmp_path / "file" / "p.html", title="t", facts={})


def test_undecodable_file_names_are_escaped(tmp_path):
    write_predictions_page([], tmp_path / "p.html", title="t", facts={}, skipped=[("bad\udcff.png", "broken")])
    assert "bad\\udcff.png" in Page(tmp_path / "p.html").text
