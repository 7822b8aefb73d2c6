"""Predicted valence, arousal and dominance compared with people's ratings, in −1..1 and in the unit of their scale.

Sources of a prediction: the network's own, the mean of its words and the value of its emotion's name in the lexicon,
and a constant, the mean rating of the training pictures (or else of the tested ones, which no network knows).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data.schema import Ratings
from data.vad.lexicon import Lexicon
from trainer.metrics.bootstrap import Statistic, correlation, floats, mean, of_sums, score
from trainer.metrics.word_vad import NAMES, text_vad

PREDICTION, WORDS, LABEL = "prediction", "words", "label"
TRAINING_MEAN, MEAN = "training_mean", "mean"
Row = Mapping[str, Any]


def rating_scores(
    rows: Sequence[Row], lexicon: Lexicon | None, training_mean: Mapping[str, float] | None = None
) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, Statistic]]:
    """Return the section "ratings" of metrics.json, the values of every image, and the statistics.

    Args:
        rows: as in predictions.jsonl, with "ratings"; "vad", "explanation" and "emotion" as far as there are any.
        lexicon: for the words and the emotion; None leaves both out.
        training_mean: of the network's training pictures, by dimension, in −1..1.

    Returns:
        images; scale, None if it differs between images; sources: by source and dimension, correlation (Pearson's),
        error (mean absolute), error_on_scale (in the unit of the scale), rmse, and the count of images; notes.
        By image id: rated_DIMENSION, and error_DIMENSION of the prediction (or the words, without one).
        By SOURCE.DIMENSION.FIGURE: the statistics.
    """
    ratings = [Ratings(*floats(row["ratings"])) for row in rows]
    rated = floats([one.vad for one in ratings]).reshape(-1, len(NAMES))
    units = floats([(one.high - one.low) / 2 for one in ratings])
    predicted = {**_predictions(rows, lexicon), **_constant(rated, training_mean)}
    sources: dict[str, dict[str, Any]] = {}
    statistics: dict[str, Statistic] = {}
    for source, values in predicted.items():
        for i, name in enumerate(NAMES):
            count = int((~np.isnan(values[:, i] - rated[:, i])).sum())
            if count:
                figures = _figures(values[:, i], rated[:, i], units, constant=source in (TRAINING_MEAN, MEAN))
                statistics |= {f"{source}.{name}.{figure}": one for figure, one in figures.items()}
                found = {figure: score(one, len(rows)) for figure, one in figures.items()}
                sources.setdefault(source, {})[name] = {**found, "count": count}
    scales = {tuple(one[3:]) for one in ratings}
    section = {"images": len(rows), "scale": list(*scales) if len(scales) == 1 else None, "sources": sources}
    section["notes"] = _notes(rows, sources)
    first = next((values for source, values in predicted.items() if source in sources), np.full_like(rated, np.nan))
    each = {
        row["id"]: _named("rated", own) | _named("error", np.abs(guess - own))
        for row, own, guess in zip(rows, rated, first, strict=True)
    }
    return section, each, statistics


def _predictions(rows: Sequence[Row], lexicon: Lexicon | None) -> dict[str, np.ndarray]:
    """Return the predicted values (images, 3) by source, NaN where there are none."""
    unknown = (np.nan,) * len(NAMES)
    found = {PREDICTION: [(*(row.get("vad") or ()), *unknown)[: len(NAMES)] for row in rows]}
    if lexicon is not None:
        found[WORDS] = [text_vad(row.get("explanation") or "", lexicon)[0] for row in rows]
        found[LABEL] = [lexicon.lookup(row.get("emotion") or "") or unknown for row in rows]
    return {source: floats(values).reshape(-1, len(NAMES)) for source, values in found.items()}


def _constant(rated: np.ndarray, training_mean: Mapping[str, float] | None) -> dict[str, np.ndarray]:
    if training_mean is not None:
        values = floats([training_mean.get(name) for name in NAMES])
        return {TRAINING_MEAN: np.tile(values, (len(rated), 1))}
    known = ~np.isnan(rated)
    with np.errstate(invalid="ignore"):  # 0 / 0 of a dimension that nobody rated
        values = np.where(known, rated, 0).sum(axis=0) / known.sum(axis=0)
    return {MEAN: np.tile(values, (len(rated), 1))}


def _figures(values: np.ndarray, rated: np.ndarray, units: np.ndarray, *, constant: bool) -> dict[str, Statistic]:
    error = np.abs(values - rated)
    found = {} if constant else {"correlation": correlation(values, rated)}
    return found | {"error": mean(error), "error_on_scale": mean(error * units), "rmse": _root_mean_square(error)}


def _root_mean_square(error: np.ndarray) -> Statistic:
    counts = ~np.isnan(error)
    columns = np.stack([np.where(counts, error, 0.0) ** 2, counts], axis=1)
    return of_sums(columns, lambda sums: np.sqrt(sums[:, 0] / sums[:, 1]))


def _named(what: str, values: np.ndarray) -> dict[str, float | None]:
    return {f"{what}_{n}": None if np.isnan(v) else float(v) for n, v in zip(NAMES, values, strict=True)}


def _notes(rows: Sequence[Row], sources: Mapping[str, Any]) -> list[str]:
    if PREDICTION in sources or all(row.get("explanation") is None for row in rows):
        return []
    way = "a captioner trained with model.vad.sentence=true predicts them"
    return [f"ratings: this network predicts no valence and arousal of its explanations; {way}"]
