"""The pointing game: boxes, phrases and baselines, and its figures in the scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import MAX_PIXELS
from data.readers.facts import Facts
from tests.helpers.tiny import make_aligner, make_captioner
from trainer.report import pointing
from trainer.report.pointing import _game, _named, add_pointing
from trainer.score.looking import looking
from trainer.score.looking_tables import looking_tables
from trainer.score.scores import Scores, Settings
from trainer.setup.parts import Parts

PHRASES = {"subject": {"boat": ("boat", "tiny boat"), "storm": ("storm",)}}


def facts_of(ids: list[str], **boxes) -> Facts:
    images = {id: {"subject": ("boat",)} for id in ids}
    return Facts(Path("facts.json"), PHRASES, images, {id: ((0.0, 0.0, 0.5, 1.0),) for id in ids} | boxes)


@pytest.fixture
def parts(template) -> Parts:
    return Parts(make_captioner(template, gates=0.7), template, make_aligner(template), with_emotions=True)


def rows_of(folder: Path, texts: list[str]) -> list[dict]:
    path = folder / "x.png"
    Image.new("RGB", (60, 40), "teal").save(path)
    return [{"id": str(i), "image": str(path), "emotion": "fear", "explanation": text} for i, text in enumerate(texts)]


def test_only_images_whose_text_names_the_true_subject_are_played(parts, tmp_path):
    rows = rows_of(tmp_path, ["the tiny boat is lost", "the storm makes me feel small", "", "a boat", "a Boat"])
    add_pointing(rows, parts, facts_of(["0", "1", "2", "4"]), seed=0, max_pixels=MAX_PIXELS)
    assert [row["id"] for row in rows if "pointing" in row] == ["0", "4"]
    assert rows[0]["pointing"].keys() == {"hit", "mean_map", "center", "area"}
    assert rows[0]["pointing"]["area"] == 0.5 and rows[0]["pointing"]["center"] is True


def test_the_sample_is_seeded_and_limited(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(pointing, "IMAGES", 3)
    chosen = []
    for seed in (0, 0, 1):
        rows = rows_of(tmp_path, ["a boat"] * 12)
        add_pointing(rows[::-1], parts, facts_of([row["id"] for row in rows]), seed=seed, max_pixels=MAX_PIXELS)
        chosen.append([row["id"] for row in rows if "pointing" in row])
    assert chosen[0] == chosen[1] != chosen[2] and len(chosen[0]) == 3


def test_nothing_is_played_without_attention(parts, template, tmp_path):
    parts.captioner = make_captioner(template, gates=0.0)
    rows = rows_of(tmp_path, ["a boat"])
    add_pointing(rows, parts, facts_of(["0"]), seed=0, max_pixels=MAX_PIXELS)
    assert "pointing" not in rows[0]


def test_the_longest_phrase_counts():
    words = [("the", [3]), ("Tiny", [4, 5]), ("boat", [6])]
    assert _named(words, ["boat", "tiny boat"]) == [4, 5, 6]
    assert _named(words, ["boat"]) == [6] and _named(words, ["boats"]) == []


def test_hits_are_strongest_patches_inside_a_box():
    word, whole = np.zeros((2, 4)), np.zeros((2, 4))
    word[1, 3], whole[0, 0] = 1, 1
    found = _game(word, whole, seen=(0, 0, 1, 1), boxes=[(0.8, 0.6, 1, 1), (0.55, 0.0, 0.7, 0.3)])
    assert found == {"hit": True, "mean_map": False, "center": False, "area": 0.25}


def test_scores_have_the_hit_rate_and_its_baselines():
    games = [{"hit": True, "mean_map": False, "center": True, "area": 0.2}] * 3
    games += [{"hit": False, "mean_map": False, "center": True, "area": 0.4}]
    rows = [{"id": str(i), "pointing": game} for i, game in enumerate(games)] + [{"id": "none"}]
    ids = [row["id"] for row in rows]
    found = Scores(ids, metrics={"notes": []}, images={id: {} for id in ids})
    looking(rows, Settings(), found)
    assert found.metrics["looking"]["pointing"] == {
        "count": 4, "hits": 3, "accuracy": 0.75, "whole_text": 0.0, "center": 1.0, "random": pytest.approx(0.25),
    }  # fmt: skip
    (table,) = looking_tables({"looking": found.metrics["looking"]})
    assert [row.name for row in table.rows] == ["the subject's words", "the whole text", "center", "random"]
    assert "4 images" in table.about
