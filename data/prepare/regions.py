"""Prepare COCO's captions with the regions that they name, as picture rows.

    python -m data.prepare regions --captions captions_train2014.json --instances instances_train2014.json \\
        --out rows_train.jsonl [--prefix train2014]

A caption names the objects whose category is in it, in the singular or plural ("two dogs" names every dog); their
boxes are its boxes, and it has an empty list if it names none. The objects of a picture are all of the instances file,
crowds too. Boxes without area and pictures without a caption are left out and counted. Images are named as in the
files, after the folder --prefix if there is one.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from common.errors import UserError, shorten
from common.files import to_json, write_text
from data.prepare.coco_json import Record, entries, load_lists
from data.readers.annotations import id_of, text_of, value_of
from data.readers.picture_rows import Row

PLURALS = {"person": ("people",)}  # those that no rule gives
DIGITS = 4  # of a share of the picture

Box = tuple[float, float, float, float]


def add_parser(commands: argparse._SubParsersAction) -> None:
    summary = "COCO captions and the boxes of what they name: picture rows for training"
    form = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("regions", help=summary, description=__doc__, formatter_class=form)
    for name in ("captions", "instances"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="JSON", help=f"COCO's {name} file")
    parser.add_argument("--out", type=Path, required=True, metavar="JSONL", help="output file")
    parser.add_argument("--prefix", default="", metavar="FOLDER", help="of the pictures, relative to visual_dir")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status.

    Raises:
        UserError: an input file or the output file cannot be used.
    """
    instances = load_lists(arguments.instances, _without_outline)
    captions = _captions(arguments.captions)
    counts: Counter[str] = Counter()
    rows = _rows(instances, arguments.instances, captions, counts, prefix=arguments.prefix)
    write_text(arguments.out, (to_json(row) for row in rows))
    print(f"{arguments.out}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
    return 0


def _without_outline(value: Record) -> Record:
    value.pop("segmentation", None)
    return value


def _captions(path: Path) -> dict[str, list[str]]:
    """Return the captions of each picture by its id."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for where, record in entries(load_lists(path), "annotations", path):
        if caption := text_of(record, "caption", where=where).strip():
            found[id_of(record, "image_id", where=where)].append(caption)
    return found


def _rows(
    instances: Record, path: Path, captions: Mapping[str, Sequence[str]], counts: Counter[str], *, prefix: str
) -> Iterator[Row]:
    """Yield the rows of the pictures that have a caption, in the order of the file, and count what is in them."""
    names = {
        id_of(record, "id", where=where): text_of(record, "name", where=where)
        for where, record in entries(instances, "categories", path)
    }
    boxes, find = _boxes(instances, path, names), CategoryNames(names.values())
    for where, record in entries(instances, "images", path):
        id, name = id_of(record, "id", where=where), text_of(record, "file_name", where=where)
        if id not in captions:
            counts["pictures without a caption left out"] += 1
            continue
        objects = _objects(boxes.get(id, ()), record, where)
        texts = [_text(caption, find(caption), objects) for caption in captions[id]]
        counts.update(pictures=1, captions=len(texts), objects=len(objects))
        counts["captions that name objects"] += sum(bool(text["boxes"]) for text in texts)
        counts["boxes without area left out"] += len(boxes.get(id, ())) - len(objects)
        yield {"id": id, "image": f"{prefix}/{name}" if prefix else name, "texts": texts, "objects": objects}
    if not counts["pictures"]:
        raise UserError(
            f"{path}: none of its pictures has a caption; give --captions and --instances of the same split"
        )


def _boxes(instances: Record, path: Path, names: Mapping[str, str]) -> dict[str, list[tuple[str, Box]]]:
    """Return category and box (x, y, width, height in pixels) of the objects of each picture by its id."""
    found: defaultdict[str, list[tuple[str, Box]]] = defaultdict(list)
    for where, record in entries(instances, "annotations", path):
        category, box = id_of(record, "category_id", where=where), value_of(record, "bbox", where=where)
        if category not in names:
            raise UserError(f"{where}: the 'category_id' {category!r} is not in 'categories'")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, int | float) for value in box):
            raise UserError(f"{where}: 'bbox' must be [x, y, width, height] in pixels, not {shorten(box)}")
        found[id_of(record, "image_id", where=where)].append((names[category], tuple(box)))
    return found


def _objects(boxes: Iterable[tuple[str, Box]], picture: Record, where: str) -> list[Row]:
    """Return the objects of a picture with boxes in shares of it, clipped to it; those without area are left out."""
    size = [value_of(picture, key, where=where) for key in ("width", "height")]
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise UserError(f"{where}: 'width' and 'height' must be positive whole numbers, not {shorten(size)}")
    found = []
    for name, (x, y, width, height) in boxes:
        pixels = zip((x, y, x + width, y + height), size * 2, strict=True)
        left, top, right, bottom = (round(min(max(value / side, 0.0), 1.0), DIGITS) for value, side in pixels)
        if left < right and top < bottom:
            found.append({"name": name, "box": [left, top, right, bottom]})
    return found


def _text(caption: str, named: set[str], objects: Sequence[Row]) -> Row:
    return {"text": caption, "boxes": [item["box"] for item in objects if item["name"] in named]}


class CategoryNames:
    """Finds the category names in a text, at word boundaries, whatever their case and number.

    The longest name counts: "a hot dog" names no dog.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._owners = {form: name for name in names if name.strip() for form in (*_plurals(name), name.lower())}
        forms = sorted(self._owners, key=len, reverse=True)
        self._pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, forms))})\b")

    def __call__(self, text: str) -> set[str]:
        return {self._owners[form] for form in self._pattern.findall(text.lower())}


def _plurals(name: str) -> list[str]:
    """Return the plural forms of a name, inflected in its last word."""
    from lemminflect import getInflection  # takes half a second

    *first, last = name.lower().split()
    forms = (*getInflection(last, "NNS"), *PLURALS.get(last, ()))
    return [" ".join([*first, form]) for form in forms]
