"""The scores of a test as the tables of its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trainer.expert import sections as expert
from trainer.metrics.emotions import RULE_WORDS, RULES
from trainer.metrics.table import CAPTIONS, FILTERED, sections
from trainer.metrics.written import Cell, Figure, Row, Table, count, interval, number, percent

TITLES = {
    "emotion": "Probabilities of the emotions",  # what the table of the rules does not have
    CAPTIONS: "Explanation",
    "explanations": "Language of the explanations",
    "emotional alignment": "Emotional alignment",
}
VAD = "VAD"
BY_RULE: tuple[tuple[str, str, Callable[[float | None], str]], ...] = (
    ("accuracy", "accuracy", percent),
    ("macro_f1", "macro-F1", number),
    ("valence_accuracy", "valence accuracy", percent),
    ("majority", "majority label", percent),
    ("count", "images with a label", count),
    ("valence_count", "of them with a valence", count),
)


def score_tables(metrics: Mapping[str, Any]) -> list[Table]:
    """What metrics.json holds, in the order in which it is read; what it does not hold has no table.

    The expert has a part of the report to itself.
    """
    found = {section.title: section for section in sections(metrics) if section.title not in expert.TITLES}
    tables = []
    if metrics.get("emotion"):
        tables.append(_by_rule(metrics))
    if CAPTIONS in found:
        tables.append(_captions(metrics, found[CAPTIONS].about, found[CAPTIONS].figures, found.get(FILTERED)))
    in_rules = {f"emotion.{key}" for key, _, _ in BY_RULE}
    for title, section in found.items():
        figures = [f for f in section.figures if f.key not in in_rules and not f.key.startswith("emotion.rules.")]
        if title == VAD:
            tables.append(_vad(metrics, section.about))
        elif title not in (CAPTIONS, FILTERED) and figures:
            about = "" if title == "emotion" else _sentence(section.about)
            tables.append(Table(TITLES.get(title, title), about, (), [_row(figure) for figure in figures]))
    return tables


def _by_rule(metrics: Mapping[str, Any]) -> Table:
    """The emotion under the headline rule, then under the others."""
    emotion = metrics["emotion"]
    by_rule = emotion.get("rules") or {emotion["rule"]: emotion}
    order = sorted(by_rule, key=lambda rule: (rule != emotion["rule"], RULES.index(rule) if rule in RULES else -1))
    edges = metrics.get("intervals") or {}

    def cell(rule: str, key: str, written: Callable[[float | None], str]) -> Cell:
        return Cell(written(by_rule[rule].get(key)), interval(edges.get(f"emotion.rules.{rule}.{key}"), written))

    keys = [row for row in BY_RULE if any(row[0] in by_rule[rule] for rule in order)]
    rows = [Row(name, [cell(rule, key, written) for rule in order]) for key, name, written in keys]
    about = f"{emotion['count']} of {emotion['total']} images have a label under the first rule. "
    about += " ".join(f"{rule.replace('_', ' ').capitalize()}: {RULE_WORDS.get(rule, rule)}." for rule in order)
    if "macro_f1" in emotion:
        about += " Macro-F1: mean over the emotions among the labels."
    if "majority" in emotion:
        about += " Majority label: accuracy of always saying the commonest."
    return Table("Emotion", about, [rule.replace("_", " ") for rule in order], rows)


def _captions(metrics: Mapping[str, Any], about: str, figures: Sequence[Figure], filtered) -> Table:
    title = TITLES[CAPTIONS] if metrics.get("emotion") else "Captions"
    if filtered is None:
        return Table(title, _sentence(about), [""], [Row(f.name, [_cell(f)]) for f in figures])
    right = {figure.name: _cell(figure) for figure in filtered.figures}
    rows = [Row(f.name, [_cell(f), right.get(f.name, Cell(""))]) for f in figures]
    sentence = f"{_sentence(about)} Filtered: {filtered.about}."
    return Table(title, sentence, ["all", "filtered"], rows)


def _vad(metrics: Mapping[str, Any], about: str) -> Table:
    """A column for each dimension; all explanations of people, then those for the emotion that the model named."""
    names = ("valence", "arousal", "dominance")
    whose = {"": metrics["vad"], "same_emotion.": metrics["vad"].get("same_emotion") or {}}
    edges = metrics.get("intervals") or {}

    def cell(prefix: str, name: str, key: str) -> Cell:
        bounds = edges.get(f"vad.{prefix}{name}.{key}")
        return Cell(number((whose[prefix].get(name) or {}).get(key)), interval(bounds, number))

    rows = [
        Row(f"{key}, same emotion" if prefix else key, [cell(prefix, name, key) for name in names])
        for prefix, values in whose.items()
        if values
        for key in ("error", "bias", "correlation")
    ]
    sentence = (
        f"{_sentence(about)} Error: mean absolute difference from people's words. Bias: mean difference, above 0 "
    )
    sentence += "where the model's words have more."
    if whose["same_emotion."]:
        images = whose["same_emotion."]["valence"]["count"]
        sentence += f" Same emotion: only the words people wrote for the model's emotion, in {images} images."
    return Table("Valence, arousal, dominance", sentence, names, rows)


def _row(figure: Figure) -> Row:
    return Row(figure.name, [_cell(figure)], figure.about)


def _cell(figure: Figure) -> Cell:
    return Cell(figure.value, figure.interval)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text else ""
