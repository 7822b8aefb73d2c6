"""Emotions and scores by group of images, such as styles, artists, genres, periods or folders.

Of each group: the mean of the predicted probabilities and that of the annotators' shares, each with its entropy in bits
(0: one emotion alone; log2 C: all C alike), and the means over its images of the scores in SCORES, with 95 % intervals
of a bootstrap over the images of that group.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_csv
from common.html.tables import NONE, Cell, Row, Table, count, number, percent
from data.emotions import labels_of
from trainer.metrics import bootstrap

SCORES = {  # key of a group: value in per_image.jsonl, heading, format
    "accuracy": ("correct", "accuracy", percent),
    "nll": ("nll", "log loss", number),
    "js": ("js", "Jensen-Shannon", number),
    "CIDEr": ("CIDEr", "CIDEr", number),
}
UNGROUPED = "(none)"  # group of the images without one
EXAMPLES = 3
MOST_SHOWN = 40  # groups of a table and a page; groups.csv has all


def by_group(
    rows: Iterable[Mapping[str, Any]],
    group: Callable[[Mapping[str, Any]], str | None],
    *,
    by: str,
    each: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = bootstrap.SEED,
) -> dict[str, Any]:
    """Return {"by", "labels", "rows"}: a row per group, the largest first.

    Args:
        rows: as in predictions.jsonl, iterated once; those without an emotion count among the images alone.
        group: returns the name of a row's group.
        each: by id, the values of per_image.jsonl.

    Returns:
        Rows with name, images, shares (C), entropy, people (C) and people_entropy (None without annotators), count
        (images with a label), the SCORES that are known, intervals by score, and examples: the images of the most
        confident predictions.
    """
    shares, people, values, labels = defaultdict(list), defaultdict(list), defaultdict(list), ()
    images, examples = defaultdict(int), defaultdict(list)
    for row in rows:
        name, labels = group(row) or UNGROUPED, labels_of(row)
        images[name] += 1
        values[name].append((each or {}).get(row.get("id"), {}))
        if (predicted := _distribution(row, labels)) is not None:
            shares[name].append(predicted)
            best = (float(predicted.max()), -images[name], row.get("image"))
            (heapq.heappushpop if len(examples[name]) == EXAMPLES else heapq.heappush)(examples[name], best)
        if row.get("histogram"):
            votes = np.asarray(row["histogram"], dtype=np.float64)
            people[name].append(votes / votes.sum())
    found = [
        {
            "name": name,
            "images": images[name],
            **_mean("shares", "entropy", shares[name]),
            **_mean("people", "people_entropy", people[name]),
            **_scores(values[name], seed),
            "examples": [image for *_, image in sorted(examples[name], reverse=True)],
        }
        for name in sorted(images, key=lambda name: (-images[name], name))
    ]
    return {"by": by, "labels": list(labels), "rows": found}


def _distribution(row: Mapping[str, Any], labels: tuple[str, ...]) -> np.ndarray | None:
    """Return the probabilities, or 1 for the emotion of a row without them; None without an emotion."""
    if row.get("emotion_distribution"):
        return np.asarray(row["emotion_distribution"], dtype=np.float64)
    return np.eye(len(labels))[labels.index(row["emotion"])] if row.get("emotion") in labels else None


def _mean(key: str, entropy: str, distributions: list[np.ndarray]) -> dict[str, Any]:
    if not distributions:
        return {key: None, entropy: None}
    mean = np.mean(distributions, axis=0)
    return {key: mean.tolist(), entropy: float(-(mean * np.log2(np.where(mean > 0, mean, 1.0))).sum())}


def _scores(values: list[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    known = {key: [row.get(source) for row in values] for key, (source, *_) in SCORES.items()}
    statistics = {key: bootstrap.mean(found) for key, found in known.items() if any(v is not None for v in found)}
    edges = bootstrap.intervals(statistics, len(values), seed=seed)
    scores = {key: bootstrap.score(statistic, len(values)) for key, statistic in statistics.items()}
    return {**scores, "count": sum(v is not None for v in known["accuracy"]), "intervals": edges}


def group_table(found: Mapping[str, Any]) -> Table:
    """Return the largest groups with the commonest emotion, the entropy and the scores."""
    rows, labels = found["rows"][:MOST_SHOWN], found["labels"]
    scores = [key for key in SCORES if any(key in row for row in rows)]
    people = any(row["people"] for row in rows)

    def cells(row: Mapping[str, Any]) -> list[Cell]:
        top = [_top(row[key], labels) for key in ("shares", *["people"] * people)]
        entropies = [Cell(row[key], number) for key in ("entropy", *["people_entropy"] * people)]
        edges = row["intervals"]
        return [
            Cell(row["images"], count),
            *(Cell(text) for text in top),
            *entropies,
            *(Cell(row.get(key), SCORES[key][2], edges.get(key)) for key in scores),
        ]

    more = len(found["rows"]) - len(rows)
    about = "Mean probabilities: the commonest emotion and the entropy of all, in bits"
    about += ("; annotators: the same of their shares." if people else ".") + (
        f" The {len(rows)} largest of {len(found['rows'])} groups." if more else ""
    )
    columns = ["images", "commonest", *["annotators"] * people, "entropy", *["annotators"] * people]
    columns += [SCORES[key][1] for key in scores]
    return Table(f"By {found['by']}", about, columns, [Row(row["name"], cells(row)) for row in rows])


def _top(shares: list[float] | None, labels: list[str]) -> str | None:
    if shares is None:
        return NONE
    best = int(np.argmax(shares))
    return f"{labels[best]} {percent(shares[best])}"


def write_groups(folder: Path, found: Mapping[str, Any] | None) -> None:
    """Write groups.csv, or remove that of an earlier command if there are no groups."""
    path = folder / "groups.csv"
    write_csv(path, *_csv(found)) if found else path.unlink(missing_ok=True)


def _csv(found: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    labels, scores = found["labels"], [key for key in SCORES if any(key in row for row in found["rows"])]
    head = [found["by"], "images", "entropy", *labels, "annotators' entropy", *(f"annotators: {n}" for n in labels)]
    head += ["images with a label"] + [part for key in scores for part in (key, f"{key} low", f"{key} high")]
    none = [None] * len(labels)
    return head, [
        [
            *(row["name"], row["images"], row["entropy"], *(row["shares"] or none)),
            *(row["people_entropy"], *(row["people"] or none), row["count"]),
            *(v for key in scores for v in (row.get(key), *(row["intervals"].get(key) or (None, None)))),
        ]
        for row in found["rows"]
    ]
