"""metrics["expert"] in words: its sections of the printed table and its tables in the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.expert.table import ORACLE, name_of
from trainer.metrics.emotions import RULE_WORDS
from trainer.metrics.written import Cell, Figure, Row, Section, Table, Written, interval, number, percent, signed

TITLES = ("language model and expert", "explanations for the fused emotion")
COLUMNS: dict[str, tuple[str, Written]] = {
    "accuracy": ("accuracy", percent),
    "macro_f1": ("macro-F1", number),
    "valence_accuracy": ("valence accuracy", percent),
    "nll": ("log loss", number),
    "ece_answers": ("calibration", number),
    "js": ("Jensen-Shannon", number),
}
SCORES: dict[str, tuple[str, Written]] = {  # all others are written as they are called
    "alignment.accuracy": ("alignment", percent),
    "alignment.cross_entropy": ("alignment cross-entropy", number),
}

Metrics = Mapping[str, Any]


def expert_sections(metrics: Metrics) -> list[Section]:
    """Of the printed table; none without an expert."""
    found = metrics.get("expert")
    return [_emotions(metrics, found), _captions(found)] if found else []


def expert_tables(metrics: Metrics) -> list[Table]:
    """Of the report; none without an expert."""
    found = metrics.get("expert")
    if not found:
        return []
    tables = [_rows_table(metrics, found), _differences_table(found), _captions_table(found)]
    return [table for table in tables if table.rows]


def _name(found: Metrics, key: str) -> str:
    used = found["gate"] is not None and found["gate"]["name"] == key
    return f"{name_of(key)}, in use" if used else name_of(key)


def _whose(found: Metrics) -> str:
    rule = RULE_WORDS.get(found["rule"], found["rule"])
    return f"{found['count']} of {found['images']} images, where {rule}"


def _other(captions: Metrics) -> str:
    return (
        f"in {captions['emotions_differ']} of {captions['images']} images the fused emotion is another than the "
        f"language model's own, in {captions['explanations_differ']} the explanation"
    )


# --- the printed table -----------------------------------------------------------------------------------------------


def _emotions(metrics: Metrics, found: Metrics) -> Section:
    edges = metrics.get("intervals") or {}
    figures = []
    for key, row in found["rows"].items():
        others = [f"{name} {written(row[column])}" for column, (name, written) in COLUMNS.items() if _more(row, column)]
        about = "language model or student is right" if key == ORACLE else ", ".join(others)
        place = f"expert.rows.{key}.accuracy"
        figures.append(Figure(place, _name(found, key), row["accuracy"], percent, edges.get(place), about))
    about = "images of which both take the same emotion for the likeliest"
    bounds = edges.get("expert.agreement")
    figures.append(Figure("expert.agreement", "agreement", found["agreement"], percent, bounds, about))
    for key, pair in found["differences"].items():
        if changed := pair["figures"].get("accuracy"):
            loss = pair["figures"].get("nll")
            about = f"of the accuracies, p {changed['p']:.3f}"
            about += f"; of the log losses {signed(number)(loss['difference'])}, p {loss['p']:.3f}" if loss else ""
            place, name = f"expert.differences.{key}", f"{key} - {name_of(pair['first'])}"
            figures.append(Figure(place, name, changed["difference"], signed(percent), changed["interval"], about))
    return Section(TITLES[0], "; ".join([_whose(found), *_gate_words(found)]), figures)


def _more(row: Metrics, column: str) -> bool:
    return column != "accuracy" and row[column] is not None


def _gate_words(found: Metrics) -> list[str]:
    if not found["gate"] or found["gate"]["weight"] is None:
        return []
    return [f"the gate in use gives the language model a mean weight of {percent(found['gate']['weight'])}"]


def _captions(found: Metrics) -> Section | None:
    captions = found.get("captions")
    if not captions:
        return None
    figures = []
    for key, pair in captions["figures"].items():
        name, written = SCORES.get(key, (key.partition(".")[2], number))
        edges = interval(pair["interval"], signed(written))
        about = f"own {written(pair['first'])}, difference {signed(written)(pair['difference'])} {edges}, "
        place = f"expert.captions.figures.{key}"
        figures.append(Figure(place, name, pair["second"], written, None, f"{about}p {pair['p']:.3f}"))
    return Section(TITLES[1], f"{_other(captions)}; own: written for the language model's own emotion", figures)


# --- the report's ----------------------------------------------------------------------------------------------------


def _rows_table(metrics: Metrics, found: Metrics) -> Table:
    edges = metrics.get("intervals") or {}
    keys = [column for column in COLUMNS if any(row[column] is not None for row in found["rows"].values())]

    def cell(key: str, column: str) -> Cell:
        written, value = COLUMNS[column][1], found["rows"][key][column]
        return Cell(written(value), interval(edges.get(f"expert.rows.{key}.{column}"), written))

    rows = [
        Row(name_of(key), [cell(key, column) for column in keys], "in use" if "in use" in _name(found, key) else "")
        for key in found["rows"]
    ]
    agree = f"{percent(found['agreement'])} {interval(edges.get('expert.agreement'), percent)}".rstrip()
    about = [
        _whose(found),
        *_gate_words(found),
        "probe: the expert trained without a teacher" * ("probe" in found["rows"]),
        "oracle: language model or student is right",
        f"both take the same emotion for the likeliest in {agree}",
        "log loss, calibration error and Jensen-Shannon distance are against people's shares, and better the smaller",
    ]
    return Table("", " ".join(f"{text[0].upper()}{text[1:]}." for text in about if text), _heads(keys), rows)


def _heads(columns: list[str]) -> list[str]:
    return [COLUMNS[column][0] for column in columns]


def _differences_table(found: Metrics) -> Table:
    pairs = found["differences"].values()
    keys = [column for column in COLUMNS if any(column in pair["figures"] for pair in pairs)]

    def cell(pair: Metrics, column: str) -> Cell:
        changed = pair["figures"].get(column)
        return Cell("") if changed is None else _difference(changed, COLUMNS[column][1])

    rows = [
        Row(f"{name_of(pair['second'])} − {name_of(pair['first'])}", [cell(pair, column) for column in keys])
        for pair in pairs
        if pair["figures"]
    ]
    about = "With 95 % intervals, and p: how often chance alone would bring a difference as large."
    if "gate" in found["differences"]:
        about += " The gate is held against the better of language model and student, by accuracy on these images."
    return Table("Differences", about, _heads(keys), rows)


def _difference(changed: Metrics, written: Written) -> Cell:
    edges = interval(changed["interval"], signed(written))
    return Cell(signed(written)(changed["difference"]), edges, f"p {changed['p']:.3f}")


def _captions_table(found: Metrics) -> Table:
    captions = found.get("captions") or {"figures": {}}
    rows = []
    for key, pair in captions["figures"].items():
        name, written = SCORES.get(key, (key.partition(".")[2], number))
        rows.append(
            Row(name, [Cell(written(pair["second"])), Cell(written(pair["first"])), _difference(pair, written)])
        )
    about = f"{_other(captions)}." if rows else ""
    return Table(
        "Explanations",
        about[:1].upper() + about[1:],
        ["for the fused emotion", "language model's own", "difference"],
        rows,
    )
