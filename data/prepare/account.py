"""Write a prepared ArtEmis with its manifest and the list of what was left out, and summarize it."""

from __future__ import annotations

import argparse
import platform
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from common.files import write_csv, write_json, write_text
from data.emotions import EMOTIONS
from data.prepare.export import LEFT_OUT, MADE_BY, MANIFEST, coco, fingerprint, one_per_line
from data.prepare.rows import LeftOut
from data.prepare.splits import TEST, TRAIN, VAL

VERSION = 1  # of the manifest and of the rules behind the files
PACKAGES = ("lemminflect", "nltk", "numpy", "symspellpy")  # those that the result depends on
SETTINGS = (
    "subset", "split", "seed", "min_tokens", "max_tokens", "max_repetition", "distribution", "spelling",
)  # fmt: skip
INPUTS = ("csv", "contrastive", "vocabulary")
KEYS = {TRAIN: "train_ds", VAL: "validation_ds", TEST: "test_ds"}


@dataclass(slots=True)
class Prepared:
    """The entries to write, and counts of what was changed or left out."""

    entries: dict[str, dict[str, dict]] = field(default_factory=dict)  # by part (train, val, …): image id → entry
    left_out: list[LeftOut] = field(default_factory=list)
    corrections: Counter[tuple[str, str]] = field(default_factory=Counter)  # (as written, as corrected)
    lengths: list[int] = field(default_factory=list)  # tokens of every usable row
    is_v2: bool = False


def write(folder: Path, prepared: Prepared, arguments: argparse.Namespace) -> None:
    """Write all files of a prepared ArtEmis, the manifest last."""
    for part, entries in prepared.entries.items():
        write_text(folder / f"artEmisX_{part}.json", one_per_line(entries))
        for form in ("exp", "full") if part in (VAL, TEST) else ():
            captions = coco(entries, with_emotion=form == "full")
            write_text(folder / f"artEmisX_{part}_annot_{form}.json", one_per_line(captions))
    rows = sorted(prepared.left_out, key=lambda item: (item.file, item.line or 0, item))
    write_csv(folder / LEFT_OUT, LeftOut._fields, rows)
    outputs = {path.name: fingerprint(path) for path in sorted(folder.iterdir())}
    write_json(folder / MANIFEST, {**_manifest(prepared, arguments), "outputs": outputs})


def _manifest(prepared: Prepared, arguments: argparse.Namespace) -> dict:
    given = vars(arguments)
    subset = (arguments.subset or "combined") if prepared.is_v2 else None
    paths = {name: given[name] for name in INPUTS if given[name] is not None}
    return {
        "made_by": MADE_BY,
        "version": VERSION,
        "dataset": "ArtEmis v2" if prepared.is_v2 else "ArtEmis v1",
        "settings": {name: given[name] for name in SETTINGS} | {"subset": subset},
        "images": None if arguments.images is None else str(arguments.images),
        "inputs": {name: {"path": str(path), **fingerprint(path)} for name, path in paths.items()},
        "software": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "splits": {part: _counts(entries) for part, entries in prepared.entries.items()},
        "left_out": dict(_reasons(prepared.left_out)),
        "tokens": _lengths(prepared.lengths),
        "corrections": {f"{written} > {right}": n for (written, right), n in _ranked(prepared.corrections)},
    }


def _counts(entries: dict[str, dict]) -> dict:
    emotions = Counter(emotion for entry in entries.values() for emotion in entry["emotions"])
    return {
        "images": len(entries),
        "annotations": emotions.total(),
        "emotions": {emotion: emotions[emotion] for emotion in EMOTIONS},
    }


def _reasons(left_out: Sequence[LeftOut]) -> list[tuple[str, int]]:
    """Return the reasons and their number of rows or images, the most frequent first."""
    return _ranked(Counter(item.reason.partition(": ")[0] for item in left_out))


def _ranked(counts: Counter) -> list[tuple]:
    """`most_common` with ties in alphabetical order."""
    return sorted(counts.items(), key=lambda item: (-item[1], item))


def _lengths(lengths: Sequence[int]) -> dict:
    ordered = sorted(lengths)
    return {
        "rows": len(ordered),
        "mean": round(sum(ordered) / len(ordered), 2),
        **{f"percentile_{p}": ordered[(len(ordered) - 1) * p // 100] for p in (5, 50, 95)},
        "min": ordered[0],
        "max": ordered[-1],
    }


def summary(prepared: Prepared) -> str:
    """Return images and annotations of every file, and the reasons for leaving rows out."""
    lines = [f"{'split':<24}{'images':>10}{'annotations':>14}"]
    for part, entries in prepared.entries.items():
        annotations = sum(len(entry["emotions"]) for entry in entries.values())
        lines.append(f"{part:<24}{len(entries):>10,}{annotations:>14,}")
    if prepared.left_out:
        lines += ["", f"left out (listed in {LEFT_OUT})"]
        lines += [f"  {reason:<32}{count:>14,}" for reason, count in _reasons(prepared.left_out)]
    if both := prepared.entries.get("test_40", {}).keys() & prepared.entries.get(TRAIN, {}).keys():
        lines += ["", f"{len(both):,} images of test_40 are in train too, with v2's annotations, as in the original"]
    return "\n".join(lines)


def next_command(prepared: Prepared, arguments: argparse.Namespace) -> str:
    """Return the shell command that trains on it."""
    lines = [f"python run.py mode=train preset=artemis_{'v2' if prepared.is_v2 else 'v1'} name=mine"]
    for part, key in KEYS.items():
        if part in prepared.entries:
            json_path = arguments.out / f"artEmisX_{part}.json"
            values = (
                f"dataset.{key}.visual_dir={arguments.images or 'WIKIART'}",
                f"dataset.{key}.json_path={json_path}",
            )
            lines.append("  " + " ".join(map(shlex.quote, values)))
    return " \\\n".join(lines)
