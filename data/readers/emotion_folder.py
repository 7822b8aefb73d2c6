"""Read images in folders named after their emotion: FI, EmoSet, Emotion6, Flickr, Instagram, ArtPhoto, Abstract.

    ROOT/train/joy/…    ROOT/val/joy/…    ROOT/test/joy/…        visual_dir of a split is the folder train, val or test

Or in the lists of EmoSet-118K (Yang et al., ICCV 2023), with visual_dir=ROOT and json_path=ROOT/train.json:

    [["joy", "image/joy/joy_00001.jpg", "annotation/joy/joy_00001.json"], …]

(or with the id of the picture before its path, as its own code reads them)

These data sets have no explanations: each image has one label and an empty text.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from common.errors import UserError
from common.reading import expand_user
from data.emotions import label_set, normalize_label, one_hot
from data.image_files import LINK, has_images, id_of, images_in
from data.readers.annotations import collect_faults, image_path, load_json, wrong_format
from data.samples import Samples
from data.schema import Sample, Skipped
from data.split_names import NAMES, SPELLINGS, VAL

SPLITS = ("train_ds", "validation_ds", "test_ds")
VALIDATION = (VAL, *SPELLINGS[VAL])  # accepted folder names
NOT_EMOTIONS = (".", "__", "@")  # prefixes of folders made by other programs: .cache, __MACOSX, @eaDir


@dataclass(frozen=True, slots=True)
class Source:
    """The image folder of a split, and its JSON list if it has one."""

    folder: Path  # absolute
    json_path: Path | None = None
    follow_links: bool = False  # dataset.follow_links

    def __str__(self) -> str:
        return str(self.json_path or self.folder)


def read_emotion_folder(
    dataset: Mapping, split: str, *, faults: list[str] | None = None
) -> tuple[Samples, list[Skipped]]:
    """Return the samples of one split, sorted by id or in the order of the JSON file, and the links that
    are not followed.

    An id is SPLIT/EMOTION/FILE (train/joy/a.jpg), or the path in the JSON file. The labels are dataset.labels, or the
    sorted names of the folders. Without its own folder, validation gets dataset.validation_share of the training
    images, see `hold_out`.

    Args:
        dataset: the section `dataset` of the configuration.
        split: train_ds, validation_ds or test_ds.
        faults: collects the faults of single JSON entries, which are then skipped; without it the first is raised.

    Raises:
        UserError: no such folder or file, no emotions in it, or emotions other than the labels.
    """
    source, skipped = find_source(dataset, split) or find_source(dataset, "train_ds"), []
    pictures = list(_listed(source, faults) if source.json_path is not None else _on_disk(source, skipped))
    labels = _labels(dataset, source, sorted({label for label, *_ in pictures}))
    if split != "test_ds" and find_source(dataset, "validation_ds") is None:
        ids = hold_out([(label, id) for label, id, _ in pictures], share=dataset["validation_share"])
        pictures = [found for found in pictures if (found[1] in ids) == (split == "validation_ds")]
        skipped = skipped if split == "train_ds" else []
        if not pictures:
            raise UserError(f"{source}: no emotion has two pictures, so none can be held out for validation")
    found = ((labels.index(label), id, path) for label, id, path in pictures)
    samples = (Sample(id, path, ("",), (index,), one_hot(index, labels)) for index, id, path in found)
    return Samples.pack(samples, labels), skipped


def find_source(dataset: Mapping, split: str) -> Source | None:
    """Return the source of a split; None for validation if no folder is given, or one named val that does not exist.

    Raises:
        UserError: a folder or file is missing or not given.
    """
    files = dataset[split]
    if files["visual_dir"] is None:
        if split == "validation_ds" and files["json_path"] is None:
            return None
        raise UserError(f"dataset.{split}.visual_dir=FOLDER is missing: it has a folder of pictures per emotion")
    folder = expand_user(files["visual_dir"]).absolute()
    if files["json_path"] is None and split == "validation_ds" and folder.name in VALIDATION:
        existing = [path for path in (folder, *map(folder.with_name, VALIDATION)) if path.is_dir()]
        if not existing and folder.parent.is_dir():
            return None
        folder = existing[0] if existing else folder
    if not folder.is_dir():
        raise UserError(f"dataset.{split}.visual_dir: there is no folder {folder}")
    if files["json_path"] is None:
        return Source(folder, follow_links=bool(dataset.get("follow_links")))
    json_path = expand_user(files["json_path"])
    if not json_path.exists():
        raise UserError(f"dataset.{split}.json_path: there is no file {json_path}")
    return Source(folder, json_path, follow_links=bool(dataset.get("follow_links")))


def hold_out(pictures: Sequence[tuple[str, str]], *, share: float) -> set[str]:
    """Return the ids of the training images that are held out for validation, about `share` of each label.

    The choice depends on the digest of an id alone, except that a label with two or more images keeps at least one for
    training and one for validation.

    Args:
        pictures: label and id of each image.
    """
    by_label: dict[str, list[tuple[float, str]]] = {}
    for label, id in pictures:
        digest = blake2b(id.encode(), digest_size=8, person=b"validation").digest()
        by_label.setdefault(label, []).append((int.from_bytes(digest) / 2**64, id))
    found: set[str] = set()
    for places in by_label.values():
        places.sort()
        count = sum(place < share for place, _ in places)
        count = min(max(count, 1), len(places) - 1)
        found.update(id for _, id in places[:count])
    return found


def _on_disk(source: Source, skipped: list[Skipped]) -> list[tuple[str, str, Path]]:
    """Return label, id and path of each image, sorted by id; `skipped` collects the links out of the folder."""
    found, root = [], Path(os.path.realpath(source.folder))

    def id_in_split(path: Path) -> str:
        return id_of((source.folder.name / path.relative_to(root)).as_posix())

    for label, folder in _folders(source).items():
        pictures, links, _ = images_in(folder, root=root, follow_links=source.follow_links)
        found += [(label, id_in_split(path), path) for path in pictures]
        skipped += [Skipped(id_in_split(path), path, LINK) for path in links]
    return sorted(found, key=lambda picture: picture[1])


def _folders(source: Source) -> dict[str, Path]:
    """Return the folder of each emotion of a split, by label.

    Raises:
        UserError: no such folder, a name that cannot be a label, or a link to a folder outside.
    """
    root = Path(os.path.realpath(source.folder))
    try:
        folders = [Path(entry) for entry in os.scandir(root) if entry.is_dir()]
    except OSError as error:
        raise UserError(f"{source.folder}: the folder cannot be read ({error.strerror or error})") from None
    folders = [folder for folder in folders if not folder.name.startswith(NOT_EMOTIONS)]
    if folders and all(folder.name in NAMES for folder in folders):
        raise UserError(f"{source.folder} contains the splits: set visual_dir to the folder of one, {folders[0]}")
    for folder in folders:
        if not source.follow_links and not Path(os.path.realpath(folder)).is_relative_to(root):
            raise UserError(
                f"{folder} is a symbolic link out of {root}; put the pictures themselves there, or set "
                "dataset.follow_links=true if you trust the links"
            )
    found = sorted(folder for folder in folders if has_images(folder, follow_links=source.follow_links))
    if not found:
        raise UserError(f"{source.folder}: it contains no folder of pictures that is named after an emotion")
    label_set([folder.name for folder in found], where=str(source.folder))
    return {normalize_label(folder.name): folder for folder in found}


def _listed(source: Source, faults: list[str] | None) -> Iterator[tuple[str, str, Path]]:
    """Yield label, id and path of each image of a JSON list; the images need not exist."""
    data, seen = load_json(source.json_path), set()
    if not isinstance(data, list) or not data:
        raise wrong_format(source.json_path, data, wanted="emotion_folder")
    for i, entry in enumerate(data):
        where = f"{source.json_path}: [{i}]"
        with collect_faults(faults):
            name = entry[2 if len(entry) == 4 else 1] if isinstance(entry, list) and len(entry) > 1 else None
            if not isinstance(name, str) or not isinstance(entry[0], str):
                raise UserError(f"{where}: must be a list with an emotion and the path of a picture")
            path = image_path(Path(os.path.realpath(source.folder)), name, where=where)
            if path in seen:
                raise UserError(f"{where}: the picture {name!r} appears twice; keep one of them")
            seen.add(path)
            yield normalize_label(entry[0]), name, path


def _labels(dataset: Mapping, source: Source, own: Sequence[str]) -> tuple[str, ...]:
    """Return dataset.labels, or the split's `own` labels if they are those of every split that exists.

    Raises:
        UserError: the split has an emotion that is not in dataset.labels, or another split has other emotions.
    """
    if dataset.get("labels") is not None:
        labels = label_set(dataset["labels"], where="dataset.labels")
        if strange := [name for name in own if name not in labels]:
            raise UserError(
                f"{source}: {', '.join(map(repr, strange))} {'is' if len(strange) == 1 else 'are'} not in "
                f"dataset.labels ({', '.join(labels)}); set dataset.labels=[{','.join(own)}] to use the emotions of "
                "these folders"
            )
        return labels
    for split in (name for name in SPLITS if name in dataset):
        other = None
        with suppress(UserError):  # a split that is not used need not exist
            other = find_source(dataset, split)
        if other is None or other == source:
            continue
        theirs = {*_folders(other)} if other.json_path is None else {label for label, *_ in _listed(other, [])}
        if odd := sorted({*own} ^ theirs):
            has, lacks = (source, other) if odd[0] in own else (other, source)
            raise UserError(
                f"{has} has pictures of {odd[0]!r} and {lacks} has none ({len(odd)} such emotions); set dataset.labels="
                f"[{','.join(sorted({*own} | theirs))}] to use the emotions of both"
            )
    return label_set(own, where=str(source))
