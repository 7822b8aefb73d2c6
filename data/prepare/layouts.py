"""Where the published annotations of other data sets keep image, emotion, text, votes and split.

Sources of the layouts: Affection: the authors' description of its two CSV files (Achlioptas et al., CVPR 2023). EmoArt:
Annotation.json of EmoArt-130k and EmoArt-5k (Zhang et al., ACM MM 2025). EmoSet: the authors' description and loader of
EmoSet-118K (Yang et al., ICCV 2023), whose lists are also in use without the picture's id. Flickr_LDL and Twitter_LDL
(Yang et al., AAAI 2017): ground_truth.txt, a line of votes per picture below the names of the emotions. MultiEmo-Bench
(Chen et al., 2026): not confirmed, so votes are read in the forms that such files have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.progress import progress
from data.emotions import EMOTIONS
from data.readers.annotations import image_path, load_json, object_of, read_text
from data.readers.records import load
from data.readers.table import column_of, records, separated

MIKELS = EMOTIONS[:8]
EMOART = (
    *("excited", "happy", "glad", "calm", "contentment", "aroused"),
    *("alarmed", "annoyed", "frustrated", "bored", "sad", "tired"),
)
ATTRIBUTES = ("brightness", "colorfulness", "scene", "facial_expression", "human_action")  # of EmoSet
BROKEN = "broken"  # key of a record that stands for one that cannot be read: why

Records = Iterator[tuple[str, Mapping[str, object]]]  # place, for messages, and record


class Layout(NamedTuple):
    """Keys of a record; that of an object in an object is written a.b.

    Args:
        labels: of the data set; `others` are further spellings.
        read: yields the records of the file (or folder); raises UserError for one of another kind.
        image: keys whose values, joined by "/", are the name of the picture.
        emotion: "" if there is a number of votes under each label instead.
        keep: keys that are copied into the entry, by their name there.
        repeated: a picture has a record per annotator.
    """

    summary: str
    file: str
    labels: tuple[str, ...]
    read: Callable[[Path], Records]
    image: tuple[str, ...]
    emotion: str = ""
    text: str = ""
    split: str = ""
    keep: Mapping[str, str] = {}
    repeated: bool = False
    others: Mapping[str, str] = {}


def value_at(record: object, key: str) -> object:
    """Return the value under a.b.c, None if there is none."""
    for part in key.split("."):
        record = record.get(part) if isinstance(record, Mapping) else None
    return record


def _table(path: Path) -> Records:
    return ((f"{path.name}, line {line}", record) for line, record in records(path))


def _objects(path: Path) -> Records:
    data = load_json(path)
    if not isinstance(data, list | dict):
        raise UserError(f"{path}: must be a list of objects, as EmoArt's Annotation.json")
    for i, record in enumerate(data.values() if isinstance(data, dict) else data):
        yield f"{path.name}: [{i}]", record if isinstance(record, dict) else {BROKEN: "not an object"}


def _votes(path: Path) -> Records:
    text = read_text(path)
    if text.lstrip()[:1] in ("[", "{"):
        yield from _json_votes(path)
        return
    if not re.search("[\t;,]", text.partition("\n")[0]):  # as published, between spaces
        text = "\n".join("\t".join(line.split()) for line in text.splitlines())
    for line, record in separated(text, path):
        image = record.get("images-name", record.get(column_of("image", record)))
        yield f"{path.name}, line {line}", {**record, "image": image}


def _json_votes(path: Path) -> Records:
    """Yield objects with the votes of an object inside them; an emotion that is not named has none."""
    found = load(path)
    if not isinstance(found, dict):
        each = found.entries
    else:
        each = [(f"{path}: {name!r}", {"image": name, **object_of(value, where=name)}) for name, value in found.items()]
    for place, record in each:
        inside = next((value for value in record.values() if isinstance(value, dict)), {})
        yield place, {**dict.fromkeys(MIKELS, 0), "image": record.get(column_of("image", record)), **record, **inside}


def _emoset(root: Path) -> Records:
    """Yield the entries of train.json, val.json and test.json, each with the attributes of its annotation file."""
    for split in ("train", "val", "test"):
        data = load_json(root / f"{split}.json")
        if not isinstance(data, list):
            raise UserError(f"{root / split}.json: must be a list, as in EmoSet-118K")
        with progress(len(data), f"{split}.json", unit="picture") as bar:
            for i, entry in enumerate(data):
                yield f"{split}.json: [{i}]", _emoset_record(root, split, entry)
                bar.update()


def _emoset_record(root: Path, split: str, entry: object) -> dict[str, object]:
    if not isinstance(entry, list) or len(entry) not in (3, 4) or not all(isinstance(text, str) for text in entry):
        return {BROKEN: "not [emotion, id, picture, annotation]"}
    try:
        found = object_of(load_json(image_path(root, entry[-1], where="its annotation")), where=entry[-1])
    except UserError as error:
        return {BROKEN: f"annotation: {error}"}
    return {**found, "emotion": entry[0], "picture": entry[-2], "split": split}


LAYOUTS = {
    "affection": Layout(
        "Affection: photographs with the nine emotions of ArtEmis and explanations",
        "affection_preprocessed_public_version_0.csv (with its split), or the raw one",
        EMOTIONS,
        _table,
        image=("dataset", "image_name"),
        emotion="emotion",
        text="utterance",
        split="split",
        keep={"dataset": "dataset"},
        repeated=True,
    ),
    "emoart": Layout(
        "EmoArt: art with 12 emotions, valence, arousal and GPT-4o's explanations",
        "Annotation.json",
        EMOART,
        _objects,
        image=("image_path",),
        emotion="description.third_section.dominant_emotion",
        text="description.second_section.emotional_impact",
        keep={
            "valence": "description.third_section.emotional_valence",
            "arousal": "description.third_section.emotional_arousal_level",
        },
        others={"content": "contentment"},
    ),
    "emoset": Layout(
        "EmoSet-118K: photographs with 8 emotions and attributes",
        "its folder, with train.json, val.json, test.json, annotation and image",
        MIKELS,
        _emoset,
        image=("picture",),
        emotion="emotion",
        split="split",
        keep={name: name for name in ATTRIBUTES},
    ),
    "ldl": Layout(
        "Flickr_LDL, Twitter_LDL: photographs with numbers of votes for 8 emotions",
        "ground_truth.txt, or a CSV with a column of votes for each emotion",
        MIKELS,
        _votes,
        image=("image",),
    ),
}
LAYOUTS["multiemo"] = LAYOUTS["ldl"]._replace(
    summary="MultiEmo-Bench: photographs with numbers of votes for 8 emotions, several by each annotator",
    file="a CSV with a column of votes for each emotion, or JSON: image → {emotion: votes}, or a list of objects",
)
