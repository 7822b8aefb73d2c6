"""From the configuration to the samples of a split: which reader, and what became of the images that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.reading import expanded
from data.emotions import EMOTIONS, label_set
from data.readers.artemis import read_artemis
from data.readers.coco import read_coco
from data.readers.emotion_folder import find_source, read_emotion_folder
from data.readers.mlslt import read_mlslt
from data.readers.resolver import EXACT, MISSING, OTHER_SPELLING, Found, ImageFolder
from data.readers.table import read_table
from data.samples import Samples
from data.schema import Sample, Skipped


class Renamed(NamedTuple):
    """An image that lies on disk under another spelling of its name."""

    id: str
    name: str
    path: Path


class Split(NamedTuple):
    """One split as it will be read."""

    samples: Samples  # their file is there, not opened yet
    skipped: list[Skipped]  # missing or ambiguous
    renamed: list[Renamed]


def read_split(dataset: Mapping, split: str, *, faults: list[str] | None = None) -> Split:
    """The images of one split, their texts and their emotions.

    The labels are dataset.labels; where that is null, the nine of ArtEmis, or what an emotion folder has.

    Args:
        dataset: the section `dataset` of the configuration.
        split: train_ds, validation_ds or test_ds.
        faults: gets the faults of single entries, which are then left out; without it the first one is raised.

    Raises:
        UserError: unusable annotations, or no such folder.
    """
    if dataset["name"] == "emotion_folder":
        return _read_emotion_folder(dataset, split, faults)
    files, labels = dataset[split], labels_asked_for(dataset) or EMOTIONS
    json_path = expanded(files["json_path"])
    if not json_path.exists():
        made = "; `python -m data.prepare artemis` makes it of the raw CSV" if dataset["name"] == "artemis" else ""
        raise UserError(f"dataset.{split}.json_path: there is no file {json_path}{made}")
    try:
        folder = ImageFolder(Path(files["visual_dir"]))
    except UserError as error:
        raise UserError(f"dataset.{split}.visual_dir: {error}") from None
    read, options = {
        "coco": (read_coco, {"split": split}),
        "mlslt": (read_mlslt, {"sign_languages": dataset.get("sign_languages")}),
        "table": (read_table, {"labels": labels}),
    }.get(dataset["name"], (read_artemis, {"labels": labels}))
    return locate(read(json_path, folder.root, faults=faults, **options), folder)


def _read_emotion_folder(dataset: Mapping, split: str, faults: list[str] | None) -> Split:
    samples, skipped = read_emotion_folder(dataset, split, faults=faults)
    source = find_source(dataset, split) or find_source(dataset, "train_ds")
    if source.json_path is None:  # they were found on disk
        return Split(samples, skipped, [])
    return locate(samples, ImageFolder(source.folder))


def labels_asked_for(dataset: Mapping) -> tuple[str, ...] | None:
    """dataset.labels, if given.

    Raises:
        UserError: they cannot be labels.
    """
    names = dataset.get("labels")
    return None if names is None else label_set(names, where="dataset.labels")


def source_of(dataset: Mapping, split: str) -> str:
    """What a split is read from, for messages: its annotations, or the folder of an emotion folder."""
    files = dataset[split]
    return str(files["json_path"] or files["visual_dir"] or dataset["train_ds"]["visual_dir"])


def read_samples(dataset: Mapping, split: str) -> Split:
    """`read_split` for those who want to go on: with at least one usable image, and, if dataset.strict, no other.

    Raises:
        UserError: unusable annotations, no usable image, or (dataset.strict) any that is not there.
    """
    found = read_split(dataset, split)
    source, listed = source_of(dataset, split), len(found.samples) + len(found.skipped)
    if found.skipped:
        first = found.skipped[0]
        example = f"{first.path} (image {first.id}): {first.reason}"
        if dataset["strict"]:
            raise UserError(
                f"{source}: {len(found.skipped)} of {listed} images cannot be used, the first is {example}; "
                "dataset.strict=false skips them"
            )
        if not found.samples:
            raise UserError(
                f"{source}: none of its {listed} images is in {dataset[split]['visual_dir']}, e.g. {example}"
            )
    return found


def locate(samples: Samples, folder: ImageFolder) -> Split:
    """Look for every image under its name and that name's other spellings.

    A file stands for one name only: if another entry names it exactly, or two names could both mean it, neither guess
    is taken.
    """
    prefix = len(str(folder.root)) + 1
    others: dict[int, Found] = {}  # all that did not lie where it should
    for index in range(len(samples)):
        found = _find(folder, str(samples.path(index))[prefix:])
        if found.how != EXACT:
            others[index] = found
    if not others:
        return Split(samples, [], [])
    claims: dict[Path, set[Path]] = {found.path: set() for found in others.values() if found.how == OTHER_SPELLING}
    for index in range(len(samples)):
        path = samples.path(index)
        found = others.get(index)
        target = path if found is None else found.path
        if target in claims and (found is None or found.how == OTHER_SPELLING):
            claims[target].add(path)
    skipped, renamed = [], []

    def kept() -> Iterator[Sample]:
        for index, sample in enumerate(samples):
            found = others.get(index)
            if found is None:
                yield sample
            elif found.how == OTHER_SPELLING and len(claims[found.path]) == 1:
                renamed.append(Renamed(sample.id, str(sample.path)[prefix:], found.path))
                yield replace(sample, path=found.path)
            else:
                skipped.append(Skipped(sample.id, sample.path, _reason(found)))

    return Split(Samples.pack(kept(), samples.labels), skipped, renamed)


def _find(folder: ImageFolder, name: str) -> Found:
    try:
        return folder.find(name)
    except UserError as error:  # a symbolic link out of the folder
        return Found(folder.root / name, MISSING, refused=str(error))


def _reason(found: Found) -> str:
    if found.how == OTHER_SPELLING:
        return f"there is no such file; {found.path.name!r} might be meant, but other entries name it too"
    return found.reason
