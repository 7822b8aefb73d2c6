"""Scores against people's ratings: by hand with numpy and scipy, baselines, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr

from common.errors import UserError
from data.vad.lexicon import Lexicon
from tests.helpers.tiny import LEXICON
from trainer.metrics.ratings import LABEL, MEAN, PREDICTION, TRAINING_MEAN, WORDS, rating_scores
from trainer.score.__main__ import main
from trainer.score.measure import measure
from trainer.score.predictions import read_predictions
from trainer.score.scores import Settings
from trainer.score.tables import metrics_text

RNG = np.random.default_rng(0)
RATED = RNG.uniform(1, 7, (30, 2))
GUESSES = np.clip((RATED - 4) / 3 + RNG.normal(0, 0.3, RATED.shape), -1, 1)
TEXTS = ("the serene sky", "a gloomy storm", "it is there")


def rows(*, vad: bool = True, texts: bool = True) -> list[dict]:
    return [
        {
            "id": f"picture {i:02d}",
            "emotion": ("awe", "fear", "something else")[i % 3] if texts else None,
            "emotion_distribution": None,
            "explanation": TEXTS[i % 3] if texts else None,
            "references": [],
            "histogram": None,
            "ratings": [*RATED[i], None, 1.0, 7.0],
            **({"vad": [*GUESSES[i]]} if vad else {}),
        }
        for i in range(len(RATED))
    ]


def test_figures_equal_those_of_numpy_and_scipy():
    section, each, _ = rating_scores(rows(), None, {"valence": 0.1, "arousal": -0.2})
    assert (section["images"], section["scale"], section["notes"]) == (30, [1, 7], [])
    rated = (RATED - 4) / 3
    for i, name in enumerate(("valence", "arousal")):
        found, difference = section["sources"][PREDICTION][name], GUESSES[:, i] - rated[:, i]
        assert found == pytest.approx(
            {
                "correlation": pearsonr(GUESSES[:, i], rated[:, i])[0],
                "error": np.abs(difference).mean(),
                "error_on_scale": 3 * np.abs(difference).mean(),
                "rmse": np.sqrt((difference**2).mean()),
                "count": 30,
            }
        )
        baseline, mean = section["sources"][TRAINING_MEAN][name], (0.1, -0.2)[i]
        assert baseline["error"] == pytest.approx(np.abs(rated[:, i] - mean).mean())
        assert baseline["rmse"] == pytest.approx(np.sqrt(((rated[:, i] - mean) ** 2).mean()))
        assert "correlation" not in baseline  # of a constant
        assert each["picture 03"][f"error_{name}"] == pytest.approx(abs(difference[3]))
    assert each["picture 03"]["rated_dominance"] is None and "dominance" not in section["sources"][PREDICTION]


def test_words_and_emotion_are_looked_up_and_missing_ones_do_not_count():
    section, *_ = rating_scores(rows(), Lexicon(dict(LEXICON)))
    assert [*section["sources"]] == [PREDICTION, WORDS, LABEL, MEAN]
    assert section["sources"][WORDS]["valence"]["count"] == section["sources"][LABEL]["arousal"]["count"] == 20
    known = [i for i in range(30) if i % 3 < 2]
    words = np.array([(0.9, (-0.8 - 0.6) / 2)[i % 3] for i in known])
    rated = (RATED[known, 0] - 4) / 3
    assert section["sources"][WORDS]["valence"]["correlation"] == pytest.approx(pearsonr(words, rated)[0])
    label = np.array([(0.7, 0.7)[i % 3] for i in known])
    assert section["sources"][LABEL]["arousal"]["error"] == pytest.approx(
        np.abs(label - (RATED[known, 1] - 4) / 3).mean()
    )
    assert section["sources"][LABEL]["arousal"]["correlation"] is None  # both words are equally exciting
    mean = (RATED[:, 0] - 4) / 3
    assert section["sources"][MEAN]["valence"]["rmse"] == pytest.approx(mean.std())


def test_measured_scores_have_intervals_and_tables():
    found = measure(rows(), Settings(rating_mean={"valence": 0.0, "arousal": 0.0}))
    low, high = found.metrics["intervals"]["ratings.prediction.valence.correlation"]
    assert low < found.metrics["ratings"]["sources"][PREDICTION]["valence"]["correlation"] < high
    assert found.metrics["notes"] == [] and {*found.images["picture 00"]} >= {"rated_valence", "error_arousal"}
    text = " ".join(metrics_text(found.metrics).split())
    assert "error, scale 1 to 7, mean of the training" in text and "dominance" not in text


def test_a_captioner_without_the_head_is_told_so_and_its_words_count():
    found = measure(rows(vad=False), Settings(lexicon=Lexicon(dict(LEXICON)), novelty=False))
    assert [*found.metrics["ratings"]["sources"]] == [WORDS, LABEL, MEAN]
    assert any("model.vad.sentence=true" in note for note in found.metrics["notes"])
    assert found.images["picture 02"]["error_valence"] is None  # no known word
    assert "Images of each source: its words in the lexicon 20" in " ".join(metrics_text(found.metrics).split())


def test_scales_may_differ_between_images():
    mixed = rows(texts=False)
    mixed[0]["ratings"] = [5.0, 5.0, 9.0, 1.0, 9.0]
    section, each, _ = rating_scores(mixed, None)
    assert section["scale"] is None and each["picture 00"]["rated_valence"] == 0
    assert section["sources"][MEAN]["dominance"]["count"] == 1


def write(path: Path, found: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_two_runs_are_compared_on_the_same_ratings(tmp_path, capsys):
    head = [{**row, "vad": [*(np.array(row["vad"]) / 2)]} for row in rows(texts=False)]
    paths = [write(tmp_path / "a.jsonl", rows()), write(tmp_path / "b.jsonl", head)]
    assert main(["compare", *map(str, paths)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "correlation, the network, valence" in shown and "error, scale 1 to 7, the network, arousal" in shown
    head[3]["ratings"] = [1.0, 1.0, None, 1.0, 7.0]
    write(paths[1], head)
    assert main(["compare", *map(str, paths)]) == 2
    assert "'picture 03' has other references" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vad", [0.1]),
        ("vad", "pleasant"),
        ("ratings", [1, 2, 3]),
        ("ratings", [1, 2, 3, 7, 1]),
        ("ratings", [1, 2, 3, None, 9]),
    ],
)
def test_broken_rows_are_named(tmp_path, key, value):
    found = rows()
    found[1][key] = value
    with pytest.raises(UserError, match=f"line 2: '{key}' must be"):
        read_predictions(write(tmp_path / "p.jsonl", found))
