"""Language model, experts and gates on the same images: how often each is right, and whether the gate helps.

Rows: always predicting the most common label; the language model; the probe (the student trained without a teacher);
the student; the teacher; any further sources of the gate; every fitted form of the gate; and the oracle, right if any
source of the gate is, the upper bound of any gate that follows one of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data.emotions import EMOTIONS
from trainer.metrics import bootstrap, emotions
from trainer.metrics.bootstrap import Statistic, mean, score
from trainer.metrics.sources import COLUMNS, MAJORITY, ORACLE, SINGLE, SOURCES, combined_in, name_of

FEW = 100  # labelled images: with half as many right, the accuracy has an interval of some 20 points

Row = Mapping[str, Any]
Column = Sequence[Sequence[float] | None]  # a distribution per image


class Found(NamedTuple):
    section: dict[str, Any]  # metrics["expert"]
    each: dict[str, dict[str, Any]]  # by image id, for per_image.jsonl
    statistics: dict[str, Statistic]  # for the intervals, by their keys below "expert."


def expert_scores(rows: Sequence[Row], *, labels: Sequence[str] = EMOTIONS, seed: int = bootstrap.SEED) -> Found:
    """Score the distributions in "sources" and "gates" of the rows of predictions.jsonl.

    Args:
        labels: names of the C emotions, in the order of the distributions.
        seed: of the bootstrap.

    Returns:
        section, plain values for JSON:
        images: those with a distribution of language model and student; count: of them with a label under `rule`.
        rows: for each row of the table its COLUMNS, as defined in trainer.metrics.emotions; None if undefined, as for
            the majority class and the oracle, which have no probabilities.
        agreement: share of the images with the same most likely emotion for all sources of the gate; agreements: the
            same for each two of them, as [first, second, share], if there are more than two.
        gate: name of the form in use and the mean weights of its sources; None without a gate.
        differences: "gate" (form in use minus the best of its sources, by accuracy on these images) and "student"
            (student minus probe), each with `first`, `second` and by column the figures of bootstrap.paired.
        notes.

    Raises:
        UserError: a malformed distribution.
    """
    table = _Table(rows, labels)
    statistics = table.statistics()
    values = {
        key: {column: score(found[column], len(rows)) if column in found else None for column in COLUMNS}
        for key, found in statistics.items()
    }
    agree = table.agreement(table.combined)
    section: dict[str, Any] = {
        "images": int(table.known.sum()),
        "count": int((table.labels >= 0).sum()),
        "rule": emotions.HEADLINE,
        "rows": values,
        "agreement": score(agree, len(rows)),
        "agreements": [[*pair, score(table.agreement(pair), len(rows))] for pair in table.pairs_of_sources()],
        "gate": table.gate(),
        "differences": {},
        "notes": table.notes,
    }
    pairs = {"student": ("probe", "student")} if "probe" in values else {}
    if section["gate"]:
        best = max(table.combined, key=lambda name: values[name]["accuracy"] or 0)
        pairs = {"gate": (best, section["gate"]["name"])} | pairs
    for name, (first, second) in pairs.items():
        figures = bootstrap.paired(statistics[first], statistics[second], len(rows), seed=seed)
        section["differences"][name] = {"first": first, "second": second, "figures": figures}
    table.notes += _evidence(section)
    with_intervals = {  # without the majority class: the most common label differs between replicates
        f"rows.{key}.{column}": statistic
        for key, found in statistics.items()
        if key != MAJORITY
        for column, statistic in found.items()
        if values[key][column] is not None
    }
    return Found(section, table.each(), {**with_intervals, "agreement": agree})


class _Table:
    """The images' distributions by source and gate, without those that only some images have."""

    def __init__(self, rows: Sequence[Row], labels: Sequence[str]) -> None:
        self.rows = rows
        self.names = labels
        self.notes: list[str] = []
        self.known = np.array([all((row.get("sources") or {}).get(name) for name in SINGLE) for row in rows])
        if not self.known.all():
            self.notes.append(
                f"language model and expert: {(~self.known).sum()} of {len(rows)} images have no distributions of both"
            )
        self.pairs = list(zip(rows, self.known, strict=True))
        self.histograms = [row.get("histogram") if known else None for row, known in self.pairs]
        found = [emotions.dominant_label(histogram, labels=labels) for histogram in self.histograms]
        self.labels = np.array([emotions.NO_LABEL if label is None else label for label in found])
        self.combined = combined_in(row for row, known in self.pairs if known) or SINGLE
        others = [name for name in self.combined if name not in SINGLE]
        self.columns = self._columns("sources", SOURCES) | self._columns("sources", others, whole=False)
        self.gates = self._columns("gates", [*dict.fromkeys(name for row in rows for name in row.get("gates") or ())])
        self.columns |= self.gates
        self.guesses = {
            key: np.array([emotions.NO_PREDICTION if p is None else int(np.argmax(p)) for p in column])
            for key, column in self.columns.items()
        }

    def _columns(self, key: str, names: Sequence[str], *, whole: bool = True) -> dict[str, Column]:
        """Return the distributions by name; those that only some images have are left out if they must be `whole`."""
        columns = {}
        for name in names:
            column = [(row.get(key) or {}).get(name) if known else None for row, known in self.pairs]
            lacking = int(self.known.sum()) - sum(distribution is not None for distribution in column)
            if lacking == 0 or not whole:
                columns[name] = column
            if lacking and not whole:
                self.notes.append(
                    f"{name_of(name)}: {lacking} of {self.known.sum()} images have no entry; they count as wrong and "
                    "not in its log loss, and the gate uses the average of the other sources there"
                )
            elif 0 < lacking < self.known.sum():
                self.notes.append(f"{name_of(name)} left out of the table of the expert: {lacking} images have none")
        return columns

    def agreement(self, names: Sequence[str]) -> Statistic:
        """Return how often these sources have the same most likely emotion, among images that all of them have."""
        guesses = np.stack([self.guesses[name] for name in names])
        given = self.known & (guesses != emotions.NO_PREDICTION).all(axis=0)
        return mean(np.where(given, (guesses == guesses[0]).all(axis=0), np.nan))

    def pairs_of_sources(self) -> list[tuple[str, str]]:
        return [*itertools.combinations(self.combined, 2)] if len(self.combined) > 2 else []

    def statistics(self) -> dict[str, dict[str, Statistic]]:
        """Return the statistics of the COLUMNS, by row of the table."""
        found = {}
        labelled = self.labels[self.labels >= 0]
        if len(labelled):
            always = np.where(self.known, np.bincount(labelled).argmax(), emotions.NO_PREDICTION)
            found[MAJORITY] = self._statistics(always, [None] * len(self.rows))
        for key, column in self.columns.items():
            found[key] = self._statistics(self.guesses[key], column)
        found[ORACLE] = {"accuracy": mean(self._right(*self.combined))}
        return found

    def _statistics(self, guesses: np.ndarray, column: Column) -> dict[str, Statistic]:
        rows = emotions.emotion_rows(guesses.tolist(), column, self.histograms, labels=self.names)
        found = emotions.statistics(rows, labels=self.names)
        return {name: found[name] for name in COLUMNS if name in found}

    def _right(self, *names: str) -> np.ndarray:
        """Return 1 for images (N,) where any of the sources is right, else 0; NaN without a label."""
        right = np.any([self.guesses[name] == self.labels for name in names], axis=0)
        return np.where(self.labels >= 0, right, np.nan)

    def gate(self) -> dict[str, Any] | None:
        used = [row.get("gate") or {} for row, known in self.pairs if known]
        names = {gate.get("name") for gate in used}
        if names <= {None}:
            return None
        if len(names) > 1 or not names <= self.gates.keys():
            self.notes.append("no gate is marked in the table of the expert: the images name different gates")
            return None
        weights = [gate["weights"] for gate in used if gate.get("weights")]
        sources = weights[0] if weights else ()
        return {
            "name": names.pop(),
            "weights": {name: float(np.mean([of_image.get(name, 0) for of_image in weights])) for name in sources},
        }

    def each(self) -> dict[str, dict[str, Any]]:
        """Return whether each source of the gate is right, None without a label, for images in the table."""
        right = {f"{name}_correct": self._right(name) for name in self.combined}
        return {
            row["id"]: {key: None if np.isnan(values[i]) else bool(values[i]) for key, values in right.items()}
            for i, (row, known) in enumerate(self.pairs)
            if known
        }


def _evidence(section: Mapping[str, Any]) -> list[str]:
    if section["count"] < FEW:
        return [
            f"language model and expert: {section['count']} images with a label are too few for evidence; which row is "
            "ahead of which may be chance"
        ]
    notes = []
    for pair in section["differences"].values():
        low, high = pair["figures"]["accuracy"]["interval"]
        if low <= 0 <= high:
            notes.append(
                f"{name_of(pair['second'])} against {name_of(pair['first'])}: no evidence that either is right more "
                "often, for the interval of the difference of their accuracies holds 0"
            )
    return notes
