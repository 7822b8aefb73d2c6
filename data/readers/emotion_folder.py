"""Pictures that lie in folders named after their emotion: FI, EmoSet, Emotion6, Flickr, Instagram, ArtPhoto, Abstract.

    ROOT/train/joy/…    ROOT/val/joy/…    ROOT/test/joy/…        visual_dir of a split is the folder train, val or test

Or as EmoSet-118K lists them (Yang et al., ICCV 2023), with visual_dir=ROOT and json_path=ROOT/train.json:

    [["joy", "image/joy/joy_00001.jpg", "annotation/joy/joy_00001.json"], …]

Nobody says why: each picture has one label and an empty text.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from common.errors import UserError
from common.reading import expanded
from data.emotions import as_label, label_set, one_hot
from data.images import has_pictures, pictures_in
from data.readers.annotations import image_path, load_json, tolerated, wrong_format
from data.samples import Samples
from data.schema import Sample, Skipped

SPLITS = ("train_ds", "validation_ds", "test_ds")
VALIDATION = ("val", "validation", "valid")  # what the folder is called
OURS = ("train", "test", *VALIDATION)
NOT_EMOTIONS = (".", "__", "@")  # how folders begin that programs leave behind: .cache, __MACOSX, @eaDir
OUTSIDE = "it is a symbolic link out of the folder"


@dataclass(frozen=True, slots=True)
class Source:
    """Where the pictures of a split are."""

    folder: Path  # absolute
    json_path: Path | None = None

    def __str__(self) -> str:
        return str(self.json_path or self.folder)


def read_emotion_folder(
    dataset: Mapping, split: str, *, faults: list[str] | None = None
) -> tuple[Samples, list[Skipped]]:
    """The pictures of one split, in the order of their ids (of a JSON file: in its order), and the links out of it.

    An id is the path below the folder that the split's folder is in, train/joy/a.jpg, or that in the JSON file. The
    labels are dataset.labels, or else the sorted names of the folders. Where validation has no folder, it gets
    dataset.validation_share of the pictures to train on, see `carved`.

    Args:
        dataset: the section `dataset` of the configuration; split: train_ds, validation_ds or test_ds.
        faults: gets the faults of single entries of a JSON file, which are then left out; without it the first one is
            raised.

    Raises:
        UserError: no such folder or file, no emotions in it, or other emotions than those of the labels.
    """
    source, skipped = find_source(dataset, split) or find_source(dataset, "train_ds"), []
    pictures = list(_listed(source, faults) if source.json_path is not None else _lying(source, skipped))
    labels = _labels(dataset, source, sorted({label for label, *_ in pictures}))
    if split != "test_ds" and find_source(dataset, "validation_ds") is None:
        ids = carved([(label, id) for label, id, _ in pictures], share=dataset["validation_share"])
        pictures = [found for found in pictures if (found[1] in ids) == (split == "validation_ds")]
        skipped = skipped if split == "train_ds" else []
        if not pictures:
            raise UserError(f"{source}: no emotion has two pictures, so none can be kept for validation")
    return Samples.pack((_sample(*picture, labels) for picture in pictures), labels), skipped


def _sample(label: str, id: str, path: Path, labels: Sequence[str]) -> Sample:
    index = labels.index(label)
    return Sample(id, path, ("",), (index,), one_hot(index, labels))


# --- where the pictures are ------------------------------------------------------------------------------------------


def find_source(dataset: Mapping, split: str) -> Source | None:
    """None for validation where there is no folder for it: nothing is named, or a folder called val that is not there.

    Raises:
        UserError: a folder is missing, or not named.
    """
    files = dataset[split]
    if files["visual_dir"] is None:
        if split == "validation_ds" and files["json_path"] is None:
            return None
        raise UserError(f"dataset.{split}.visual_dir=FOLDER is missing: the pictures are in it, by emotion")
    folder = expanded(files["visual_dir"]).absolute()
    if files["json_path"] is None and split == "validation_ds" and folder.name in VALIDATION:
        there = [folder.with_name(name) for name in (folder.name, *VALIDATION) if folder.with_name(name).is_dir()]
        if not there and folder.parent.is_dir():
            return None
        folder = there[0] if there else folder
    if not folder.is_dir():
        raise UserError(f"dataset.{split}.visual_dir: there is no folder {folder}")
    if files["json_path"] is None:
        return Source(folder)
    json_path = expanded(files["json_path"])
    if not json_path.exists():
        raise UserError(f"dataset.{split}.json_path: there is no file {json_path}")
    return Source(folder, json_path)


def carved(pictures: Sequence[tuple[str, str]], *, share: float) -> set[str]:
    """Ids of the pictures that are kept for validation: in each label those with a digest in the first `share` of all.

    Whether a picture is among them depends on its id alone, save that a label of two pictures or more has at least one
    on either side.

    Args:
        pictures: label and id of each.
    """
    by_label: dict[str, list[tuple[float, str]]] = {}
    for label, id in pictures:
        by_label.setdefault(label, []).append((_place(id), id))
    found: set[str] = set()
    for places in by_label.values():
        places.sort()
        count = sum(place < share for place, _ in places)
        count = min(max(count, 1), len(places) - 1)
        found.update(id for _, id in places[:count])
    return found


def _place(id: str) -> float:
    """A number in 0..1 that the id draws."""
    digest = blake2b(id.encode(), digest_size=8, person=b"validation").digest()
    return int.from_bytes(digest) / 2**64


# --- the pictures ----------------------------------------------------------------------------------------------------


def _lying(source: Source, skipped: list[Skipped]) -> Iterator[tuple[str, str, Path]]:
    """Label, id and path of each picture that lies in the folder of its emotion; `skipped` gets the links out of it."""
    found, root = [], Path(os.path.realpath(source.folder))
    for label, folder in _folders(source).items():
        pictures, outside = pictures_in(folder, root=root)
        found += [(label, _id(source.folder.name, root, path), path) for path in pictures]
        skipped += [Skipped(_id(source.folder.name, root, path), path, OUTSIDE) for path in outside]
    yield from sorted(found, key=lambda picture: picture[1])


def _id(split: str, root: Path, path: Path) -> str:
    """Bytes of a name that are no text are escaped, for ids are written into files."""
    inside = path.relative_to(root).as_posix()
    return os.fsencode(f"{split}/{inside}").decode("utf-8", "backslashreplace")


def _folders(source: Source) -> dict[str, Path]:
    """Label and folder of each emotion of a split.

    Raises:
        UserError: there is none; a name that cannot be one; or a folder that is elsewhere.
    """
    root = Path(os.path.realpath(source.folder))
    try:
        folders = [Path(entry) for entry in os.scandir(root) if entry.is_dir()]
    except OSError as error:
        raise UserError(f"{source.folder}: the folder cannot be read ({error.strerror or error})") from None
    folders = [folder for folder in folders if not folder.name.startswith(NOT_EMOTIONS)]
    if folders and all(folder.name in OURS for folder in folders):
        raise UserError(f"{source.folder} holds the splits: visual_dir is the folder of one, {folders[0]}")
    for folder in folders:
        if not Path(os.path.realpath(folder)).is_relative_to(root):
            raise UserError(f"{folder} is a symbolic link out of {root}; put the pictures themselves there")
    full = sorted((folder for folder in folders if has_pictures(folder)), key=lambda f: f.name)
    if not full:
        raise UserError(f"{source.folder}: there is no folder of pictures in it, named after their emotion")
    label_set([folder.name for folder in full], where=str(source.folder))
    return {as_label(folder.name): folder for folder in full}


def _listed(source: Source, faults: list[str] | None) -> Iterator[tuple[str, str, Path]]:
    """The same of a JSON file; whether they are there is not looked at."""
    data, seen = load_json(source.json_path), set()
    if not isinstance(data, list) or not data:
        raise wrong_format(source.json_path, data, wanted="emotion_folder")
    for i, entry in enumerate(data):
        where = f"{source.json_path}: [{i}]"
        with tolerated(faults):
            if not isinstance(entry, list) or len(entry) < 2 or not all(isinstance(text, str) for text in entry[:2]):
                raise UserError(f"{where}: must be a list of an emotion and the path of a picture")
            path = image_path(Path(os.path.realpath(source.folder)), entry[1], where=where)
            if path in seen:
                raise UserError(f"{where}: the picture {entry[1]!r} stands twice; keep one of them")
            seen.add(path)
            yield as_label(entry[0]), entry[1], path


# --- their labels ----------------------------------------------------------------------------------------------------


def _labels(dataset: Mapping, source: Source, own: Sequence[str]) -> tuple[str, ...]:
    """Those of the configuration, or else the split's own, which are those of every split that is there.

    Raises:
        UserError: the split has an emotion that is none of them, or another split has others.
    """
    if dataset.get("labels") is not None:
        labels = label_set(dataset["labels"], where="dataset.labels")
        if strange := [name for name in own if name not in labels]:
            raise UserError(
                f"{source}: {', '.join(map(repr, strange))} {'is' if len(strange) == 1 else 'are'} none of the "
                f"emotions that are asked for ({', '.join(labels)}); dataset.labels=[{','.join(own)}] asks for those "
                "that are there"
            )
        return labels
    for split in SPLITS:
        other = _if_there(dataset, split)
        if other is None or other == source:
            continue
        theirs = _names(other)
        if odd := sorted({*own} ^ {*theirs}):
            has, lacks = (source, other) if odd[0] in own else (other, source)
            raise UserError(
                f"{has} has pictures of {odd[0]!r} and {lacks} has none ({len(odd)} such emotions); dataset.labels="
                f"[{','.join(sorted({*own} | {*theirs}))}] says that these are the emotions all the same"
            )
    return label_set(own, where=str(source))


def _names(source: Source) -> list[str]:
    """Sorted, so that no listing of a folder has a say."""
    if source.json_path is None:
        return sorted(_folders(source))
    return sorted({label for label, *_ in _listed(source, [])})


def _if_there(dataset: Mapping, split: str) -> Source | None:
    try:
        return find_source(dataset, split) if split in dataset else None
    except UserError:  # a split that is not asked for need not be there
        return None
