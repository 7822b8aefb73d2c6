"""Names of the compared distributions: the language model, the expert, and the gates that combine them."""

LANGUAGE_MODEL, PROBE, STUDENT, TEACHER = SOURCES = ("language_model", "probe", "student", "teacher")
SINGLE = (LANGUAGE_MODEL, STUDENT)  # combined by a gate, which must be better than both
MAJORITY, ORACLE = "majority", "oracle"
COLUMNS = ("accuracy", "macro_f1", "valence_accuracy", "nll", "ece_answers", "js")  # of their table


def name_of(key: str) -> str:
    return "majority class" if key == MAJORITY else key.replace("_", " ")
