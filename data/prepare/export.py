"""The files of prepared annotations: SEVLM's JSON, COCO's for scorers, and how they come into their folder."""

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

Histograms = Mapping[tuple[str, bool], Sequence[int]]  # (painting, of v2) → votes for the nine emotions


def entries(annotations: Iterable[Annotation], histograms: Histograms | None) -> dict[str, dict]:
    """Image id → what people felt and said of the image, by SEVLM's keys, in the order of `annotations`.

    Args:
        annotations: those of a painting one after another.
        histograms: where the distribution comes from; None: from the annotations themselves.

    Raises:
        UserError: two paintings with the same id.
    """
    from data.readers.artemis import image_id  # brings numpy, which --help can do without

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
    """The images that contrastive training can use: two annotators felt differently."""
    return {id: entry for id, entry in split.items() if len(set(entry["emotions"])) > 1}


def coco(split: Mapping[str, dict], *, with_emotion: bool) -> dict[str, object]:
    """COCO caption annotations: the explanations, or EMOTION because EXPLANATION."""
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
    """JSON with a line for every value of an object, and for every item of a list in it."""
    lines = (f"{json.dumps(key)}: {_listed(item)}" for key, item in value.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _listed(value: object) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n]"
    return json.dumps(value, ensure_ascii=False)


def fingerprint(path: Path) -> dict[str, object]:
    """Size in bytes and SHA-256 of a file."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def check_folder(out: Path, *, overwrite: bool) -> None:
    """Raises UserError if `out` is a file, or holds something that was not made here (unless `overwrite`)."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    if out.is_dir() and any(os.scandir(out)) and not overwrite and _manifest(out) is None:
        raise UserError(
            f"--out {out} is not empty and was not made by this command; give another folder, "
            "or --overwrite to replace files of the same names there"
        )


def publish(out: Path, fill: Callable[[Path], None]) -> None:
    """Fill `out` at once: a new folder appears whole; in one that is there, files are replaced when all are written.

    Files of an earlier run that `fill` does not write are removed, all others stay.
    """
    if not out.exists():
        write_folder(out, fill)
        return
    earlier = _manifest(out) or {}
    with TemporaryDirectory(dir=out, prefix=".unfinished-") as folder:
        fill(Path(folder))
        written = sorted(Path(folder).iterdir(), key=lambda path: path.name == MANIFEST)  # last: it vouches for them
        outputs = earlier.get("outputs")
        for name in (outputs if isinstance(outputs, dict) else {}).keys() - {path.name for path in written}:
            if OURS.fullmatch(name):
                (out / name).unlink(missing_ok=True)
        for path in written:
            path.replace(out / path.name)


def _manifest(out: Path) -> dict | None:
    """The manifest of an earlier run in `out`."""
    try:
        manifest = read_json(out / MANIFEST)
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and manifest.get("made_by") == MADE_BY else None
