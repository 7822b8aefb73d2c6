"""Read COCO captions (Chen et al., 2015): `captions_*.json`, or the split file of Karpathy and Fei-Fei (2015)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from common.errors import UserError
from data.readers.annotations import (
    collect_faults,
    guess_format,
    id_of,
    image_path,
    list_of,
    load_json,
    object_of,
    text_of,
    wrong_format,
)
from data.samples import Samples
from data.schema import Sample

# The images of a split file by split of the configuration; "restval" is training data in all published work.
KARPATHY_SPLITS = {"train_ds": ("train", "restval"), "validation_ds": ("val",), "test_ds": ("test",)}
SPLIT_NAMES = tuple(name for names in KARPATHY_SPLITS.values() for name in names)
TRAINING_CAPTIONS = 5
LEFT_OUT = ("is_rejected", "is_precanned")  # VizWiz's captions that are spam, or one of its ready-made sentences


def read_coco(
    json_path: Path,
    visual_dir: Path,
    *,
    split: str = "train_ds",
    faults: list[str] | None = None,
) -> Samples:
    """Return one sample per image that has captions, in the order of `images`, without emotions.

    Args:
        visual_dir: the folder that image names are relative to; the images need not exist.
        split: train_ds, validation_ds or test_ds: the images of a split file. An image is trained on by its first
            TRAINING_CAPTIONS captions, and scored against all, as by coco-caption.
        faults: collects the faults of single entries, which are then skipped; without it the first is raised.

    Raises:
        UserError: a fault in the file; names the file, the image id and the key.
    """
    data = load_json(json_path)
    if isinstance(data, dict) and {"images", "annotations"} <= data.keys():
        entries = _annotated(data, json_path, faults)
    elif guess_format(data) == "coco":
        entries = _split_file(data, json_path, KARPATHY_SPLITS[split], visual_dir, faults)
    else:
        raise wrong_format(json_path, data, wanted="coco")

    def samples() -> Iterator[Sample]:
        for id, name, captions in entries:
            with collect_faults(faults):
                path = image_path(visual_dir, name, where=f"{json_path}: image {id!r}")
                if captions:
                    used = captions[:TRAINING_CAPTIONS] if split == "train_ds" else captions
                    yield Sample(id=id, path=path, texts=tuple(used))

    found = Samples.pack(samples())
    if not found and not faults:
        part = "" if "annotations" in data else f" and 'split' {' or '.join(KARPATHY_SPLITS[split])}"
        raise UserError(f"{json_path}: none of its {len(data['images'])} images has a caption{part}")
    return found


def _annotated(
    data: dict[str, object], json_path: Path, faults: list[str] | None
) -> Iterator[tuple[str, str, list[str]]]:
    """Yield id, file name and captions of every image of a captions file."""
    names: dict[str, str] = {}  # by image id
    for i, entry in enumerate(list_of(data, "images", where=str(json_path))):
        where = f"{json_path}: images[{i}]"
        with collect_faults(faults):
            record = object_of(entry, where=where)
            id = id_of(record, "id", where=where)
            if id in names:
                raise UserError(f"{where}: the image id {id!r} appears twice; keep one of them")
            names[id] = text_of(record, "file_name", where=f"{json_path}: image {id!r}")
    captions: defaultdict[str, list[str]] = defaultdict(list)
    for i, entry in enumerate(list_of(data, "annotations", where=str(json_path))):
        where = f"{json_path}: annotations[{i}]"
        with collect_faults(faults):
            record = object_of(entry, where=where)
            id = id_of(record, "image_id", where=where)
            if id not in names:
                raise UserError(f"{where}: 'image_id' is {id!r}, which is not the id of an image in 'images'")
            if any(record.get(key) for key in LEFT_OUT):
                continue
            if caption := text_of(record, "caption", where=f"{where}, image {id!r}").strip():
                captions[id].append(caption)
    for id, name in names.items():
        yield id, name, captions[id]


def _split_file(
    data: dict[str, object], json_path: Path, wanted: tuple[str, ...], visual_dir: Path, faults: list[str] | None
) -> Iterator[tuple[str, str, list[str]]]:
    """Yield id, file name and captions of the images in the `wanted` parts of a split file."""
    seen: set[str] = set()
    for i, entry in enumerate(list_of(data, "images", where=str(json_path))):
        where = f"{json_path}: images[{i}]"
        with collect_faults(faults):
            record = object_of(entry, where=where)
            part = text_of(record, "split", where=where)
            if part not in SPLIT_NAMES:
                raise UserError(f"{where}: 'split' is {part!r}, not one of {', '.join(SPLIT_NAMES)}")
            if part not in wanted:
                continue
            id = id_of(record, "cocoid" if "cocoid" in record else "imgid", where=where)
            if id in seen:
                raise UserError(f"{where}: the image id {id!r} appears twice; keep one of them")
            seen.add(id)
            captions = [
                text_of(object_of(sentence, where=where), "raw", where=f"{where}, 'sentences[{j}]'").strip()
                for j, sentence in enumerate(list_of(record, "sentences", where=where))
            ]
            name = text_of(record, "filename", where=where)
            folder = text_of(record, "filepath", where=where) if "filepath" in record else ""
            # The folder may be missing on disk. Path.is_dir raises for a name that is too long.
            if folder and ".." not in folder and os.path.isdir(visual_dir / folder):  # noqa: PTH112
                name = f"{folder}/{name}"
            yield id, name, [text for text in captions if text]
