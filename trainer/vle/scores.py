"""Scores of a VLE test, each beside a baseline, and their tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from common.html.tables import Cell, Row, Table, count, number, percent, signed
from trainer.metrics.vle import itm_scores, pbc_scores, vcr_scores, vqa_accuracy
from trainer.vle.tasks import Result, match_accuracy

Metrics = Mapping[str, Any]


def vqa_section(results: Sequence[Result], commonest: Mapping[str, str]) -> dict[str, Any]:
    """Return trainer.metrics.vle.vqa_accuracy of the questions with known answers; {} without any."""
    known = [row for row in results if row["answers"]]
    if not known:
        return {}
    found = vqa_accuracy(
        [row["answer"] for row in known],
        [row["answers"] for row in known],
        types=[row["type"] for row in known],
        pictures=[row["image"] for row in known],
        commonest=commonest,
    )
    return found | {"questions_without_answer": len(results) - len(known)}


def match_section(results: Sequence[Result], matrix: np.ndarray | None) -> dict[str, Any]:
    """Return the accuracy on matched and mismatched pairs, and retrieval if there is a matrix (texts × pictures)."""
    share = np.mean([row["match"] for row in results])
    found = {"accuracy": match_accuracy(results), "baseline": float(max(share, 1 - share)), "pairs": len(results)}
    if matrix is not None:
        found["retrieval"] = itm_scores(matrix, range(len(matrix)))
    return found


def region_section(results: Sequence[Result]) -> dict[str, Any]:
    """Return trainer.metrics.vle.pbc_scores of the texts that name a region; {} without any."""
    named = [row for row in results if row.get("boxes")]
    if not named:
        return {}
    grid = round(len(named[0]["scores"]) ** 0.5)
    return pbc_scores(
        np.array([row["scores"] for row in named]),
        [row["boxes"] for row in named],
        grid=(grid, grid),
        pictures=[row["image"] for row in named],
    )


def vcr_section(results: Sequence[Result], kind: str, partner: Sequence[Result] | None) -> dict[str, Any]:
    """Return the accuracy of Q2A or QA2R, and with the other network's results on the same questions all three."""
    others = {row["id"]: row for row in partner or () if row["label"] is not None}
    known = [row for row in results if row["label"] is not None and (partner is None or row["id"] in others)]
    if not known:
        return {}
    own = np.array([row["scores"] for row in known])
    labels = np.array([row["label"] for row in known])
    if partner is None:
        both = np.stack([labels, labels], axis=1)
        found = vcr_scores(own, own, both, pictures=[row["img_fn"] for row in known])
        name = kind.upper()
        kept = {name: found[name], "chance": {name: found["chance"][name]}, "questions": found["questions"]}
        return kept | {"intervals": {name: found["intervals"][name]}}
    other = np.array([others[row["id"]]["scores"] for row in known])
    right = np.array([others[row["id"]]["label"] for row in known])
    pairs = [(own, labels), (other, right)]
    (q2a, answers), (qa2r, rationales) = pairs if kind == "q2a" else pairs[::-1]
    both = np.stack([answers, rationales], axis=1)
    return vcr_scores(q2a, qa2r, both, pictures=[row["img_fn"] for row in known])


def tables(metrics: Metrics) -> list[Table]:
    """Return the tables of all sections."""
    builders = {"vqa": _vqa, "match": _match, "regions": _regions, "vcr": _vcr}
    return [table for key, build in builders.items() if metrics.get(key) for table in build(metrics[key])]


def _cells(section: Metrics, names: Iterable[str], prefix: str = "") -> list[Cell]:
    bounds = section.get("intervals") or {}
    return [
        Cell(section[name], signed(percent) if name == "gain" else percent, bounds.get(prefix + name)) for name in names
    ]


def _vqa(section: Metrics) -> list[Table]:
    names = ("accuracy", "baseline", "gain")
    rows = [Row("all", [*_cells(section, names), Cell(section["questions"], count)])]
    for kind, found in section["types"].items():
        shown = _cells({**found, "intervals": section["intervals"]}, names, f"types.{kind}.")
        rows.append(Row(kind or "(no type)", [*shown, Cell(found["questions"], count)]))
    about = "accuracy: mean soft score of the answers; baseline: the commonest training answer to that type of question"
    return [Table("Answers", about, (*names, "questions"), rows)]


def _match(section: Metrics) -> list[Table]:
    cells = [Cell(section[name], percent) for name in ("accuracy", "baseline")]
    found = [
        Table(
            "Matching",
            "pairs of a picture and a text, half of them mismatched; baseline: always the same answer",
            ("accuracy", "baseline", "pairs"),
            [Row("pairs", [*cells, Cell(section["pairs"], count)])],
        )
    ]
    if "retrieval" in section:
        ranks = ("R@1", "R@5", "R@10")
        rows = []
        for way, name in (("text_to_image", "text finds picture"), ("image_to_text", "picture finds text")):
            part = section["retrieval"][way]
            rows.append(Row(name, [*_cells(part, ranks), Cell(part["candidates"], count)]))
            rows.append(Row("by chance", [*(Cell(part["chance"][rank], percent) for rank in ranks), Cell(None, count)]))
        found.append(
            Table("Retrieval", "how often the right one is among the first 1, 5 or 10", (*ranks, "candidates"), rows)
        )
    return found


def _regions(section: Metrics) -> list[Table]:
    pairs = {
        "average precision": ("average_precision", "positive_rate"),
        "pointing": ("pointing", "pointing_random"),
        "pointing, against the center": ("pointing", "pointing_center"),
    }
    bounds = section["intervals"]
    rows = [
        Row(name, [Cell(section[own], percent, bounds.get(own)), Cell(section[other], percent, bounds.get(other))])
        for name, (own, other) in pairs.items()
    ]
    about = (
        f"patches that {section['texts']} texts are about; pointing: the highest patch is in a box. Baseline: random "
    )
    return [Table("Regions", about + "patches, or the center of the picture", ("VLE", "baseline"), rows)]


def _vcr(section: Metrics) -> list[Table]:
    names = [name for name in ("Q2A", "QA2R", "Q2AR") if name in section]
    rows = [Row("VLE", _cells(section, names)), Row("by chance", [Cell(section["chance"][n], percent) for n in names])]
    return [Table("VCR", f"accuracy over {section['questions']} questions", names, rows)]


def loss_table(losses: Mapping[str, float]) -> Table:
    return Table(
        "Losses", "means on the test set", ("loss",), [Row(name, [Cell(v, number)]) for name, v in losses.items()]
    )
