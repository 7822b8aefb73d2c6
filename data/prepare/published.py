"""Prepare the published annotations of other data sets, in files like those of a prepared ArtEmis.

    python -m data.prepare affection affection_raw_public_version_0.csv --images PHOTOS --out datasets/affection
    python -m data.prepare emoart Annotation.json --images EmoArt-130k --out datasets/emoart
    python -m data.prepare emoset EmoSet-118K --out datasets/emoset
    python -m data.prepare ldl Flickr_LDL/ground_truth.txt --images Flickr_LDL/images --out datasets/flickr_ldl
    python -m data.prepare multiemo VOTES.json --images MultiEmo-Bench --out datasets/multiemo

Without a split in the annotations, a hash of each name decides: 10 % test, 5 % val, the rest train. What cannot be used
is left out, counted, and listed in left_out.csv. A picture is found by its file name, in a folder (at any depth) of the
name that the annotations put before it; case, and the suffix of an image, do not matter.
"""

from __future__ import annotations

import argparse
import os
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePath

from common.errors import UserError
from common.files import write_csv, write_text
from data.emotions import EMOTIONS, normalize_label
from data.image_files import id_of, images_in
from data.images import suffixes
from data.prepare.export import one_per_line
from data.prepare.layouts import BROKEN, LAYOUTS, Layout, value_at
from data.split_names import split_by_hash

SPLITS = ("train", "val", "test")
MOST_VOTES = 10_000  # for an emotion of a picture

Entry = dict[str, object]


class Unusable(Exception):
    """Why a record cannot be used."""


