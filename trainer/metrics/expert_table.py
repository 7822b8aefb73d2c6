"""Language model, expert and gates on the same images: who is right how often, and whether the gate is worth having.

Rows: always saying the commonest label; the language model; the probe, which is the expert trained without a teacher;
the student, which is the expert; the teacher; every form of the gate that was fitted; and the oracle, right wherever
language model or student is, which no gate can pass that believes one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.emotions import EMOTIONS
from trainer.metrics import bootstrap, emotions
from trainer.metrics.bootstrap import Statistic, mean, score
from trainer.metrics.sources import COLUMNS, MAJORITY, ORACLE, SINGLE, SOURCES, name_of

FEW = 100  # labelled images: the accuracy of half of them has an interval of some 20 points

Row = Mapping[str, Any]


class Found(NamedTuple):
    section: dict[str, Any]  # metrics["expert"]
    each: dict[str, dict[str, Any]]  # of every image, for per_image.jsonl
    statistics: dict[str, Statistic]  # for the intervals, by their keys below "expert."


def expert_scores(rows: Sequence[Row], *, labels: Sequence[str] = EMOTIONS, seed: int = bootstrap.SEED) -> Found:
    """What the rows of predictions.jsonl say of the sources and gates that stand in their "sources" and "gates".

    Args:
        labels: names of the C emotions, in the order of the distributions.
        seed: of the bootstrap.

    Returns:
        section, plain values for JSON:
        images: those with a distribution of language model and student; count: of them with a label under `rule`.
        rows: of each row of the table above its COLUMNS, as trainer.metrics.emotions defines them; None without a
            value, as of the majority class and the oracle, which have no probabilities.
        agreement: share of the images whose likeliest emotion is the same for language model and student.
        gate: name of the form in use and its mean weight of the language model; None without a gate.
        differences: "gate" (form in use minus the better of language model and student, by accuracy on these images)
            and "student" (student minus probe), each with `first`, `second` and by column the figures of
            bootstrap.paired.
        notes.

    Raises:
        UserError: a distribution that is none.
    """
    table = _Table(rows, labels)
    section: dict[str, Any] = {"images": int(table.known.sum()), "count": int((table.labels >= 0).sum())}
    section |= {"rule": emotions.HEADLINE, "rows": {}, "agreement": None, "gate": None, "differences": {}}
    section["notes"] = table.notes
    statistics = table.statistics()
    section["rows"] = {
        key: {column: score(found[column], len(rows)) if column in found else None for column in COLUMNS}
        for key, found in statistics.items()
    }
    agree = mean(np.where(table.known, table.guesses[SINGLE[0]] == table.guesses[SINGLE[1]], np.nan))
    section["agreement"] = score(agree, len(rows))
    section["gate"] = table.gate()
    for name, (first, second) in _pairs(section).items():
        figures = bootstrap.paired(statistics[first], statistics[second], len(rows), seed=seed)
        section["differences"][name] = {"first": first, "second": second, "figures": figures}
    table.notes += _evidence(section)
    edged = {  # the commonest label is another one in many replicates
        f"rows.{key}.{column}": statistic
        for key, found in statistics.items()
        if key != MAJORITY
        for column, statistic in found.items()
        if section["rows"][key][column] is not None
    }
    return Found(section, table.each(), {**edged, "agreement": agree})


class _Table:
    """The images' distributions by source and gate; what not all of them have is left out."""

    def __init__(self, rows: Sequence[Row], labels: Sequence[str]) -> None:
        self.rows = rows
        self.names = labels
        self.notes: list[str] = []
        self.known = np.array([all((row.get("sources") or {}).get(name) for name in SINGLE) for row in rows])
        if not self.known.all():
            self.notes.append(
                f"language model and expert: {(~self.known).sum()} of {len(rows)} images have no distributions of both"
            )
        self.histograms = [row.get("histogram") if known else None for row, known in zip(rows, self.known, strict=True)]
        found = [emotions.dominant_label(histogram, labels=labels) for histogram in self.histograms]
        self.labels = np.array([emotions.NO_LABEL if label is None else label for label in found])
        self.distributions = self._columns("sources", SOURCES)
        self.gates = self._columns(
            "gates", list(dict.fromkeys(name for row in rows for name in row.get("gates") or ()))
        )
        self.guesses = {
            key: np.array([emotions.NO_PREDICTION if p is None else int(np.argmax(p)) for p in column])
            for key, column in (self.distributions | self.gates).items()
        }

    def _columns(self, key: str, names: Sequence[str]) -> dict[str, list[Sequence[float] | None]]:
        columns = {}
        for name in names:
            column = [(row.get(key) or {}).get(name) if known else None for row, known in self._pairs()]
            lacking = int(self.known.sum()) - sum(distribution is not None for distribution in column)
            if lacking == 0:
                columns[name] = column
            elif lacking < self.known.sum():
                self.notes.append(f"{name_of(name)} left out of the table of the expert: {lacking} images have none")
        return columns

    def _pairs(self) -> Sequence[tuple[Row, bool]]:
        return list(zip(self.rows, self.known, strict=True))

    def statistics(self) -> dict[str, dict[str, Statistic]]:
        """Of every row of the table, its columns."""
        found = {}
        labelled = self.labels[self.labels >= 0]
        if len(labelled):
            always = np.where(self.known, np.bincount(labelled).argmax(), emotions.NO_PREDICTION)
            found[MAJORITY] = self._statistics(always, [None] * len(self.rows))
        for key, column in (self.distributions | self.gates).items():
            found[key] = self._statistics(self.guesses[key], column)
        found[ORACLE] = {"accuracy": mean(self._right(*SINGLE))}
        return found

    def _statistics(self, guesses: np.ndarray, column: Sequence[Sequence[float] | None]) -> dict[str, Statistic]:
        rows = emotions.emotion_rows(guesses.tolist(), column, self.histograms, labels=self.names)
        found = emotions.statistics(rows, labels=self.names)
        return {name: found[name] for name in COLUMNS if name in found}

    def _right(self, *names: str) -> np.ndarray:
        """(N,): 1 where any of them is, NaN without a label."""
        right = np.any([self.guesses[name] == self.labels for name in names], axis=0)
        return np.where(self.labels >= 0, right, np.nan)

    def gate(self) -> dict[str, Any] | None:
        used = [row.get("gate") or {} for row, known in self._pairs() if known]
        names = {gate.get("name") for gate in used}
        if names <= {None}:
            return None
        if len(names) > 1 or not names <= self.gates.keys():
            self.notes.append("no gate is marked in the table of the expert: the images do not say one and the same")
            return None
        weights = [gate["weight"] for gate in used if gate.get("weight") is not None]
        return {"name": names.pop(), "weight": float(np.mean(weights)) if weights else None}

    def each(self) -> dict[str, dict[str, Any]]:
        """Which of the two is right, None without a label; nothing of images without their distributions."""
        right = {f"{name}_correct": self._right(name) for name in SINGLE}
        return {
            row["id"]: {key: None if np.isnan(values[i]) else bool(values[i]) for key, values in right.items()}
            for i, row in enumerate(self.rows)
            if self.known[i]
        }


def _pairs(section: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What is compared: (first, second), of which the difference is second minus first."""
    rows, found = section["rows"], {}
    if section["gate"]:
        found["gate"] = max(SINGLE, key=lambda name: rows[name]["accuracy"] or 0), section["gate"]["name"]
    if "probe" in rows:
        found["student"] = "probe", "student"
    return found


def _evidence(section: Mapping[str, Any]) -> list[str]:
    """What is not to be concluded."""
    if section["count"] < FEW:
        return [
            f"language model and expert: {section['count']} images with a label are too few for evidence; which row is "
            "ahead of which may be chance"
        ]
    notes = []
    for pair in section["differences"].values():
        low, high = pair["figures"]["accuracy"]["interval"]
        if low <= 0 <= high:
            first, second = (name_of(pair[side]) for side in ("first", "second"))
            notes.append(
                f"{second} against {first}: no evidence that either is right more often, for the interval of the "
                "difference of their accuracies holds 0"
            )
    return notes
