"""COCO captions (Chen et al., 2015): `captions_*.json` with the image folder beside it."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from data.annotations import id_of, image_path, list_of, load_json, object_of, require_folder, text_of, wrong_format
from data.schema import Sample
from errors import UserError


def read_coco(json_path: Path, visual_dir: Path, *, captions_per_image: int = 5) -> list[Sample]:
    """One Sample per image that has captions, in the order of `images`, without emotions.

    The first `captions_per_image` captions of an image in the order of `annotations` are kept; empty ones do not count.

    Raises:
        UserError: a fault in the file, named by file, image id and key.
    """
    data = load_json(json_path)
    if not isinstance(data, dict) or not {"images", "annotations"} <= data.keys():
        raise wrong_format(json_path, data, wanted="coco")
    require_folder(visual_dir)
    names = _file_names(data, json_path)
    captions = _captions(data, json_path, known=names)
    samples = [
        Sample(
            id=id,
            path=image_path(visual_dir, name, where=f"{json_path}: image {id!r}"),
            texts=tuple(captions[id][:captions_per_image]),
        )
        for id, name in names.items()
        if id in captions
    ]
    if not samples:
        raise UserError(f"{json_path}: none of its {len(names)} images has a caption")
    return samples


def _file_names(data: dict[str, object], json_path: Path) -> dict[str, str]:
    """File name by image id."""
    names: dict[str, str] = {}
    for i, entry in enumerate(list_of(data, "images", where=str(json_path))):
        where = f"{json_path}: images[{i}]"
        record = object_of(entry, where=where)
        id = id_of(record, "id", where=where)
        if id in names:
            raise UserError(f"{where}: the image id {id!r} stands twice; keep one of them")
        names[id] = text_of(record, "file_name", where=f"{json_path}: image {id!r}")
    return names


def _captions(data: dict[str, object], json_path: Path, *, known: dict[str, str]) -> dict[str, list[str]]:
    """Captions by image id, for the images that have any."""
    captions: defaultdict[str, list[str]] = defaultdict(list)
    for i, entry in enumerate(list_of(data, "annotations", where=str(json_path))):
        where = f"{json_path}: annotations[{i}]"
        record = object_of(entry, where=where)
        id = id_of(record, "image_id", where=where)
        if id not in known:
            raise UserError(f"{where}: 'image_id' is {id!r}, which is not the id of any of 'images'")
        if caption := text_of(record, "caption", where=f"{where}, image {id!r}").strip():
            captions[id].append(caption)
    return dict(captions)