def add_parser(commands: argparse._SubParsersAction) -> None:
    for name, layout in LAYOUTS.items():
        form = argparse.RawDescriptionHelpFormatter
        parser = commands.add_parser(name, help=layout.summary, description=__doc__, formatter_class=form)
        parser.add_argument("file", type=Path, metavar="ANNOTATIONS", help=layout.file)
        parser.add_argument(
            "--images", type=Path, metavar="FOLDER", help="of the pictures (default: beside ANNOTATIONS)"
        )
        parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="output folder")
        parser.add_argument("--follow-links", action="store_true", help="pictures may be behind links out of FOLDER")
        parser.set_defaults(run=run, layout=name)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit status.

    Raises:
        UserError: an input cannot be used, or no picture is left.
    """
    layout, file = LAYOUTS[arguments.layout], arguments.file
    images = arguments.images or (file if file.is_dir() else file.parent)
    pictures, left_out = Pictures(images, follow_links=arguments.follow_links), []
    splits = read(layout, file, pictures, left_out)
    counts = Counter(reason.partition(":")[0] for *_, reason in left_out)
    if not any(splits.values()):
        reason = counts.most_common(1)[0][0] if counts else "there is none"
        raise UserError(f"{file}: none of its records can be used ({reason}); give {layout.file}")
    for split, entries in splits.items():
        target = arguments.out / f"artEmisX_{split}.json"
        write_text(target, one_per_line(entries)) if entries else target.unlink(missing_ok=True)
        votes = Counter(emotion for entry in entries.values() for emotion in entry["emotions"])
        print(f"{split}: {len(entries):,} pictures, {votes.total():,} annotations")
    write_csv(arguments.out / "left_out.csv", ("place", "picture", "reason"), left_out)
    print("left out:", "; ".join(f"{count:,} {reason}" for reason, count in counts.most_common()) or "nothing")
    print(_next_commands(layout, images, arguments))
    return 0


def read(
    layout: Layout, file: Path, pictures: Pictures, left_out: list[tuple[str, str, str]]
) -> dict[str, dict[str, Entry]]:
    """Return the entries by split and name of the picture, and append (place, picture, reason) of what is left out."""
    splits: dict[str, dict[str, Entry]] = {split: {} for split in SPLITS}
    where: dict[str, str] = {}  # split of each picture
    known: dict[str, str] = {}  # a picture has many records
    for place, record in layout.read(file):
        name = ""
        try:
            if BROKEN in record:
                raise Unusable(str(record[BROKEN]))
            name = "/".join(_text(record, key) for key in layout.image)
            found = known[name] = known.get(name) or pictures.find(name)
            split = _split(layout, record, found)
            entry = _entry(layout, record, found)
            if found in where and not layout.repeated:
                raise Unusable("picture twice")
            if where.setdefault(found, split) != split:
                raise Unusable(f"picture in two splits: {where[found]} and {split}")
            _add(splits[split], found, entry)
        except Unusable as fault:
            left_out.append((place, name, str(fault)))
    return splits


def _entry(layout: Layout, record: Mapping[str, object], found: str) -> Entry:
    entry: Entry = {"image_name": found}
    if layout.emotion:
        entry["emotions"] = [_label(_text(record, layout.emotion), layout)]
    else:
        votes = {normalize_label(key): value for key, value in record.items()}
        entry["emotions"] = [label for label in layout.labels for _ in range(_count(votes.get(label), label))]
        if not entry["emotions"]:
            raise Unusable("no votes")
    if layout.text:
        entry["explanations"] = [_text(record, layout.text)]
    kept = {name: value_at(record, key) for name, key in layout.keep.items()}
    return entry | {name: str(value) for name, value in kept.items() if value is not None}


def _add(entries: dict[str, Entry], name: str, entry: Entry) -> None:
    """Add an entry, or the annotation in it to that of the same picture."""
    known = entries.setdefault(name, entry)
    if known is not entry:
        for key in ("emotions", "explanations"):
            known.setdefault(key, []).extend(entry.get(key, ()))


def _text(record: Mapping[str, object], key: str) -> str:
    value = value_at(record, key)
    if not isinstance(value, str) or not value.strip():
        raise Unusable(f"no {key.rpartition('.')[2]}")
    return value.strip()


def _label(name: str, layout: Layout) -> str:
    label = normalize_label(name)
    label = layout.others.get(label, label)
    if label not in layout.labels:
        raise Unusable(f"unknown emotion: {name!r}")
    return label


def _count(value: object, label: str) -> int:
    try:
        number = float(value)
        if 0 <= number <= MOST_VOTES and number.is_integer():
            return int(number)
    except (TypeError, ValueError):
        pass
    raise Unusable(f"votes that are not a count: {value!r} for {label}")


def _split(layout: Layout, record: Mapping[str, object], name: str) -> str:
    if layout.split and layout.split in record:
        split = _text(record, layout.split).lower()
        if split not in SPLITS:
            raise Unusable(f"unknown split: {split!r}")
        return split
    return split_by_hash(name)


class Pictures:
    """The pictures in a folder and its subfolders, by file name; raises UserError if there is none."""

    def __init__(self, folder: Path, *, follow_links: bool) -> None:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}; give that of the pictures with --images")
        found = images_in(folder, follow_links=follow_links)
        if not found.images:
            links = f"; links that need --follow-links: {len(found.links):,}" if found.links else ""
            raise UserError(f"{folder}: the folder contains no picture{links}")
        self._named: defaultdict[str, list[str]] = defaultdict(list)
        for name in (os.path.relpath(path, folder) for path in found.images):
            if name == id_of(name):  # UTF-8, as in JSON
                self._named[_key(PurePath(name).name)].append(name)

    def find(self, name: str) -> str:
        """Return the path, relative to the folder, of a picture that the annotations call `name`."""
        *folders, last = PurePath(name.replace("\\", "/")).parts or [""]
        near = self._named.get(_key(last), ())
        if folders:
            near = [path for path in near if _fold(folders[-1]) in map(_fold, PurePath(path).parts[:-1])]
        if len(near) != 1:
            raise Unusable(f"name of several pictures: {', '.join(near[:3])}" if near else "missing picture")
        return near[0]


def _key(name: str) -> str:
    path = PurePath(name)
    return _fold(path.stem if path.suffix.lower() in suffixes() else name)


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _next_commands(layout: Layout, images: Path, arguments: argparse.Namespace) -> str:
    out, follow = arguments.out, ["--follow-links"] * arguments.follow_links
    labels = [] if layout.labels == EMOTIONS else [f"dataset.labels=[{','.join(layout.labels)}]"]
    copy = ["python", "-m", "data.prepare", "images", str(images), "--out", str(out / "images"), *follow]
    train = ["python", "run.py", "mode=train", "preset=artemis_v1", f"name={arguments.layout}", f"dataset.root={out}"]
    return "\n".join(map(shlex.join, (copy, [*train, *labels])))
