"""Write a prepared ArtEmis: SEVLM's JSON, COCO's JSON for scorers, the manifest, and the list of what was left out."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from common.errors import UserError
from common.files import sha256, write_csv, write_folder, write_json, write_text
from common.reading import read_json
from data.emotions import EMOTIONS
from data.prepare.rows import LeftOut
from data.prepare.splits import Annotation
from data.split_names import REST, TEST, TRAIN, VAL

MANIFEST = "manifest.json"
LEFT_OUT = "left_out.csv"
MADE_BY = "python -m data.prepare artemis"
OURS = re.compile(r"artEmisX_\w+\.json|left_out\.csv|manifest\.json")
VERSION = 1  # of the manifest and of the rules behind the files
PACKAGES = ("lemminflect", "nltk", "numpy", "symspellpy")  # those that the result depends on
SETTINGS = (
    "seed", "min_tokens", "max_tokens", "max_repetition", "distribution", "spelling",
)  # fmt: skip
INPUTS = ("csv", "contrastive", "split_file", "vocabulary")


@dataclass(slots=True)
class Prepared:
    """The entries to write, and counts of what was changed or left out."""

    entries: dict[str, dict[str, dict]] = field(default_factory=dict)  # by part (train, val, …): image id → entry
    left_out: list[LeftOut] = field(default_factory=list)
    corrections: Counter[tuple[str, str]] = field(default_factory=Counter)  # (as written, as corrected)
    lengths: list[int] = field(default_factory=list)  # tokens of every usable row
    is_v2: bool = False
    shares: tuple[float, ...] | None = None  # of the splits drawn here; None: the file has its own
    split_from: str | None = None  # that file
    subset: str | None = None  # of v2
    rows_by_language: Counter[str] = field(default_factory=Counter)  # of the file; empty without a column language
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)  # (language, reason) of rows not in left_out


def entries(
    annotations: Iterable[Annotation], histograms: Mapping[tuple[str, str, bool], Counter[int]] | None
) -> dict[str, dict]:
    """Return SEVLM's entries by image id, in the order of `annotations`: one for each painting and language.

    Args:
        histograms: votes by (painting, language, True for v2), source of the distributions; None: the annotations.

    Raises:
        UserError: two paintings have the same id.
    """
    from data.readers.artemis import image_id  # imported here: imports numpy, which --help does not need

    found: dict[str, dict] = {}
    groups: dict[tuple[str, str], list[Annotation]] = {}
    for annotation in annotations:
        groups.setdefault((annotation.name, annotation.language), []).append(annotation)
    several = len({language for _, language in groups}) > 1
    for (name, language), listed in groups.items():
        votes = Counter(annotation.emotion for annotation in listed)
        if histograms is not None:
            votes = Counter()
            for new in {annotation.new for annotation in listed}:
                votes.update(histograms[name, language, new])
        shares = [votes[emotion] / votes.total() for emotion in range(len(EMOTIONS))]
        entry = {
            "image_name": f"{name}.jpg",
            "emotions": [EMOTIONS[annotation.emotion] for annotation in listed],
            "explanations": [annotation.text for annotation in listed],
            "origin_emotion_distribution": shares,
            "image_emotion_distribution": shares,
        } | ({"language": language} if language else {})
        other = found.setdefault(str(image_id(f"{name} {language}" if several else name)), entry)
        if other is not entry:
            raise UserError(f"{name}.jpg and {other['image_name']} have the same image id; leave one of them out")
    return found


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
    paths = {name: given[name] for name in INPUTS if given[name] is not None}
    return {
        "made_by": MADE_BY,
        "version": VERSION,
        "dataset": "ArtEmis v2" if prepared.is_v2 else "ArtEmis v1",
        "settings": {"subset": prepared.subset, "split": prepared.shares or prepared.split_from}
        | {name: given[name] for name in SETTINGS},
        "images": None if arguments.images is None else str(arguments.images),
        "inputs": {name: {"path": str(path), **fingerprint(path)} for name, path in paths.items()},
        "software": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "splits": {part: _counts(entries) for part, entries in prepared.entries.items()},
        "left_out": dict(_reasons(prepared.left_out)),
        "languages": _by_language(prepared),
        "tokens": _lengths(prepared.lengths),
        "corrections": {f"{written} > {right}": n for (written, right), n in _ranked(prepared.corrections)},
    }


def _counts(entries: dict[str, dict]) -> dict:
    votes = Counter(emotion for entry in entries.values() for emotion in entry["emotions"])
    emotions = {emotion: votes[emotion] for emotion in EMOTIONS}
    return {"images": len(entries), "annotations": votes.total(), "emotions": emotions}


def _reasons(left_out: Sequence[LeftOut]) -> list[tuple[str, int]]:
    """Return the reasons and their number of rows or images, the most frequent first."""
    return _ranked(Counter(item.reason.partition(": ")[0] for item in left_out))


def _by_language(prepared: Prepared) -> dict[str, dict]:
    """Return the rows of each language in the file, those kept, and those left out by reason."""
    kept: Counter[str] = Counter()
    for part in (TRAIN, VAL, TEST, REST):
        for entry in prepared.entries.get(part, {}).values():
            kept[entry.get("language", "")] += len(entry["emotions"])
    lost = Counter((item.language, item.reason.partition(": ")[0]) for item in prepared.left_out if item.line)
    lost += prepared.dropped
    return {
        language: {
            "rows": rows,
            "kept": kept[language],
            "left_out": {reason: count for (name, reason), count in _ranked(lost) if name == language},
        }
        for language, rows in _ranked(prepared.rows_by_language)
    }


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
    unfinished = out / ".unfinished"  # replaced if a killed process has left one
    write_folder(unfinished, fill)
    written = sorted(unfinished.iterdir(), key=lambda path: path.name == MANIFEST)  # it lists the others: last
    for name in set(earlier if isinstance(earlier, dict) else ()) - {path.name for path in written}:
        if OURS.fullmatch(name):
            (out / name).unlink(missing_ok=True)
    for path in written:
        path.replace(out / path.name)
    unfinished.rmdir()


def summary(prepared: Prepared) -> str:
    """Return images and annotations of every file, and the reasons for leaving rows out."""
    lines = [f"{'split':<24}{'images':>10}{'annotations':>14}"]
    for part, entries in prepared.entries.items():
        annotations = sum(len(entry["emotions"]) for entry in entries.values())
        lines.append(f"{part:<24}{len(entries):>10,}{annotations:>14,}")
    if prepared.split_from is not None:
        lines += ["", f"split as in {prepared.split_from}"]
    if prepared.left_out:
        lines += ["", f"left out (listed in {LEFT_OUT})"]
        lines += [f"  {reason:<32}{count:>14,}" for reason, count in _reasons(prepared.left_out)]
    if prepared.rows_by_language:
        lines += ["", f"{'language':<24}{'rows':>10}{'kept':>14}  left out"]
        for language, found in _by_language(prepared).items():
            reasons = ", ".join(f"{reason} {count:,}" for reason, count in found["left_out"].items())
            lines.append(f"{language or 'none given':<24}{found['rows']:>10,}{found['kept']:>14,}  {reasons}".rstrip())
    if "cl_train" in prepared.entries:
        lines += ["", "cl_train: the paintings of train that evoke two or more emotions, which preset=sevlm trains on"]
    if both := prepared.entries.get("test_40", {}).keys() & prepared.entries.get(TRAIN, {}).keys():
        lines += ["", f"{len(both):,} images of test_40 are in train too, with v2's annotations, as in the original"]
    return "\n".join(lines)


def next_commands(prepared: Prepared, arguments: argparse.Namespace) -> str:
    """Return the shell commands that copy the pictures and train on it."""
    preset = f"artemis_{'v2' if prepared.is_v2 else 'v1'}"
    root = [] if arguments.out == Path("datasets") / preset else [f"dataset.root={arguments.out}"]
    images = ["images", str(arguments.images or "WIKIART"), "--out", str(arguments.out / "images")]
    commands = (
        ["python", "-m", "data.prepare", *images, *["--follow-links"] * arguments.follow_links],
        ["python", "run.py", "mode=train", f"preset={preset}", "name=mine", *root],
    )
    return "\n".join(map(shlex.join, commands))
