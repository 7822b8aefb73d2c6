"""Read the samples of a configured split and locate their images on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from common.config.rules import RATINGS, SHARDS
from common.errors import UserError
from common.reading import expand_user
from data.emotions import EMOTIONS, label_set
from data.readers.artemis import read_artemis
from data.readers.coco import read_coco
from data.readers.emotion_folder import find_source, read_emotion_folder
from data.readers.mlslt import read_mlslt
from data.readers.ratings import rating_files, read_ratings
from data.readers.resolver import EXACT, MISSING, OTHER_SPELLING, Found, ImageFolder
from data.readers.shards import read_shards
from data.readers.table import read_table
from data.samples import Samples
from data.schema import Sample, Skipped
from data.split_names import SECTIONS


class Renamed(NamedTuple):
    """An image whose file has another spelling of its name."""

    id: str
    name: str
    path: Path


class Split(NamedTuple):
    """The samples of one split and the images that are missing or renamed."""

    samples: Samples  # their files exist but are not opened yet
    skipped: list[Skipped]  # missing or ambiguous
    renamed: list[Renamed]


def read_split(dataset: Mapping, split: str, *, faults: list[str] | None = None) -> Split:
    """Return the samples of one split.

    The labels are dataset.labels; if that is null, the nine of ArtEmis, or those of an emotion folder.

    Args:
        dataset: the section `dataset` of the configuration.
        split: train_ds, validation_ds or test_ds.
        faults: collects the faults of single entries, which are then skipped; without it the first is raised.

    Raises:
        UserError: unusable annotations, or no such folder.
    """
    if dataset["name"] == "emotion_folder":
        samples, skipped = read_emotion_folder(dataset, split, faults=faults)
        source = find_source(dataset, split) or find_source(dataset, "train_ds")
        folder = ImageFolder(source.folder, follow_links=source.follow_links)
        return locate(samples, folder) if source.json_path else Split(samples, skipped, [])
    name, files, labels = dataset["name"], dataset[split], configured_labels(dataset) or EMOTIONS
    if name == RATINGS:
        return _read_rated(dataset, split, labels, faults)
    if name == SHARDS:
        found = read_shards(dataset, split, labels=labels, faults=faults)
        if found.folder is None:
            return Split(found.samples, found.skipped, [])
        located = locate(found.samples, ImageFolder(found.folder, follow_links=bool(dataset.get("follow_links"))))
        return located._replace(skipped=[*found.skipped, *located.skipped])
    json_path = expand_user(files["json_path"])
    if not json_path.exists():
        hint = "; make it from the raw CSV with `python -m data.prepare artemis`" if name == "artemis" else ""
        raise UserError(f"dataset.{split}.json_path: there is no file {json_path}{hint}")
    folder = _folder(dataset, split, Path(files["visual_dir"]))
    read, options = {
        "coco": (read_coco, {"split": split}),
        "mlslt": (read_mlslt, {"sign_languages": dataset.get("sign_languages")}),
        "table": (read_table, {"labels": labels, "split": SECTIONS[split]}),
    }.get(name, (read_artemis, {"labels": labels}))
    return locate(read(json_path, folder.root, faults=faults, **options), folder)


def _read_rated(dataset: Mapping, split: str, labels: Sequence[str], faults: list[str] | None) -> Split:
    path, visual_dir = rating_files(dataset, split)
    folder = _folder(dataset, split, visual_dir)
    sharing = []
    for section, name in SECTIONS.items():
        with suppress(UserError):  # a split that is not used needs no file
            sharing += [name] if rating_files(dataset, section)[0] == path else []
    options = {"scale": dataset.get("rating_scale"), "labels": labels, "faults": faults}
    samples, skipped = read_ratings(path, folder.root, split=SECTIONS[split], sharing=sharing, **options)
    found = locate(samples, folder)
    return found._replace(skipped=[*skipped, *found.skipped])


def _folder(dataset: Mapping, split: str, visual_dir: Path) -> ImageFolder:
    try:
        return ImageFolder(visual_dir, follow_links=bool(dataset.get("follow_links")))
    except UserError as error:
        raise UserError(f"dataset.{split}.visual_dir: {error}") from None


def configured_labels(dataset: Mapping) -> tuple[str, ...] | None:
    """Return dataset.labels, or None if it is null; raise UserError for names that cannot be labels."""
    names = dataset.get("labels")
    return None if names is None else label_set(names, where="dataset.labels")


def source_of(dataset: Mapping, split: str) -> str:
    """Return the annotation file or image folder that a split is read from, for messages."""
    files = dataset[split]
    if dataset["name"] == RATINGS:
        return str(rating_files(dataset, split)[0])
    return str(files["json_path"] or files["visual_dir"] or dataset["train_ds"]["visual_dir"])


def read_samples(dataset: Mapping, split: str) -> Split:
    """Return `read_split`, with at least one usable image and, if dataset.strict, no missing one.

    Raises:
        UserError: unusable annotations, no usable image, or, if dataset.strict, a missing image.
    """
    found = read_split(dataset, split)
    source, listed = source_of(dataset, split), len(found.samples) + len(found.skipped)
    if found.skipped:
        first = found.skipped[0]
        example = f"{first.path} (image {first.id}): {first.reason}"
        if dataset["strict"]:
            raise UserError(
                f"{source}: {len(found.skipped)} of {listed} images cannot be used, the first is {example}; "
                "set dataset.strict=false to skip them"
            )
        if not found.samples:
            folder = dataset[split]["visual_dir"] or dataset["train_ds"]["visual_dir"]
            place = f"is in {folder}" if folder else "can be used"
            raise UserError(f"{source}: none of its {listed} images {place}, e.g. {example}")
    return found


def locate(samples: Samples, folder: ImageFolder) -> Split:
    """Find every image under its name or another spelling of it.

    A file belongs to one name only: an image is skipped if its other spelling is the exact name of another entry, or if
    two names match the same file.
    """
    prefix = len(str(folder.root)) + 1
    others: dict[int, Found] = {}  # all that are not found under their exact name
    for index in range(len(samples)):
        found = _find(folder, str(samples.path(index))[prefix:])
        if found.how != EXACT:
            others[index] = found
    if not others:
        return Split(samples, [], [])
    claims: dict[Path, set[Path]] = {found.path: set() for found in others.values() if found.how == OTHER_SPELLING}
    for index in range(len(samples)):
        path = samples.path(index)
        target = others[index].path if index in others else path
        if target in claims:
            claims[target].add(path)
    skipped, renamed = [], []

    def located() -> Iterator[Sample]:
        for index, sample in enumerate(samples):
            found = others.get(index)
            if found is None:
                yield sample
            elif found.how == OTHER_SPELLING and len(claims[found.path]) == 1:
                renamed.append(Renamed(sample.id, str(sample.path)[prefix:], found.path))
                yield replace(sample, path=found.path)
            else:
                reason = f"there is no such file; {found.path.name!r} might be meant, but other entries name it too"
                skipped.append(Skipped(sample.id, sample.path, found.reason if found.how != OTHER_SPELLING else reason))

    return Split(Samples.pack(located(), samples.labels), skipped, renamed)


def _find(folder: ImageFolder, name: str) -> Found:
    try:
        return folder.find(name)
    except UserError as error:  # a symbolic link out of the folder
        return Found(folder.root / name, MISSING, refused=str(error))
