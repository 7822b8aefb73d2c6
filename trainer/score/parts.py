"""The sections of metrics.json. Each function takes rows as in predictions.jsonl, sorted by id, and adds to `Scores`.

torch is slow to import, so classifiers and CLIP are imported on use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.emotions import EMOTIONS, labels_of
from data.languages import in_latin_script, is_english
from trainer.metrics import bootstrap, emotions
from trainer.metrics import explanations as language
from trainer.metrics.bootstrap import Statistic
from trainer.metrics.caption_counts import caption_statistics
from trainer.metrics.captions import caption_scores, system_scores
from trainer.metrics.expert_table import expert_scores
from trainer.metrics.groups import by_group
from trainer.score.scores import Row, Scores, Settings


def texts_of(rows: Sequence[Row]) -> tuple[dict[str, str], dict[str, Sequence[str]]]:
    return {row["id"]: row["explanation"] or "" for row in rows}, {row["id"]: row["references"] for row in rows}


def has_texts(rows: Sequence[Row]) -> bool:
    """Return whether any reference has a text; explanations cannot be scored otherwise."""
    return any(text.strip() for row in rows for text in row["references"])


def emotion(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    histograms = [row.get("histogram") for row in rows]
    predicted, felt = any(row.get("emotion") for row in rows), any(histograms)
    if not (predicted and felt):
        if (predicted or felt) and not rows[0].get("ratings"):
            found.note(f"emotion left out: the {'references' if predicted else 'predictions'} name no emotions")
        return
    labels = labels_of(rows[0])
    guesses = [emotions.NO_PREDICTION if row["emotion"] is None else labels.index(row["emotion"]) for row in rows]
    distributions = [row.get("emotion_distribution") for row in rows]
    temperatures = [row.get("emotion_temperature", 1.0) for row in rows]
    images = (guesses, distributions, histograms, temperatures)
    found.metrics["emotion"] = emotions.emotion_report(*images, labels=labels)
    each = emotions.emotion_rows(*images, labels=labels)
    by_id = {row["id"]: values for row, values in zip(rows, each, strict=True)}
    figures = emotions.statistics(each, labels=labels)
    # No interval for the majority class: the most common label differs between replicates.
    found.add("emotion", by_id, {key: figures[key] for key in figures if not key.endswith("majority")})


def captions(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    if not has_texts(rows):
        found.metrics["captions_scored"] = None
        if rows[0].get("ratings"):
            return
        found.note("captions and explanations left out: the references explain no emotion, they only name it")
        return
    texts, references = texts_of(rows)
    systems = {name: {id: baseline.get(id, "") for id in texts} for name, baseline in found.baselines.items()}
    scores, *others = system_scores(
        {"": texts, **systems},
        references,
        metrics=settings.metrics,
        tokenizer=settings.tokenizer if settings.tokenizer != "ptb" or _in_english(rows) else "words",
        spice_parser=settings.spice_parser,
    ).values()
    found.baseline_scores = dict(zip(systems, others, strict=True))
    found.metrics["captions"] |= scores.scores
    found.metrics["tokenizer"] = scores.tokenizer
    found.note(*scores.notes)
    found.counts = scores.counts
    found.add("captions", scores.per_image, scores.statistics([row["id"] for row in rows]))


def _in_english(rows: Sequence[Row]) -> bool:
    """Return whether the references are in English, as far as their language is named or another script shows."""
    named = all(is_english(row.get("language", "")) for row in rows)
    return named and in_latin_script(text for row in rows for text in row["references"][:1])


def clip_score(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    if settings.clip_name is None or not has_texts(rows):
        return
    from trainer.metrics.clipscore import clip_scores
    from trainer.prediction.matching import blocks_of
    from trainer.text_emotion.text_classifier import pick_device

    pictures = {row["id"]: Path(row["image"]) for row in rows if row.get("image")}
    blocks, _ = blocks_of(rows, count=len(rows), seed=settings.seed)
    scores = clip_scores(
        *texts_of(rows),
        pictures,
        blocks=blocks,
        pretrained_name=settings.clip_name,
        architecture=settings.clip_architecture,
        section=settings.clip_section,
        device=pick_device(settings.device),
        max_pixels=settings.max_pixels,
    )
    found.note(*scores.notes)
    if scores.scores:
        found.metrics["captions"] |= scores.scores
        found.metrics["clip"] = scores.clip
        found.add("captions", scores.per_image, scores.statistics([row["id"] for row in rows]))


def captions_filtered(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    """Score the images whose predicted emotion is the label; CIDEr's document frequencies are of these images."""
    if not found.metrics["emotion"] or not found.metrics["captions"]:
        return
    rule = found.metrics["emotion"]["rule"]
    right = [row for row in rows if found.images[row["id"]]["correct"]]
    if not right:
        found.note("filtered caption scores left out: no predicted emotion is the annotators'")
        return
    each = {row["id"]: found.images[row["id"]] | found.counts.get(row["id"], {}) for row in right}
    names = list(found.metrics["captions"])
    if "CIDEr" in names:
        again = caption_scores(*texts_of(right), metrics=("cider",), tokenizer=found.tokenizer)
        each = {id: values | again.per_image[id] for id, values in each.items()}
        found.note(*(f"filtered captions: {note}" for note in again.notes))
    statistics = caption_statistics([each.get(row["id"]) for row in rows], names)
    scores = {name: bootstrap.score(statistic, len(rows)) for name, statistic in statistics.items()}
    found.metrics["captions_filtered"] = {"scores": scores, "count": len(right), "rule": rule}
    found.add("captions_filtered", {}, statistics)


