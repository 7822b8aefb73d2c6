"""Names of the distributions that are compared: the language model, the expert, and what joins them."""

LANGUAGE_MODEL, PROBE, STUDENT, TEACHER = SOURCES = ("language_model", "probe", "student", "teacher")
SINGLE = (LANGUAGE_MODEL, STUDENT)  # what a gate joins, and has to be better than
MAJORITY, ORACLE = "majority", "oracle"
COLUMNS = ("accuracy", "macro_f1", "valence_accuracy", "nll", "ece_answers", "js")  # of the table of all of them


def name_of(key: str) -> str:
    return "majority class" if key == MAJORITY else key.replace("_", " ")
