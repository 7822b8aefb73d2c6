"""From the configuration to the samples of a split: which reader, and what became of the images that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data.artemis import read_artemis
from data.coco import read_coco
from data.mlslt import read_mlslt
from data.resolver import EXACT, MISSING, OTHER_SPELLING, Found, ImageFolder
from data.samples import Samples
from data.schema import Sample, Skipped
from data.table import read_table
from errors import UserError
from foreign import expanded


@dataclass(frozen=True, slots=True)
class Renamed:
    """An image that lies on disk under another spelling of its name."""

    id: str
    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class Split:
    """One split as it will be read."""

    samples: Samples  # their file is there, not opened yet
    skipped: list[Skipped]  # missing or ambiguous
    renamed: list[Renamed]


def read_split(dataset: Mapping, split: str, *, faults: list[str] | None = None) -> Split:
    """The images of one split and their texts.

    Args:
        dataset: the section `dataset` of the configuration.
        split: train_ds, validation_ds or test_ds.
        faults: gets the faults of single entries, which are then left out; without it the first one is raised.

    Raises:
        UserError: unusable annotations, or no such folder.
    """
    files = dataset[split]
    json_path = expanded(files["json_path"])
    if not json_path.exists():
        made = "; `python -m data.prepare artemis` makes it of the raw CSV" if dataset["name"] == "artemis" else ""
        raise UserError(f"dataset.{split}.json_path: there is no file {json_path}{made}")
    try:
        folder = ImageFolder(Path(files["visual_dir"]))
    except UserError as error:
        raise UserError(f"dataset.{split}.visual_dir: {error}") from None
    if dataset["name"] == "coco":
        samples = read_coco(json_path, folder.root, split=split, faults=faults)
    elif dataset["name"] == "mlslt":
        languages = list(dataset["sign_languages"])
        samples = read_mlslt(json_path, folder.root, sign_languages=languages, faults=faults)
    elif dataset["name"] == "table":
        samples = read_table(json_path, folder.root, faults=faults)
    else:
        samples = read_artemis(json_path, folder.root, faults=faults)
    return locate(samples, folder)


def read_samples(dataset: Mapping, split: str) -> Split:
    """`read_split` for those who want to go on: with at least one usable image, and, if dataset.strict, no other.

    Raises:
        UserError: unusable annotations, no usable image, or (dataset.strict) any that is not there.
    """
    found = read_split(dataset, split)
    json_path, listed = dataset[split]["json_path"], len(found.samples) + len(found.skipped)
    if found.skipped:
        first = found.skipped[0]
        example = f"{first.path} (image {first.id}): {first.reason}"
        if dataset["strict"]:
            raise UserError(
                f"{json_path}: {len(found.skipped)} of {listed} images cannot be used, the first is {example}; "
                "dataset.strict=false skips them"
            )
        if not found.samples:
            raise UserError(
                f"{json_path}: none of its {listed} images is in {dataset[split]['visual_dir']}, e.g. {example}"
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

    return Split(Samples.pack(kept()), skipped, renamed)


def _find(folder: ImageFolder, name: str) -> Found:
    try:
        return folder.find(name)
    except UserError as error:  # a symbolic link out of the folder
        return Found(folder.root / name, MISSING, refused=str(error))


def _reason(found: Found) -> str:
    if found.how == OTHER_SPELLING:
        return f"there is no such file; {found.path.name!r} might be meant, but other entries name it too"
    return found.reason
