"""`python -m data.prepare instructions`: the splits one after the other."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from data.emotion_folder import Source, find_source
from data.locks import Busy, locked
from data.prepare.check import compose_dataset
from data.prepare.export import fingerprint
from data.prepare.instructions import SPLITS
from data.prepare.instructions.conversations import (
    Account,
    chosen,
    from_annotations,
    from_model,
    in_order,
    lines,
)
from data.prepare.instructions.wording import KINDS
from data.prepare.instructions.words import class_words
from data.readers import read_split
from data.samples import Samples
from errors import UserError
from files import write_json, write_text
from foreign import expanded, read_json
from progress import progress

MADE_BY = "python -m data.prepare instructions"
VERSION = 1  # of the form and of the rules that make the texts


class Part(NamedTuple):
    """A split of the data, as far as it is used."""

    name: str
    samples: Samples
    rows: list[int]  # in the order of the ids
    root: Path  # image folder, without symbolic links
    json_path: Path | None  # None where the folders say it all
    missing: int  # images


def prepare(arguments: argparse.Namespace) -> int:
    dataset = compose_dataset(arguments.keys)
    splits = list(dict.fromkeys(arguments.split or ["train"]))
    _check(arguments, dataset, splits)
    with _alone(arguments.out):
        complete = [_prepare_split(_read(dataset, split, arguments.limit), arguments, dataset) for split in splits]
    return 0 if all(complete) else 1


def _check(arguments: argparse.Namespace, dataset: Mapping[str, Any], splits: Sequence[str]) -> None:
    if (arguments.endpoint is None) != (arguments.model is None):
        raise UserError("--endpoint and --model belong together: give both, or neither to use the annotations alone")
    if arguments.retries < 0 or not 0 < arguments.timeout < 1e5:
        raise UserError("--retries must be at least 0, and --timeout more than 0 seconds")
    if dataset["name"] == "mlslt":
        raise UserError("dataset.name=mlslt: conversations are about pictures, and this data holds videos")
    for split in splits:
        if dataset["name"] != "emotion_folder" and dataset[SPLITS[split]]["json_path"] is None:
            raise UserError(
                f"--split {split}: this data has none; give dataset.{SPLITS[split]}.json_path and "
                f"dataset.{SPLITS[split]}.visual_dir"
            )
        out = arguments.out / f"instructions_{split}.jsonl"
        if out.exists() and not _is_ours(arguments.out / f"manifest_{split}.json"):
            raise UserError(f"{out} was not made by this command; name another folder with --out")


def _is_ours(manifest: Path) -> bool:
    try:
        content = read_json(manifest)
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.get("made_by") == MADE_BY


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two at once would pay for every answer twice."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(out / ".lock", purpose="making conversations", wait=False))
        except Busy as holder:
            raise UserError(f"--out {out} is in use: {holder}") from None
        except OSError as error:
            raise UserError(f"--out {out} cannot be written ({error.strerror or error})") from None
        yield
        (out / ".lock").unlink(missing_ok=True)


def _read(dataset: Mapping[str, Any], split: str, limit: int | None) -> Part:
    key = SPLITS[split]
    found = read_split(dataset, key)
    rows = in_order(found.samples)[:limit]
    if not rows:
        raise UserError(f"dataset.{key}: none of its {len(found.skipped)} images is there; see `data.prepare check`")
    if dataset["name"] == "emotion_folder":
        source = find_source(dataset, key) or find_source(dataset, "train_ds")  # validation may be a share of training
    else:
        source = Source(expanded(dataset[key]["visual_dir"]), expanded(dataset[key]["json_path"]))
    root = Path(os.path.realpath(source.folder))
    return Part(split, found.samples, rows, root, source.json_path, len(found.skipped))


def _prepare_split(part: Part, arguments: argparse.Namespace, dataset: Mapping[str, Any]) -> bool:
    """Whether every picture that a model was asked about has an answer, or is known to get none."""
    account, extra, complete = Account(), {}, True
    if arguments.endpoint is None:
        found = from_annotations(part.samples, part.rows, part.root, account, each_vote=arguments.categorical == "each")
    else:
        from data.prepare.instructions.asking import answers_of

        labels = part.samples.labels
        named = [(row, chosen(part.samples[row], labels)) for row in part.rows]
        asked = [(row, label) for row, label in named if label is not None]
        if not asked:
            raise UserError(f"--split {part.name}: no image has an emotion that a model could be asked about")
        answers, extra = answers_of(part, asked, arguments, max_pixels=dataset["max_pixels"])
        complete = len(answers) == len(asked)
        found = from_model(part.samples, part.rows, part.root, answers, account)
    out = arguments.out / f"instructions_{part.name}.jsonl"
    with progress(len(part.rows), f"writing {part.name}", unit="image") as bar:
        write_text(out, lines(_counted(found, bar), part.samples.labels, account,
                              seed=arguments.seed, system=arguments.system == "on"))  # fmt: skip
    write_json(arguments.out / f"manifest_{part.name}.json", _manifest(part, out, account, arguments) | extra)
    print(_summary(part, out, account))
    return complete


def _counted(found: Iterator, bar) -> Iterator:
    """The bar moves on whenever another image's turn comes."""
    image = None
    for talk in found:
        bar.update(talk.image_id != image)
        image = talk.image_id
        yield talk


def _manifest(part: Part, out: Path, account: Account, arguments: argparse.Namespace) -> dict[str, Any]:
    labels = part.samples.labels
    by_label = Counter(account.made)
    names = [*labels, None] if any(label is None for _, label in by_label) else labels
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
        "conversations": {kind: {str(name or "no label"): by_label[kind, name] for name in names} for kind in KINDS},
        "left_out": {**({"image not found": part.missing} if part.missing else {}), **_commonest(account.left_out)},
        "output": {"path": out.name, **fingerprint(out)},
    }


def _commonest(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item)))


def _summary(part: Part, out: Path, account: Account) -> str:
    kinds = Counter()
    for (kind, _), number in account.made.items():
        kinds[kind] += number
    made = [f"  {kind:<16}{kinds[kind]:>12,}" for kind in KINDS]
    left_out = [f"  {reason:<70}{number:>12,}" for reason, number in _commonest(account.left_out).items()]
    if part.missing:
        left_out.insert(0, f"  {'image not found':<70}{part.missing:>12,}")
    head = [f"{part.name}: {len(part.rows):,} images, conversations in {out}"]
    return "\n".join([*head, *made, *(["left out", *left_out] if left_out else [])])
