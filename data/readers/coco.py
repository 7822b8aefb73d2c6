"""COCO captions (Chen et al., 2015): `captions_*.json`, or the split file of Karpathy and Fei-Fei (2015)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from common.errors import UserError
from data.readers.annotations import (
    guess_format,
    id_of,
    image_path,
    list_of,
    load_json,
    object_of,
    text_of,
    tolerated,
    wrong_format,
)
from data.samples import Samples
from data.schema import Sample

# Which images of a split file belong to which part of the configuration; "restval" is trained on by all who use it.
KARPATHY_SPLITS = {"train_ds": ("train", "restval"), "validation_ds": ("val",), "test_ds": ("test",)}

SPLIT_NAMES = tuple(name for names in KARPATHY_SPLITS.values() for name in names)


def read_coco(
    json_path: Path,
    visual_dir: Path,
    *,
    split: str = "train_ds",
    captions_per_image: int = 5,
    faults: list[str] | None = None,
) -> Samples:
    """One sample per image that has captions, in the order of `images`, without emotions.

    The first `captions_per_image` captions of an image are kept; empty ones do not count.

    Args:
        visual_dir: the folder that image names are relative to; nothing is looked for in it.
        split: train_ds, validation_ds or test_ds; has a say with a split file only.
        faults: gets the faults of single entries, which are then left out; without it the first one is raised.

    Raises:
        UserError: a fault in the file, named by file, image id and key.
    """
    data = load_json(json_path)
    if isinstance(data, dict) and {"images", "annotations"} <= data.keys():
        entries = _annotated(data, json_path, faults)
    elif guess_format(data) == "coco":
        entries = _split_file(data, json_path, KARPATHY_SPLITS[split], visual_dir, faults)
    else:
        raise wrong_format(json_path, data, wanted="coco")
    samples = Samples.pack(_samples(entries, json_path, visual_dir, captions_per_image, faults))
    if not samples and not faults:
        raise UserError(f"{json_path}: none of its {len(data['images'])} images has a caption{_of(data, split)}")
    return samples


def _of(data: Mapping[str, object], split: str) -> str:
    return "" if "annotations" in data else f" and 'split' {' or '.join(KARPATHY_SPLITS[split])}"


def _samples(
    entries: Iterator[tuple[str, str, list[str]]],
    json_path: Path,
    visual_dir: Path,
    captions_per_image: int,
    faults: list[str] | None,
) -> Iterator[Sample]:
    for id, name, captions in entries:
        path = None
        with tolerated(faults):
            path = image_path(visual_dir, name, where=f"{json_path}: image {id!r}")
        if path is not None and captions:
            yield Sample(id=id, path=path, texts=tuple(captions[:captions_per_image]))


def _annotated(
    data: dict[str, object], json_path: Path, faults: list[str] | None
) -> Iterator[tuple[str, str, list[str]]]:
    """Id, file name and captions of every image of a captions file."""
    names = _file_names(data, json_path, faults)
    captions = _captions(data, json_path, names, faults)
    return ((id, name, captions.get(id, [])) for id, name in names.items())


def _file_names(data: dict[str, object], json_path: Path, faults: list[str] | None) -> dict[str, str]:
    """File name by image id."""
    names: dict[str, str] = {}
    for i, entry in enumerate(list_of(data, "images", where=str(json_path))):
        where = f"{json_path}: images[{i}]"
        with tolerated(faults):
            record = object_of(entry, where=where)
            id = id_of(record, "id", where=where)
            if id in names:
                raise UserError(f"{where}: the image id {id!r} stands twice; keep one of them")
            names[id] = text_of(record, "file_name", where=f"{json_path}: image {id!r}")
    return names


def _captions(
    data: dict[str, object], json_path: Path, known: dict[str, str], faults: list[str] | None
) -> dict[str, list[str]]:
    """Captions by image id, for the images that have any."""
    captions: defaultdict[str, list[str]] = defaultdict(list)
    for i, entry in enumerate(list_of(data, "annotations", where=str(json_path))):
        where = f"{json_path}: annotations[{i}]"
        with tolerated(faults):
            record = object_of(entry, where=where)
            id = id_of(record, "image_id", where=where)
            if id not in known:
                raise UserError(f"{where}: 'image_id' is {id!r}, which is not the id of any of 'images'")
            if caption := text_of(record, "caption", where=f"{where}, image {id!r}").strip():
                captions[id].append(caption)
    return captions


def _split_file(
    data: dict[str, object], json_path: Path, wanted: tuple[str, ...], visual_dir: Path, faults: list[str] | None
) -> Iterator[tuple[str, str, list[str]]]:
    """Id, file name and captions of the `wanted` images of a split file; its names are below `filepath` or not."""
    seen: set[str] = set()
    for i, entry in enumerate(list_of(data, "images", where=str(json_path))):
        where = f"{json_path}: images[{i}]"
        with tolerated(faults):
            record = object_of(entry, where=where)
            part = text_of(record, "split", where=where)
            if part not in SPLIT_NAMES:
                raise UserError(f"{where}: 'split' is {part!r}, which is none of {', '.join(SPLIT_NAMES)}")
            if part not in wanted:
                continue
            id = id_of(record, "cocoid" if "cocoid" in record else "imgid", where=where)
            if id in seen:
                raise UserError(f"{where}: the image id {id!r} stands twice; keep one of them")
            seen.add(id)
            sentences = list_of(record, "sentences", where=where)
            captions = [
                text_of(object_of(sentence, where=where), "raw", where=f"{where}, 'sentences[{j}]'").strip()
                for j, sentence in enumerate(sentences)
            ]
            yield id, _split_file_name(record, visual_dir, where=where), [text for text in captions if text]


def _split_file_name(record: Mapping[str, object], visual_dir: Path, *, where: str) -> str:
    name = text_of(record, "filename", where=where)
    part = text_of(record, "filepath", where=where) if "filepath" in record else ""
    is_folder = os.path.isdir(visual_dir / part)  # noqa: PTH112 -- Path.is_dir raises for a name that is too long
    return f"{part}/{name}" if part and ".." not in part and is_folder else name
