"""Tables of metrics["expert"], for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from common.html.tables import Cell, Row, Table, Written, number, percent, signed
from trainer.metrics.emotions import RULE_WORDS
from trainer.metrics.sources import name_of

HEADS: dict[str, tuple[str, Written]] = {
    "accuracy": ("accuracy", percent),
    "macro_f1": ("macro-F1", number),
    "valence_accuracy": ("valence accuracy", percent),
    "nll": ("log loss", number),
    "ece_answers": ("calibration", number),
    "js": ("Jensen-Shannon", number),
}
SCORES: dict[str, tuple[str, Written]] = {  # other scores are named by the end of their key
    "alignment.accuracy": ("alignment", percent),
    "alignment.cross_entropy": ("alignment cross-entropy", number),
}

Metrics = Mapping[str, Any]


def expert_tables(metrics: Metrics) -> list[Table]:
    """Return the non-empty tables; none without an expert."""
    found = metrics.get("expert")
    if not found:
        return []
    edges = metrics.get("intervals") or {}
    tables = (
        _rows_table(found, edges),
        _agreement_table(found, edges),
        _differences_table(found),
        _captions_table(found),
    )
    return [table for table in tables if table.rows]


def _rows_table(found: Metrics, edges: Metrics) -> Table:
    keys = [column for column in HEADS if any(row[column] is not None for row in found["rows"].values())]
    keys = keys or ["accuracy"]

    def cell(key: str, column: str) -> Cell:
        place = f"expert.rows.{key}.{column}"
        return Cell(found["rows"][key][column], HEADS[column][1], edges.get(place), key=place)

    gate = found["gate"] or {"name": None, "weights": {}}
    rows = [
        Row(name_of(key), [cell(key, column) for column in keys], "in use" if key == gate["name"] else "")
        for key in found["rows"]
    ]
    rule = RULE_WORDS.get(found["rule"], found["rule"])
    about = [f"{found['count']} of {found['images']} images, where {rule}."]
    if gate["weights"]:
        weights = ", ".join(f"{name_of(name)} {percent(weight)}" for name, weight in gate["weights"].items())
        about.append(f"Mean weights of the gate in use: {weights}.")
    if "probe" in found["rows"]:
        about.append("Probe: the expert trained without a teacher.")
    about.append(
        "Oracle: a source of the gate is right. Log loss, calibration error and Jensen-Shannon distance are "
        "against people's shares, and better the smaller."
    )
    return Table("Language model and expert", " ".join(about), [HEADS[column][0] for column in keys], rows)


def _agreement_table(found: Metrics, edges: Metrics) -> Table:
    agreement = Cell(found["agreement"], percent, edges.get("expert.agreement"), key="expert.agreement")
    about = "images for which all sources of the gate find the same emotion the likeliest"
    pairs = [Row(f"{name_of(a)}, {name_of(b)}", [Cell(share, percent)]) for a, b, share in found["agreements"]]
    return Table("", "", (), [Row("agreement", [agreement], about), *pairs])


def _differences_table(found: Metrics) -> Table:
    pairs = [pair for pair in found["differences"].values() if pair["figures"]]
    keys = [column for column in HEADS if any(column in pair["figures"] for pair in pairs)]
    rows = []
    for pair in pairs:
        cells = [_difference(pair["figures"].get(column), HEADS[column][1]) for column in keys]
        rows.append(Row(f"{name_of(pair['second'])} − {name_of(pair['first'])}", cells))
    about = "With 95 % intervals, and p: how often chance alone would bring a difference as large."
    if "gate" in found["differences"]:
        about += " The gate is held against the best of its sources, by accuracy on these images."
    return Table("Differences", about, [HEADS[column][0] for column in keys], rows)


def _difference(changed: Metrics | None, written: Written) -> Cell:
    if changed is None:
        return Cell("")
    return Cell(changed["difference"], signed(written), changed["interval"], f"p {changed['p']:.3f}")


def _captions_table(found: Metrics) -> Table:
    captions = found.get("captions") or {"figures": {}}
    rows, about = [], ""
    for key, pair in captions["figures"].items():
        name, written = SCORES.get(key, (key.partition(".")[2], number))
        cells = [Cell(pair["second"], written), Cell(pair["first"], written), _difference(pair, written)]
        rows.append(Row(name, cells))
    if rows:
        about = (
            f"In {captions['emotions_differ']} of {captions['images']} images the fused emotion is another than the "
            f"language model's own, in {captions['explanations_differ']} the explanation."
        )
    columns = ["for the fused emotion", "language model's own", "difference"]
    return Table("Explanations for the fused emotion", about, columns, rows)
