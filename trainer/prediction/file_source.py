"""Emotions that another system predicted, from a file: a source of the gate.

The file is JSON lines, a JSON list or a table. A row names its picture under one or two of NAMES, and has probabilities
under one of DISTRIBUTIONS (a list in the order of the labels, or an object by label) or else only "emotion".
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import torch
from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor

from common.errors import UserError
from common.files import sha256
from data.cache.digests import signature_of
from data.emotions import emotion_index, label_set, normalize_label, one_hot
from data.readers.annotations import id_of, shares_of, texts_of
from data.readers.records import load
from data.samples import Samples
from trainer.runs.logits import digests_of, file_digests

DISTRIBUTIONS = ("emotion_distribution", "label_probabilities", "emotion_probabilities", "probabilities")
NAMES = ("image_id", "id", "image", "image_name", "file_name")  # keys that name the picture of a row


@dataclass
class FileSource:
    """rows: log-probabilities (C,) by each name of a picture; images: the rows' image files, if they are there."""

    name: str
    path: Path
    answers: bool
    rows: dict[str, Tensor]
    images: dict[Path, Tensor] = field(default_factory=dict)
    is_file: bool = True

    def seen(self) -> dict[str, Tensor]:
        return {}

    @functools.cached_property
    def digest(self) -> str:
        return sha256(self.path)

    def log_probs(
        self, samples: Samples, config: DictConfig, accelerator: Accelerator, folder: Path
    ) -> dict[str, Tensor]:
        """See Source. A picture's row is that of the same file content, else of its id, else of its path's end."""
        cache, show = config.dataset.feature_cache, accelerator.is_local_main_process
        sizes = {_size(sample.path) for sample in samples}
        images = [path for path in self.images if _size(path) in sizes]  # no other one can have the same content
        by_digest = dict(zip(file_digests(images, cache, show=show), map(self.images.get, images), strict=True))
        shared = Counter(sample.path.name for sample in samples)
        found = {}
        for sample, digest in zip(samples, digests_of(samples, cache, show=show), strict=True):
            parts = sample.path.parts
            ends = [PurePath(*parts[i:]).as_posix() for i in range(len(parts) - (shared[sample.path.name] > 1))]
            rows = [self.rows[name] for name in (sample.id, *ends) if name in self.rows]
            rows = [by_digest[digest], *rows] if digest is not None and digest in by_digest else rows
            found.update({sample.id: rows[0]} if rows else {})
        return found


def _size(path: Path) -> int | None:
    """Return the size of a file in bytes; None if there is none."""
    signature = signature_of(path)
    return None if signature is None else signature.size


def read_file(name: str, path: Path, labels: tuple[str, ...]) -> FileSource:
    """Read the rows that have probabilities, or in a file without any the answers.

    Raises:
        UserError: no such file, or one without a usable row; a malformed row; a picture twice; other labels.
    """
    content = load(path)
    entries = [(f"{path}, line 1", content)] if isinstance(content, dict) else content.entries
    known = [(where, record, _names(record, where)) for where, record in entries]
    key = next((key for key in DISTRIBUTIONS if any(record.get(key) for _, record, _ in known)), None)
    source = FileSource(name, path, answers=key is None, rows={})
    for where, record, names in known:
        shares = _answer(record, labels, where) if key is None else _shares(record, key, labels, where)
        if shares is None:
            continue
        row = torch.tensor(shares).log()
        if names[0] in source.rows:
            raise UserError(f"{where}: the picture {names[0]!r} occurs twice in the file")
        source.rows |= dict.fromkeys(names, row)
        places = [folder / image for image in names[-1:] for folder in (Path(), path.parent)]
        source.images.update({place: row for place in places if _size(place) is not None})
    if not source.rows:
        keys = f"{', '.join(DISTRIBUTIONS)} or emotion"
        raise UserError(f"expert.sources: no row of {path} has one of the emotions {', '.join(labels)} under {keys}")
    return source


def _names(record: Mapping[str, Any], where: str) -> list[str]:
    """Return the id and the image of a row, if it has both."""
    names = [id_of(record, key, where=where) for key in NAMES if record.get(key) not in (None, "")]
    if not names:
        raise UserError(f"{where}: none of the keys {', '.join(NAMES)} names the picture")
    return names


def _shares(record: Mapping[str, Any], key: str, labels: tuple[str, ...], where: str) -> list[float] | None:
    """Return the probabilities of a row, None if it has none."""
    if record.get("labels"):
        require_labels(label_set(texts_of(record, "labels", where=where), where=where), labels, where=where)
    given = record.get(key)
    if not given:
        return None
    if isinstance(given, dict):
        by_label = {labels[emotion_index(name, where=where, labels=labels)]: share for name, share in given.items()}
        given = [by_label.get(label, 0) for label in labels]
    return shares_of(given, labels, where=f"{where}: {key!r}")


def _answer(record: Mapping[str, Any], labels: tuple[str, ...], where: str) -> tuple[float, ...] | None:
    """Return 1 for the emotion of a row, 0 for the others; None if it names none of the labels."""
    said = record.get("emotion", record.get("label"))
    said = normalize_label(said) if isinstance(said, str) else None
    return one_hot(labels.index(said), labels) if said in labels else None


def require_labels(found: Iterable[str], labels: Sequence[str], *, where: str) -> None:
    """Raise UserError unless both are the same labels in the same order."""
    if tuple(found) != tuple(labels):
        raise UserError(
            f"expert.sources: {where} is for the emotions {', '.join(found)}, and here they are {', '.join(labels)}"
        )
