"""Names of the compared distributions: the language model, the experts, and the gates that combine them."""

from collections.abc import Iterable, Mapping
from typing import Any

LANGUAGE_MODEL, PROBE, STUDENT, TEACHER = SOURCES = ("language_model", "probe", "student", "teacher")
SINGLE = (LANGUAGE_MODEL, STUDENT)  # always combined by a gate, which must be better than each of its sources
NOT_COMBINED = (PROBE, TEACHER)  # any other source is
MAJORITY, ORACLE = "majority", "oracle"
COLUMNS = ("accuracy", "macro_f1", "valence_accuracy", "nll", "ece_answers", "js")  # of their table


def name_of(key: str) -> str:
    return "majority class" if key == MAJORITY else key.replace("_", " ")


def combined_in(rows: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the names of the sources in the rows that a gate combines, language model and student first."""
    names = dict.fromkeys(name for row in rows for name in row.get("sources") or ())
    return tuple(name for name in dict.fromkeys((*SINGLE, *names)) if name in names and name not in NOT_COMBINED)
