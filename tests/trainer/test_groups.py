"""Emotions and scores by group: recounted by hand, in metrics, table, CSV and pages."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from PIL import Image

from common.errors import UserError
from common.html.tables import screen_text
from data.emotions import EMOTIONS
from data.readers.groups import group_of_path, read_groups
from tests.helpers.html_page import Page
from tests.helpers.predictions import PLAIN, many
from trainer.metrics.groups import by_group, group_table, write_groups
from trainer.report.page import write_predictions_page, write_test_report
from trainer.score.__main__ import main
from trainer.score.measure import measure


def grouped(count: int = 30) -> list[dict]:
    rows = many(count)
    for i, row in enumerate(rows):
        row |= {"image": f"/art/{i}.png", "group": ("Cubism", "Realism")[i % 3 == 0]}
    del rows[-1]["group"]
    return rows


def test_groups_equal_a_plain_recount():
    rows = grouped()
    scores = measure(rows, PLAIN)
    found = scores.metrics["groups"]
    assert [(row["name"], row["images"]) for row in found["rows"]] == [("Cubism", 19), ("Realism", 10), ("(none)", 1)]
    each = {row["id"]: row for row in scores.per_image}
    for group in found["rows"][:2]:
        own = [row for row in rows if row.get("group") == group["name"]]
        shares = [sum(row["emotion_distribution"][i] for row in own) / len(own) for i in range(9)]
        assert group["shares"] == pytest.approx(shares)
        assert group["entropy"] == pytest.approx(-sum(share * math.log2(share) for share in shares))
        people = [sum(row["histogram"][i] for row in own) / len(own) for i in range(9)]
        assert group["people"] == pytest.approx(people)
        assert group["people_entropy"] == pytest.approx(-sum(share * math.log2(share) for share in people if share))
        right = [each[row["id"]]["correct"] for row in own if each[row["id"]]["correct"] is not None]
        assert (group["count"], group["accuracy"]) == (len(right), pytest.approx(sum(right) / len(right)))
        assert group["js"] == pytest.approx(sum(each[row["id"]]["js"] for row in own) / len(own))
        assert group["intervals"]["js"][0] < group["js"] < group["intervals"]["js"][1]
    assert found["rows"][2]["intervals"]["js"] is None, "a single image has no interval"
    json.dumps(scores.metrics, allow_nan=False)


def test_rows_without_groups_or_emotions():
    assert measure(many(3), PLAIN).metrics["groups"] is None
    silent = {"emotion": None, "emotion_distribution": None, "image": "a.png"}
    parsed = {"emotion": "awe", "emotion_distribution": None, "image": "b.png"}
    [found] = by_group([silent, parsed], lambda row: "all", by="folder")["rows"]
    assert found["images"] == 2 and found["shares"] == [float(name == "awe") for name in EMOTIONS]
    assert found["entropy"] == 0 and found["examples"] == ["b.png"]
    [none] = by_group([silent], lambda row: None, by="folder")["rows"]
    assert none["shares"] is none["entropy"] is None
    assert "–" in screen_text([group_table({"by": "folder", "labels": [*EMOTIONS], "rows": [none]})])


def test_csv_has_every_figure_and_goes_with_the_groups(tmp_path: Path):
    rows = grouped()
    each = {row["id"]: row for row in measure(rows, PLAIN).per_image}
    found = by_group(rows, lambda row: row.get("group"), by="style", each=each)
    write_groups(tmp_path, found)
    with (tmp_path / "groups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["style"] for row in rows] == ["Cubism", "Realism", "(none)"]
    assert [float(rows[0][name]) for name in EMOTIONS] == found["rows"][0]["shares"]
    assert float(rows[1]["annotators: awe"]) == found["rows"][1]["people"][1]
    assert float(rows[0]["entropy"]) == found["rows"][0]["entropy"]
    assert float(rows[0]["annotators' entropy"]) == found["rows"][0]["people_entropy"]
    assert int(rows[0]["images with a label"]) == found["rows"][0]["count"]
    assert [float(rows[0][f"js {edge}"]) for edge in ("low", "high")] == found["rows"][0]["intervals"]["js"]
    write_groups(tmp_path, None)
    assert not (tmp_path / "groups.csv").exists()


def test_intervals_of_groups_depend_on_the_seed():
    rows = grouped()
    each = {row["id"]: row for row in measure(rows, PLAIN).per_image}
    one, other = (
        by_group(rows, lambda row: row.get("group"), by="style", each=each, seed=seed)["rows"][0] for seed in (1, 2)
    )
    assert one["js"] == other["js"] and one["intervals"]["js"] != other["intervals"]["js"]


def test_score_command_keeps_the_groups_of_the_predictions(tmp_path: Path, capsys):
    file = tmp_path / "predictions.jsonl"
    file.write_text("\n".join(map(json.dumps, grouped())))
    arguments = ["--predictions", str(file), "--metrics", "bleu", "--tokenizer", "whitespace"]
    assert main([*arguments, "--out", str(tmp_path / "scores")]) == 0
    shown = capsys.readouterr().out
    assert "By group" in shown and "Cubism" in shown and (tmp_path / "scores/groups.csv").exists()


def test_pages_show_bars_and_examples(tmp_path: Path):
    rows = grouped(12)
    for i, row in enumerate(rows):
        Image.new("RGB", (8, 8), (20 * i, 90, 90)).save(tmp_path / f"{i}.png")
        row["image"] = str(tmp_path / f"{i}.png")
    metrics = measure(rows, PLAIN).metrics
    write_test_report(rows, metrics, tmp_path / "test.html", title="t", facts={})
    report = Page(tmp_path / "test.html")
    assert "By group" in report.text and report.classes("stack") == 2 * 3, "the model's and the annotators'"
    groups = by_group(rows, lambda row: row.get("group"), by="folder")
    write_predictions_page(rows, tmp_path / "predict.html", title="t", facts={}, groups=groups)
    page = Page(tmp_path / "predict.html")
    assert "By folder" in page.text and sum(tag == "img" for tag, _ in page.tags) == 12 + 3 + 3 + 1
    write_predictions_page(rows, tmp_path / "none.html", title="t", facts={})
    assert "By folder" not in Page(tmp_path / "none.html").text


@pytest.mark.parametrize(
    ("name", "artist", "period"),
    [
        ("claude-monet_water-lilies-1916.jpg", "claude-monet", "1900–1949"),
        ("el-greco_the-adoration-of-the-name-of-jesus-1578.jpg", "el-greco", "1550–1599"),
        ("rembrandt_self-portrait-1660-1.jpg", "rembrandt", "1650–1699"),
        ("gustave-dore_don-quixote.jpg", "gustave-dore", None),
        ("IMG1890.jpg", None, None),
    ],
)
def test_wikiart_names_give_artist_and_period(name: str, artist: str | None, period: str | None):
    path = Path("/art/Realism") / name
    assert [group_of_path(path, by) for by in ("folder", "artist", "period")] == ["Realism", artist, period]


def dataset(name: str, path: Path | None) -> dict:
    return {"name": name, "test_ds": {"json_path": path and str(path)}}


def test_columns_of_annotations(tmp_path: Path):
    artemis, table = tmp_path / "a.json", tmp_path / "t.csv"
    artemis.write_text(json.dumps({"1": {"image_name": "x.jpg", "genre": "portrait"}, "2": {"image_name": "y.jpg"}}))
    assert read_groups(dataset("artemis", artemis), "genre") == {"1": "portrait"}
    table.write_text("\ufeffimage;text;Genre\na.jpg;one;portrait\na.jpg;two;\nb.jpg;three;\n", encoding="utf-8")
    assert read_groups(dataset("table", table), "Genre") == {"a.jpg": "portrait"}
    for path, name in ((artemis, "artemis"), (table, "table"), (None, "emotion_folder")):
        assert read_groups(dataset(name, path), "folder") is None
        with pytest.raises(UserError, match="no such column; choose one of folder, artist, period"):
            read_groups(dataset(name, path), "style")