def explanations(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    if not has_texts(rows):
        return
    section, each = language.explanation_scores(
        *texts_of(rows),
        emotions={row["id"]: row.get("emotion") for row in rows},
        training_texts=settings.training_texts if settings.novelty else None,
        seed=settings.seed,
    )
    found.metrics["explanations"] = section
    found.add("explanations", each, language.statistics([each[row["id"]] for row in rows]))


def alignment(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    if settings.classifier is None:
        return
    if labels_of(rows[0]) != EMOTIONS:
        found.note("emotional alignment left out: its classifier is for the nine emotions of ArtEmis")
        return
    if all(row["explanation"] is None for row in rows):
        found.note("emotional alignment left out: the predictions explain no emotion, they only name it")
        return
    from trainer.metrics import alignment as aligned

    histograms = {row["id"]: row.get("histogram") for row in rows}
    section, each = aligned.alignment_scores(texts_of(rows)[0], histograms, settings.classifier)
    found.metrics["alignment"] = section
    columns = {"accuracy": "alignment", "cross_entropy": "alignment_cross_entropy"}
    columns |= {f"rules.{rule}.accuracy": f"alignment_{rule}" for rule in section["rules"]}
    statistics = {key: bootstrap.mean([each[row["id"]][name] for row in rows]) for key, name in columns.items()}
    found.add("alignment", each, statistics)


def vad(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    if settings.lexicon is None or not has_texts(rows):
        return
    from trainer.metrics import word_vad

    with_emotions = any(row.get("emotion") for row in rows) and any(row.get("reference_emotions") for row in rows)
    section, each = word_vad.vad_scores(
        *texts_of(rows),
        settings.lexicon,
        emotions={row["id"]: row.get("emotion") for row in rows} if with_emotions else None,
        reference_emotions={row["id"]: row.get("reference_emotions") or () for row in rows} if with_emotions else None,
    )
    found.metrics["vad"] = {**section, "file": settings.lexicon_name}
    found.add("vad", each, word_vad.statistics([each[row["id"]] for row in rows]))


def ratings(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    if all(row.get("ratings") for row in rows):
        from trainer.metrics.ratings import rating_scores

        section, each, statistics = rating_scores(rows, settings.lexicon, settings.rating_mean)
        found.metrics["ratings"] = section
        found.add("ratings", each, statistics)


def expert(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    if not any(row.get("sources") for row in rows):
        return
    section, each, statistics = expert_scores(rows, labels=labels_of(rows[0]), seed=settings.seed)
    found.metrics["expert"] = section
    found.add("expert", each, statistics)
    lacking = sum(not row.get("own") for row in rows)
    if not lacking:
        section["captions"] = _own_captions(rows, settings, found)
    elif lacking < len(rows):
        found.note(f"the language model's own explanations left out: {lacking} images have none")


def _own_captions(rows: Sequence[Row], settings: Settings, found: Scores) -> dict[str, Any]:
    """Score the language model's own explanations, and compare them with those for the fused emotion.

    Args:
        rows: each with "own", the emotion and explanation of the language model alone (None if it has none).
        found: with the scores of the captions and, if there is a classifier, of the alignment.

    Returns:
        images; emotions_differ and explanations_differ, numbers of images; figures: by score, the result of
        bootstrap.paired, `first` the language model's own and `second` the fused; empty if no explanation differs.

    Raises:
        UserError: as `caption_scores`.
    """
    own = {row["id"]: row["own"]["explanation"] for row in rows}
    section: dict[str, Any] = {
        "images": len(rows),
        "emotions_differ": sum(row["own"].get("emotion") != row["emotion"] for row in rows),
        "explanations_differ": sum(own[row["id"]] != row["explanation"] for row in rows),
        "figures": {},
    }
    if section["explanations_differ"]:
        own = {id: text or "" for id, text in own.items()}
        first = _statistics_of_own(rows, own, settings, found)
        second = {key: found.statistics[key] for key in first if key in found.statistics}
        section["figures"] = bootstrap.paired(first, second, len(rows), seed=settings.seed)
    return section


def _statistics_of_own(
    rows: Sequence[Row], own: Mapping[str, str], settings: Settings, found: Scores
) -> dict[str, Statistic]:
    statistics: dict[str, Statistic] = {}
    if found.metrics["captions"]:
        scores = caption_scores(
            own,
            texts_of(rows)[1],
            metrics=settings.metrics,
            tokenizer=found.tokenizer,
            spice_parser=settings.spice_parser,
        )
        found.note(*(f"the language model's own explanations: {note}" for note in scores.notes))
        figures = scores.statistics([row["id"] for row in rows])
        statistics |= {f"captions.{name}": statistic for name, statistic in figures.items()}
    if settings.classifier is not None and found.metrics["alignment"]:
        from trainer.metrics.alignment import alignment_scores

        _, each = alignment_scores(own, {row["id"]: row.get("histogram") for row in rows}, settings.classifier)
        for name, key in (("alignment", "accuracy"), ("alignment_cross_entropy", "cross_entropy")):
            statistics[f"alignment.{key}"] = bootstrap.mean([each[row["id"]][name] for row in rows])
    return statistics


def languages(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    """Score emotions and explanations of each language by itself, if there are several."""
    by_name: dict[str, list[Row]] = {}
    for row in rows:
        by_name.setdefault(row.get("language", ""), []).append(row)
    if len(by_name) < 2:
        return
    found.metrics["languages"] = {}
    for name, own in sorted(by_name.items()):
        part = Scores([row["id"] for row in own], images={row["id"]: {} for row in own})
        part.metrics = {"emotion": None, "captions": {}, "notes": []}
        emotion(own, settings, part)
        captions(own, settings, part)
        felt = part.metrics["emotion"] or {}
        found.metrics["languages"][name] = {
            "images": len(own),
            **{key: felt[key] for key in ("accuracy", "macro_f1") if key in felt},
            **part.metrics["captions"],
            "tokenizer": part.metrics.get("tokenizer"),
        }
        found.note(*(f"{name}: {note}" for note in part.metrics["notes"]))


def groups(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    if any("group" in row for row in rows):
        group = by_group(
            rows, lambda row: row.get("group"), by=settings.group_by, each=found.images, seed=settings.seed
        )
        found.metrics["groups"] = {
            **group,
            "rows": [{key: value for key, value in row.items() if key != "examples"} for row in group["rows"]],
        }


def intervals(rows: Sequence[Row], settings: Settings, found: Scores) -> None:
    edges = bootstrap.intervals(found.statistics, len(rows), seed=settings.seed)
    found.metrics["intervals"] = {key: interval for key, interval in edges.items() if interval is not None}
    found.metrics["bootstrap"] = {"replicates": bootstrap.REPLICATES, "seed": settings.seed}
