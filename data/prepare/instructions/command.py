"""`python -m data.prepare instructions`: one split after the other."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.config.rules import SHARDS
from common.errors import UserError
from common.files import write_json, write_text
from common.progress import progress
from common.reading import expand_user
from data.prepare.check.command import compose_dataset
from data.prepare.export import fingerprint, read_manifest
from data.prepare.instructions import SPLITS
from data.prepare.instructions.class_words import class_words
from data.prepare.instructions.collect import check_options, reserved
from data.prepare.instructions.conversations import KINDS, Account, dominant, from_annotations, from_model, lines
from data.readers.emotion_folder import Source, find_source
from data.readers.split import read_split
from data.samples import Samples

MADE_BY = "python -m data.prepare instructions"
VERSION = 1  # of the form and of the rules that make the texts
NOT_FOUND = "image not found"


class Part(NamedTuple):
    """What is used of one split."""

    name: str
    samples: Samples
    rows: list[int]  # in the order of the ids
    root: Path  # image folder, without symbolic links
    json_path: Path | None  # None for data without an annotation file
    missing: int  # images


def prepare(arguments: argparse.Namespace) -> int:
    dataset = compose_dataset(arguments.keys)
    splits = list(dict.fromkeys(arguments.split or ["train"]))
    _check(arguments, dataset, splits)
    with reserved(arguments.out, purpose="making instruction data"):
        complete = [_prepare_split(_read(dataset, split, arguments.limit), arguments, dataset) for split in splits]
    return 0 if all(complete) else 1


def _check(arguments: argparse.Namespace, dataset: Mapping[str, Any], splits: Sequence[str]) -> None:
    if (arguments.endpoint is None) != (arguments.model is None):
        raise UserError("--endpoint and --model belong together: give both, or neither to use the annotations alone")
    if arguments.prompt_file is not None and arguments.endpoint is None:
        raise UserError("--prompt_file is the request to a model: give --endpoint and --model too")
    check_options(arguments)
    if dataset["name"] == "mlslt":
        raise UserError("dataset.name=mlslt: conversations are about pictures, and this data contains videos")
    if dataset["name"] == SHARDS:
        raise UserError("dataset.name=shards: conversations name pictures of a folder; unpack the shards for them")
    for split in splits:
        key = SPLITS[split]
        if dataset["name"] != "emotion_folder" and dataset[key]["json_path"] is None:
            raise UserError(f"--split {split} has no data; give dataset.{key}.json_path and dataset.{key}.visual_dir")
        out = arguments.out / f"instructions_{split}.jsonl"
        if out.exists() and read_manifest(arguments.out / f"manifest_{split}.json", MADE_BY) is None:
            raise UserError(f"{out} was not made by this command; give another folder as --out")


def _read(dataset: Mapping[str, Any], split: str, limit: int | None) -> Part:
    key = SPLITS[split]
    found = read_split(dataset, key)
    samples = found.samples
    rows = sorted(range(len(samples)), key=lambda row: (samples.ids[row], row))[:limit]
    if not rows:
        raise UserError(f"dataset.{key}: none of its {len(found.skipped)} images exists; see `data.prepare check`")
    if dataset["name"] == "emotion_folder":
        source = find_source(dataset, key) or find_source(dataset, "train_ds")  # validation may be a share of training
    else:
        source = Source(expand_user(dataset[key]["visual_dir"]), expand_user(dataset[key]["json_path"]))
    root = Path(os.path.realpath(source.folder))
    return Part(split, samples, rows, root, source.json_path, len(found.skipped))


def _prepare_split(part: Part, arguments: argparse.Namespace, dataset: Mapping[str, Any]) -> bool:
    """Write the files of a split; return False if a later run can still get missing answers."""
    samples, complete, extra = part.samples, True, {}
    account = Account(left_out=Counter({NOT_FOUND: part.missing} if part.missing else {}))
    out = arguments.out / f"instructions_{part.name}.jsonl"
    if arguments.endpoint:
        answers, extra, complete = _answers(part, arguments, dataset["max_pixels"])
    with progress(len(part.rows), f"writing {part.name}", unit="image") as bar:
        rows = _tracked(part.rows, bar)
        if arguments.endpoint:
            talks = from_model(samples, rows, part.root, answers)
        else:
            talks = from_annotations(samples, rows, part.root, each_vote=arguments.categorical == "each")
        write_text(out, lines(talks, samples.labels, account, seed=arguments.seed, system=arguments.system == "on"))
    write_json(arguments.out / f"manifest_{part.name}.json", _manifest(part, out, account, arguments) | extra)
    print(_summary(part, out, account))
    return complete


def _answers(part: Part, arguments: argparse.Namespace, max_pixels: int) -> tuple[dict[str, dict], dict, bool]:
    """Return a model's answers, the manifest's entries about it, and whether every picture has an answer."""
    from data.prepare.instructions.answers import Task, answers_of

    samples = part.samples
    labels = ((row, dominant(samples[row], samples.labels)) for row in part.rows)
    tasks = [Task(samples[row].id, samples.path(row), label) for row, label in labels if label is not None]
    if not tasks:
        raise UserError(f"--split {part.name}: no image has a dominant emotion, which the model's prompt needs")
    path = arguments.out / f"answers_{part.name}.jsonl"
    answers, extra = answers_of(tasks, path, arguments, samples.labels, max_pixels=max_pixels)
    return answers, extra, len(answers) == len(tasks)


def _tracked(rows: Iterable[int], bar) -> Iterator[int]:
    for row in rows:
        yield row
        bar.update()


def _manifest(part: Part, out: Path, account: Account, arguments: argparse.Namespace) -> dict[str, Any]:
    labels, made = part.samples.labels, account.made
    names = [*labels, None] if any(label is None for _, label in made) else labels
    return {
        "made_by": MADE_BY,
        "version": VERSION,
        "split": part.name,
        "image_folder": str(part.root),
        "input": None if part.json_path is None else {"path": str(part.json_path), **fingerprint(part.json_path)},
        "settings": {
            "seed": arguments.seed,
            "system": arguments.system,
            "limit": arguments.limit,
            "categorical": arguments.categorical if arguments.endpoint is None else "dominant",
        },
        "labels": list(labels),
        "forbidden_words": {label: list(class_words(label).forms) for label in labels},
        "images": len(part.rows),
        "conversations": {kind: {str(name or "no label"): made[kind, name] for name in names} for kind in KINDS},
        "left_out": _left_out(account),
        "output": {"path": out.name, **fingerprint(out)},
    }


def _left_out(account: Account) -> dict[str, int]:
    """Return the reasons, missing images first, then the most frequent."""
    return dict(sorted(account.left_out.items(), key=lambda item: (item[0] != NOT_FOUND, -item[1], item[0])))


def _summary(part: Part, out: Path, account: Account) -> str:
    rows = [f"{part.name}: {len(part.rows):,} images, conversations in {out}"]
    for kind in KINDS:
        number = sum(count for (other, _), count in account.made.items() if other == kind)
        rows.append(f"  {kind:<16}{number:>12,}")
    left_out = [f"  {reason:<70}{number:>12,}" for reason, number in _left_out(account).items()]
    return "\n".join([*rows, *(["left out", *left_out] if left_out else [])])
