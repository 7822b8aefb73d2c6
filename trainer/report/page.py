"""HTML pages of results: one self-contained file each."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from common.html import write_page
from data.emotion_colors import groups_of, page_values
from data.emotions import labels_of
from trainer.metrics.emotions import RULE_WORDS
from trainer.metrics.expert_sections import expert_tables
from trainer.metrics.groups import group_table
from trainer.report.attention import WORD_RULE, AttentionExample
from trainer.report.cards import attention_card, display_names, example_card, is_cropped, predicted_card, rated_vad
from trainer.report.groups import groups_section
from trainer.report.plots import DIMENSIONS, MOST_POINTS, reliability_diagrams, vad_scatter
from trainer.score.looking_tables import blind_sentences, looking_tables
from trainer.score.tables import interval_legend, score_tables

TEMPLATES = Path(__file__).parent / "templates"
GALLERY_LIMIT = 500  # cards: about 15 MB of page
EXAMPLES = {"best": 6, "worst": 6, "mistaken": 6, "random": 9}
BEST_BY = ("CIDEr", "METEOR", "ROUGE-L", "BLEU-4")  # the first available one ranks the explanations
ATTENTION_EXAMPLES = 6  # of the random ones

Row = Mapping[str, Any]


def write_predictions_page(
    rows: Collection[Row],
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    skipped: Sequence[tuple[str, str]] = (),
    groups: Mapping[str, Any] | None = None,
) -> None:
    """Write a gallery of predictions: image, emotion, explanation and probabilities of each.

    Args:
        rows: as in predictions.jsonl: "image" (absolute path), "emotion" (name or None), "emotion_distribution" (a
            probability per label, or None), "explanation" (or None), optionally "labels", "asked_emotion" (True: the
            user chose it), "vad", "reasons", "emotion_text", "emotion_temperature" (trainer.prediction.rows), and with
            an expert "sources" (distributions by name) and "gate" (its name and the weights of its sources).
        facts: settings, checkpoint and versions, shown at the end.
        skipped: (path, reason) of images that could not be used.
        groups: from trainer.metrics.groups.by_group, shown first.

    Raises:
        UserError: the page cannot be written.
    """
    shown = list(itertools.islice(rows, GALLERY_LIMIT))
    names = display_names(shown)
    cards = [predicted_card(row, name) for row, name in zip(shown, names, strict=True)]
    temperatures = {row.get("emotion_temperature") for row in rows}
    write_page(
        path,
        TEMPLATES / "predictions.html.j2",
        title=title,
        facts=facts,
        skipped=skipped,
        groups=groups_section(groups),
        cards=cards,
        count=len(rows),
        temperature=temperatures.pop() if len(temperatures) == 1 else None,
        rated=any(row.get("vad") for row in shown) and not any(row["emotion"] or row["explanation"] for row in shown),
        **page_values(labels_of(next(iter(rows), {}))),
    )


def write_test_report(
    rows: Sequence[Row],
    metrics: Mapping[str, Any],
    path: Path,
    *,
    title: str,
    facts: Mapping[str, str],
    per_image: Sequence[Row] = (),
    attention: Sequence[AttentionExample] = (),
    skipped: Sequence[tuple[str, str]] = (),
    seed: int = 0,
) -> None:
    """Write the report of a test: scores, confusion, calibration, VAD, examples and attention, as far as there are any.

    Args:
        rows: as in `write_predictions_page`, and "id", "references" (texts), "reference_emotions" (their names, or
            empty), "histogram" (the annotators' share of each label, or None).
        metrics: as in metrics.json.
        per_image: as in per_image.jsonl; selects the best and worst examples and gives the VAD of each image.
        attention: of a few rows, such as those of `sample_rows`.
        seed: of the random examples.

    Raises:
        UserError: the page cannot be written.
    """
    emotion = metrics.get("emotion") or None
    rule = emotion["rule"] if emotion else None
    expert_notes = (metrics.get("expert") or {}).get("notes", ())
    chosen = _choose(rows, {row["id"]: row for row in per_image}, seed)
    shown = [row for section in chosen for row in section["rows"]] + [example.row for example in attention]
    names = {row["image"]: name for row, name in zip(shown, display_names(shown), strict=True)}
    for section in chosen:
        section["cards"] = [example_card(row, names[row["image"]], rule) for row in section.pop("rows")]
    rated = _rated_scatter(rows, seed)
    scatter = [plot for name in DIMENSIONS if (plot := vad_scatter(per_image, name, seed=seed)) is not None]
    write_page(
        path,
        TEMPLATES / "test_report.html.j2",
        title=title,
        sections=chosen,
        count=len(rows),
        tables=score_tables(metrics),
        intervals=interval_legend(metrics),
        blind=blind_sentences(metrics),
        looking=looking_tables(metrics),
        groups=groups_section(metrics.get("groups")),
        group_table=group_table(metrics["groups"]) if metrics.get("groups") else None,
        expert=expert_tables(metrics),
        expert_notes=expert_notes,
        notes=[note for note in dict.fromkeys(metrics.get("notes") or ()) if note not in expert_notes],
        decoding=metrics.get("decoding") or {},
        rule=RULE_WORDS.get(rule, rule),
        **page_values(labels_of(next(iter(rows), {}))),
        gaps=[*itertools.accumulate(len(names) for _, names in groups_of(labels_of(emotion or {})))][:-1],
        confusion=_heat_map(emotion) if emotion and emotion["count"] else [],
        by_emotion=_by_emotion(emotion) if emotion and emotion["count"] else [],
        reliability=reliability_diagrams(emotion or {}),
        temperature=(emotion or {}).get("temperature"),
        scatter=scatter,
        rated=rated,
        most_points=MOST_POINTS,
        attention=[attention_card(one, names[one.row["image"]], i) for i, one in enumerate(attention)],
        cropped=any(map(is_cropped, attention)),
        vle_map=any(view.box for example in attention for view in example.views),
        pointing="pointing" in (metrics.get("looking") or {}),
        word_rule=WORD_RULE,
        facts={**facts, **_instruments(metrics)},
        skipped=skipped,
    )


def _rated_scatter(rows: Sequence[Row], seed: int) -> list[Markup]:
    """Return a scatter plot of people's ratings and the predicted ones for each dimension that has both."""
    pairs = [(rated_vad(row) or (), row.get("vad") or ()) for row in rows]
    found = [
        {f"people_{name}": value for name, value in zip(DIMENSIONS, people, strict=False)}
        | dict(zip(DIMENSIONS, own, strict=False))
        for people, own in pairs
    ]
    plots = (vad_scatter(found, name, seed=seed, words=("people's rating", "prediction")) for name in DIMENSIONS)
    return [plot for plot in plots if plot is not None] if any(people for people, _ in pairs) else []


def sample_rows(rows: Sequence[Row], count: int, *, seed: int) -> list[Row]:
    """Return `count` random rows in their order; a smaller count with the same seed gives a subset."""
    order = sorted(range(len(rows)), key=lambda i: str(rows[i].get("id")))
    random.Random(seed).shuffle(order)
    return [rows[i] for i in sorted(order[:count])]


def _choose(rows: Sequence[Row], measured: Mapping[str, Row], seed: int) -> list[dict[str, Any]]:
    """Return the sections of examples: key, rows, the score that ranks them and its values; empty ones are left out."""
    values = {row["id"]: measured.get(row.get("id")) or {} for row in rows if "id" in row}
    name = next((name for name in BEST_BY if any(found.get(name) is not None for found in values.values())), None)

    def ranked(key: str, figure: str, *, highest: bool, part: int) -> dict[str, Any]:
        """Return the top images by `figure`, at most 1/`part` of all."""
        found = [row for row in rows if values.get(row.get("id"), {}).get(figure) is not None]
        found.sort(key=lambda row: (values[row["id"]][figure] * (-1 if highest else 1), str(row["id"])))
        return {"key": key, "rows": found[: min(EXAMPLES[key], len(found) // part)], "by": figure, "total": len(found)}

    ends = (("best", True), ("worst", False)) if name else ()
    sections = [ranked(key, name, highest=highest, part=2) for key, highest in ends]  # no image in both
    sections.append(ranked("mistaken", "nll_label", highest=True, part=1))
    for section in sections:
        section["worth"] = [values[row["id"]][section["by"]] for row in section["rows"]]
    random_rows = sample_rows(rows, EXAMPLES["random"], seed=seed)
    sections.append({"key": "random", "rows": random_rows, "by": None, "total": len(rows), "worth": []})
    return [section for section in sections if section["rows"]]


def _instruments(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return tokenizer, CLIP and other instruments of the scores, for the facts."""
    found = {"tokenizer of the scores": metrics.get("tokenizer"), "CLIP of the scores": metrics.get("clip")}
    if metrics.get("intervals") and metrics.get("bootstrap"):
        found["intervals"] = "bootstrap, {replicates} samples, seed {seed}".format(**metrics["bootstrap"])
    if novelty := (metrics.get("explanations") or {}).get("novelty"):
        found["novelty"] = "{captions} explanations and {training_texts} training texts, seed {seed}".format(**novelty)
    if classifier := (metrics.get("alignment") or {}).get("classifier"):
        named = (classifier.get(key) for key in ("network", "folder", "source"))
        found["text classifier"] = ", ".join(str(value) for value in named if value)
    return {key: str(value) for key, value in found.items() if value}


def _heat_map(emotion: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the confusion matrix, by group: counts and their shares of the row."""
    labels = labels_of(emotion)
    order = [labels.index(name) for _, names in groups_of(labels) for name in names]
    rows = []
    for i in order:
        counts, total = emotion["confusion"][i], emotion["support"][i]
        cells = [{"count": counts[j], "share": counts[j] / total if total else 0.0, "guess": labels[j]} for j in order]
        rows.append({"name": labels[i], "total": total, "cells": cells})
    return rows


def _by_emotion(emotion: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return recall and precision of each emotion, by group."""
    labels = labels_of(emotion)
    keys = ("recall", "precision", "support")
    found = {name: {"name": name} | {key: emotion[key][i] for key in keys} for i, name in enumerate(labels)}
    return [{"sign": sign, "bars": [found[name] for name in names]} for sign, names in groups_of(labels)]
