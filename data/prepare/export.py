"""Files of prepared annotations: SEVLM's JSON, COCO's JSON for scorers, and replacing an output folder at once."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from common.errors import UserError
from common.files import sha256, write_folder
from common.reading import read_json
from data.emotions import EMOTIONS
from data.prepare.splits import Annotation

MANIFEST = "manifest.json"
LEFT_OUT = "left_out.csv"
MADE_BY = "python -m data.prepare artemis"
OURS = re.compile(r"artEmisX_\w+\.json|left_out\.csv|manifest\.json")

Histograms = Mapping[tuple[str, bool], Sequence[int]]  # (painting, True for v2) → votes for the nine emotions


def entries(annotations: Iterable[Annotation], histograms: Histograms | None) -> dict[str, dict]:
    """Return SEVLM's entries by image id, in the order of `annotations`.

    Args:
        annotations: grouped by painting.
        histograms: source of the distributions; None: the annotations themselves.

    Raises:
        UserError: two paintings have the same id.
    """
    from data.readers.artemis import image_id  # imported here: imports numpy, which --help does not need

    found: dict[str, dict] = {}
    for name, group in groupby(annotations, key=lambda annotation: annotation.name):
        listed = list(group)
        votes = Counter(annotation.emotion for annotation in listed)
        if histograms is not None:
            votes = Counter()
            for new in {annotation.new for annotation in listed}:
                votes.update(dict(enumerate(histograms[name, new])))
        shares = [votes[emotion] / votes.total() for emotion in range(len(EMOTIONS))]
        entry = {
            "image_name": f"{name}.jpg",
            "emotions": [EMOTIONS[annotation.emotion] for annotation in listed],
            "explanations": [annotation.text for annotation in listed],
            "origin_emotion_distribution": shares,
            "image_emotion_distribution": shares,
        }
        other = found.setdefault(str(image_id(name)), entry)
        if other is not entry:
            raise UserError(f"{name}.jpg and {other['image_name']} have the same image id; leave one of them out")
    return found


def of_several_emotions(split: Mapping[str, dict]) -> dict[str, dict]:
    """Return the images for contrastive training: those with annotations of at least two emotions."""
    return {id: entry for id, entry in split.items() if len(set(entry["emotions"])) > 1}


def coco(split: Mapping[str, dict], *, with_emotion: bool) -> dict[str, object]:
    """Return COCO caption annotations: the explanations, or EMOTION because EXPLANATION."""
    captions = [
        (int(id), f"{emotion} because {explanation}" if with_emotion else explanation)
        for id, entry in split.items()
        for emotion, explanation in zip(entry["emotions"], entry["explanations"], strict=True)
    ]
    return {
        "info": {"description": "ArtEmis", "made_by": MADE_BY},
        "licenses": [],
        "type": "captions",
        "images": [{"id": int(id)} for id in split],
        "annotations": [
            {"id": number, "image_id": id, "caption": caption} for number, (id, caption) in enumerate(captions, start=1)
        ],
    }


def one_per_line(value: Mapping[str, object]) -> str:
    """Return JSON with a line for every value of an object, and for every item of a list in it."""

    def lines(item: object) -> str:
        texts = [json.dumps(part, ensure_ascii=False) for part in (item if isinstance(item, list) else [item])]
        return "[\n" + ",\n".join(texts) + "\n]" if isinstance(item, list) and item else "".join(texts) or "[]"

    return "{\n" + ",\n".join(f"{json.dumps(key)}: {lines(item)}" for key, item in value.items()) + "\n}\n"


def fingerprint(path: Path) -> dict[str, object]:
    """Return the size in bytes and the SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def read_manifest(path: Path, made_by: str) -> dict | None:
    """Return the manifest of an earlier run of the command `made_by`; None if there is none."""
    try:
        manifest = read_json(path)
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("made_by") == made_by else None


def check_folder(out: Path, *, overwrite: bool) -> None:
    """Raise UserError if `out` is a file, or (unless `overwrite`) contains files of another origin."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(os.scandir(out)) and not overwrite and read_manifest(out / MANIFEST, MADE_BY) is None:
        raise UserError(
            f"--out {out} is not empty and was not made by this command; give another folder, "
            "or --overwrite to replace files of the same names there"
        )


def publish(out: Path, fill: Callable[[Path], None]) -> None:
    """Create the folder `out` whole; if it exists, replace its files after all of them are written.

    Files of an earlier run that `fill` does not write are removed, all others stay.
    """
    if not out.exists():
        write_folder(out, fill)
        return
    earlier = (read_manifest(out / MANIFEST, MADE_BY) or {}).get("outputs")
    with TemporaryDirectory(dir=out, prefix=".unfinished-") as folder:
        fill(Path(folder))
        written = sorted(Path(folder).iterdir(), key=lambda path: path.name == MANIFEST)  # it lists the others: last
        for name in set(earlier if isinstance(earlier, dict) else ()) - {path.name for path in written}:
            if OURS.fullmatch(name):
                (out / name).unlink(missing_ok=True)
        for path in written:
            path.replace(out / path.name)
