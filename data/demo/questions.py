"""Write the demo as picture rows (data/readers/picture_rows.py): questions with answers, texts with boxes, objects.

No answer is right for more than half of the questions of a type, so that a model needs the picture: "in the middle" is
told apart from "filling the canvas", and most pictures with one subject have no question of type "count". Nouns in
questions are in the singular, whatever the picture shows; "count" has none, because 3 or 4 depends on the subject.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from common.errors import UserError
from common.files import to_json, write_text
from data.demo.facts import PHRASES
from data.demo.scenes import SPLITS, stream
from data.demo.sentences import COLORS, NOUNS, STROKES
from data.readers.annotations import load_json, object_of, text_of, texts_of
from data.readers.facts import Box, Facts, read_facts
from data.readers.picture_rows import ANSWERS

QUESTIONS = {
    "what": (
        "what is in the picture?",
        "what did the artist paint?",
        "which thing is painted?",
        "what is the subject of this painting?",
    ),
    "where": (
        "where did the artist put the {noun}?",
        "where in the picture can one find the {noun}?",
        "in which part of the picture can the {noun} be seen?",
    ),
    "colors": (
        "which colors does the picture have?",
        "what are the colors of this painting?",
        "in which colors is it painted?",
    ),
    "count": (
        "how many times did the artist paint the subject?",
        "how many times can the subject be seen?",
        "how often does the picture show its subject?",
    ),
    "brushwork": (
        "how was the paint put on?",
        "what brushwork does the painting have?",
        "which kind of strokes can be seen?",
    ),
}
CLOSE = "close"  # the composition whose subject fills the canvas
WHERE = {"left": "on the left", "middle": "in the middle", "right": "on the right", "everywhere": "everywhere"}
FILLING = "filling the canvas"
SINGLE_COUNTED = 0.15  # share of the pictures with one subject that have a question of type "count"


def write_rows(root: Path, seed: int = 2021) -> None:
    """Write rows_{train,val,test}.jsonl and answers.json to the folder `root` of a demo, unless all four exist.

    Images are named relative to root/images. The phrasings follow from (seed, split, index).

    Raises:
        UserError: `root` contains no demo, or cannot be written.
    """
    files = {split: root / f"rows_{split}.jsonl" for split in SPLITS}
    if all(path.exists() for path in (*files.values(), root / ANSWERS)):
        return
    if not (root / "facts.json").is_file():
        raise UserError(f"{root} contains no demo; write it with `python -m data.demo --root {root}`")
    facts = read_facts(root / "facts.json")
    for split, path in files.items():
        rows = _rows(root / f"artEmisX_{split}.json", facts, split=split, seed=seed)
        write_text(path, (to_json(row) for row in rows))
    write_text(root / ANSWERS, to_json(vocabulary(facts), indent=1))


def vocabulary(facts: Facts) -> list[str]:
    """Return every answer that a demo can have, in a fixed order."""
    counts = sorted({len(boxes) for boxes in facts.boxes.values()})
    nouns = [one[0] for one, _ in NOUNS.values()]
    phrases = [phrases[0] for kind in (COLORS, STROKES) for phrases in kind.values()]
    return [*nouns, *WHERE.values(), FILLING, *phrases, *map(str, counts)]


def _rows(path: Path, facts: Facts, *, split: str, seed: int) -> list[dict[str, Any]]:
    """Return the row of every picture in the annotations of a split."""
    rows = []
    for index, (id, record) in enumerate(object_of(load_json(path), where=str(path)).items()):
        where = f"{path}: image {id!r}"
        entry, shown, boxes = object_of(record, where=where), facts.images.get(id), facts.boxes.get(id)
        if not shown or not boxes:
            raise UserError(f"{where}: {facts.path} has no boxes of it; write the demo again with python -m data.demo")
        shown = {kind: values[0] for kind, values in shown.items()}
        r = stream(seed, split, index, "questions")
        name = NOUNS[shown["subject"]][0][0]
        row = {"id": id, "image": text_of(entry, "image_name", where=where)}
        row["questions"] = _questions(id, shown, len(boxes), r)
        row["texts"] = _texts(shown["subject"], texts_of(entry, "explanations", where=where), boxes)
        row["objects"] = [{"name": name, "box": box} for box in boxes]
        rows.append(row)
    return rows


def _questions(id: str, shown: Mapping[str, str], count: int, r: Random) -> list[dict[str, Any]]:
    """Return a question of each type, with one answer of score 1."""
    answers = {
        "what": NOUNS[shown["subject"]][0][0],
        "where": FILLING if shown["composition"] == CLOSE else WHERE[shown["place"]],
        "colors": COLORS[shown["palette"]][0],
        "count": str(count),
        "brushwork": STROKES[shown["brushwork"]][0],
    }
    questions = []
    for kind, answer in answers.items():
        noun = r.choice((*NOUNS[shown["subject"]][0], "subject"))
        text = r.choice(QUESTIONS[kind]).format(noun=noun)
        counted = r.random() < SINGLE_COUNTED
        if kind != "count" or count > 1 or counted:
            questions.append({"id": f"{id}-{kind}", "question": text, "type": kind, "answers": {answer: 1.0}})
    return questions


def _texts(subject: str, explanations: Sequence[str], boxes: Sequence[Box]) -> list[dict[str, Any]]:
    """Return "a painting of …" and the different explanations that name the subject, with the boxes of the subject."""
    noun = NOUNS[subject][len(boxes) > 1][0]
    plural = len(boxes) > 1 or noun.split(" of ")[0].endswith("s")
    phrases = "|".join(map(re.escape, PHRASES["subject"][subject]))
    naming = re.compile(rf"\b(?:{phrases})\b")
    found = dict.fromkeys([f"a painting of {noun if plural else f'a {noun}'}", *filter(naming.search, explanations)])
    return [{"text": text, "boxes": boxes} for text in found]
