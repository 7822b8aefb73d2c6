"""Prepare captions of COCO, or of data in its form, for dataset.name=coco: train.json, val.json and test.json.

    python -m data.prepare coco dataset_coco.json --images coco --out datasets/coco
    python -m data.prepare coco captions_train2017.json captions_val2017.json --images coco --out datasets/coco
    python -m data.prepare coco annotations/train.json annotations/val.json --images vizwiz --out datasets/vizwiz

One file is the split file of Karpathy and Fei-Fei (2015; caption_datasets.zip of cs.stanford.edu/people/karpathy); its
pictures are COCO's train2014.zip and val2014.zip. Otherwise: captions for training and test and, if given, between them
for validation, which else gets 4 % of the training images by a hash of their names. COCO's are in
annotations_trainval2017.zip of cocodataset.org, the pictures in train2017.zip and val2017.zip. The folder --images
contains the unzipped pictures, at any depth; pictures that are missing are left out and counted. The test has every
caption of an image; training takes the first five. VizWiz's rejected and ready-made captions are left out.
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import UserError
from common.files import write_csv, write_json
from data.prepare.published import Pictures, Unusable
from data.readers.annotations import load_json
from data.readers.coco import LEFT_OUT, read_coco
from data.samples import Samples
from data.schema import Sample
from data.split_names import place_of

SPLITS = {"train": "train_ds", "val": "validation_ds", "test": "test_ds"}
HELD_OUT = 0.04  # share of the training images
PUBLISHED = {  # images and captions
    "captions_train2014.json": (82_783, 414_113),
    "captions_val2014.json": (40_504, 202_654),
    "captions_train2017.json": (118_287, 591_753),
    "captions_val2017.json": (5_000, 25_014),
    "dataset_coco.json": (123_287, 616_767),
}


def add_parser(commands: argparse._SubParsersAction) -> None:
    summary = "captions of COCO, of Karpathy's split, of VizWiz: checked, and divided into train, val, test"
    form = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("coco", help=summary, description=__doc__, formatter_class=form)
    parser.add_argument("files", type=Path, nargs="+", metavar="JSON", help="a split file; or TRAIN [VAL] TEST")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="of the pictures")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="output folder")
    parser.add_argument("--follow-links", action="store_true", help="pictures may be behind links out of FOLDER")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status.

    Raises:
        UserError: an input cannot be used, or an image is in two splits.
    """
    files, images, out = arguments.files, arguments.images, arguments.out
    if len(files) > 3:
        raise UserError(f"{len(files)} files: give a split file, or captions for training, validation and test")
    pictures, left_out = Pictures(images, follow_links=arguments.follow_links), []
    read = _read(files, images)
    notes = [note for file in dict.fromkeys(files) for note in _counts(file)]
    splits = {split: _located(found, images, pictures, split, left_out) for split, found in read.items()}
    if len(files) == 2:
        held = {name for name in splits["train"] if place_of(name) < HELD_OUT}
        splits["val"] = {name: splits["train"].pop(name) for name in sorted(held)}
    _refuse_shared(splits)
    for split in SPLITS:
        found = splits[split]
        write_json(out / f"{split}.json", _coco(found))
        print(f"{split}: {len(found):,} pictures, {sum(len(s.texts) for s in found.values()):,} captions")
    write_csv(out / "left_out.csv", ("split", "picture", "reason"), left_out)
    counts = Counter(reason.partition(":")[0] for *_, reason in left_out)
    print("left out:", "; ".join(f"{count:,} {reason}" for reason, count in counts.items()) or "nothing")
    print("\n".join([*notes, _train_command(out, images)]))
    return 0


def _read(files: Sequence[Path], images: Path) -> dict[str, Samples]:
    for file in files:
        data = load_json(file)
        if isinstance(data, dict) and (len(files) == 1) == ("annotations" in data):
            ways = "Karpathy's split file, or two files of captions, for training and test"
            raise UserError(f"{file}: give {ways}; see python -m data.prepare coco --help for what to download")
    of_split = {1: files * 3, 2: [files[0], None, files[-1]], 3: files}[len(files)]
    return {
        split: read_coco(file, images.absolute(), split=key if len(files) == 1 else "test_ds")  # with all captions
        for (split, key), file in zip(SPLITS.items(), of_split, strict=True)
        if file is not None
    }


def _counts(file: Path) -> list[str]:
    """Return notes on captions that are not used, and on numbers that differ from the published ones."""
    data = load_json(file)
    images = data["images"]
    sentences = data.get("annotations") or [s for image in images for s in image.get("sentences", ())]
    counts = {key: sum(bool(sentence.get(key)) for sentence in sentences) for key in LEFT_OUT}
    notes = [f"{file.name}: {count:,} captions left out ({key})" for key, count in counts.items() if count]
    found, wanted = (len(images), len(sentences)), PUBLISHED.get(file.name)
    if wanted not in (None, found):
        published = " where {:,} and {:,} were published".format(*wanted)
        notes.append(f"note: {file.name} has {found[0]:,} pictures and {found[1]:,} captions,{published}")
    return notes


def _located(
    samples: Samples, images: Path, pictures: Pictures, split: str, left_out: list[tuple[str, str, str]]
) -> dict[str, Sample]:
    """Return the samples by the picture's path, relative to `images`."""
    found: dict[str, Sample] = {}
    for sample in samples:
        name = os.path.relpath(sample.path, images.absolute())
        try:
            found[pictures.find(name)] = sample
        except Unusable as why:
            left_out.append((split, name, str(why)))
    if not found:
        raise UserError(f"{images}: none of the {len(samples):,} pictures of {split} is there, such as {name}")
    return found


def _refuse_shared(splits: Mapping[str, Mapping[str, object]]) -> None:
    for one, other in (("train", "test"), ("val", "test"), ("train", "val")):
        if both := sorted(splits[one].keys() & splits[other].keys()):
            raise UserError(f"{len(both):,} pictures are in {one} and in {other}, such as {both[0]}; give other files")


def _coco(samples: Mapping[str, Sample]) -> dict[str, object]:
    ids = {name: int(sample.id) if sample.id.isdecimal() else sample.id for name, sample in samples.items()}
    pairs = [(ids[name], text) for name, sample in samples.items() for text in sample.texts]
    return {
        "images": [{"id": id, "file_name": name} for name, id in ids.items()],
        "annotations": [{"id": i, "image_id": id, "caption": text} for i, (id, text) in enumerate(pairs)],
    }


def _train_command(out: Path, images: Path) -> str:
    keys = [
        key
        for split, part in SPLITS.items()
        for key in (f"dataset.{part}.json_path={out / split}.json", f"dataset.{part}.visual_dir={images}")
    ]
    return shlex.join(["python", "run.py", "mode=train", "preset=coco", *keys])
