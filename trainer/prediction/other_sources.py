"""Further sources of the gate, expert.sources: runs of stage=vle_emotion or vlm, and files of predictions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from omegaconf import DictConfig
from torch import Tensor

from common.config.rules import GATES, VLM
from common.errors import UserError
from common.reading import expand_user
from data.emotions import EMOTIONS
from data.samples import Samples
from trainer.metrics.sources import MAJORITY, ORACLE, SOURCES
from trainer.prediction.file_source import read_file, require_labels
from trainer.runs.checkpoint import find_checkpoint
from trainer.runs.console import print_status

TABLES = (".json", ".jsonl", ".csv", ".tsv")
RESERVED = {*SOURCES, *GATES, MAJORITY, ORACLE, "captioner", "head", "fused", "people"}
FORM = "a run of stage=vle_emotion or stage=vlm, or a file of predictions"


class Source(Protocol):
    """What is given as NAME=WHAT.

    path: of the run or file. answers: whether it names one emotion, without probabilities. digest: SHA-256 of what its
    predictions depend on.
    """

    name: str
    path: Path
    answers: bool
    is_file: bool
    digest: str

    def seen(self) -> dict[str, Tensor]:
        """Return the training images, by name; see trainer.runs.seen. Those of a file are unknown."""

    def log_probs(
        self, samples: Samples, config: DictConfig, accelerator: Accelerator, folder: Path
    ) -> dict[str, Tensor]:
        """Return log-probabilities (C,) by image id, without images that have none.

        Args:
            folder: for files with computed ones.
        """


def read_sources(entries: Sequence[str], config: DictConfig) -> list[Source]:
    """Return the sources of expert.sources, NAME=WHAT each; config.dataset.labels is complete.

    Raises:
        UserError: a name that is not one or occurs twice, no such run or file, other labels, or a malformed row.
    """
    pairs = [split_entry(entry) for entry in entries]
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise UserError(f"expert.sources names {twice[0]} twice: give each source a name of its own")
    return [_read_source(name, what, config) for name, what in pairs]


def split_entry(entry: str) -> tuple[str, str]:
    """Return name and what it stands for."""
    name, equals, what = (part.strip() for part in entry.partition("="))
    if not equals or not what:
        raise UserError(f"expert.sources: {entry!r} is not NAME=WHAT, where WHAT is {FORM}")
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise UserError(f"expert.sources: the name {name!r} must consist of letters, digits and underscores")
    if name in RESERVED:
        raise UserError(f"expert.sources: {name} is the name of something else in the tables; choose another one")
    return name, what


def _read_source(name: str, what: str, config: DictConfig) -> Source:
    path, labels = expand_user(what), tuple(config.dataset.labels)
    if path.is_file() or path.suffix.lower() in TABLES:
        return read_file(name, path, labels)
    checkpoint = find_checkpoint(what, Path(config.trainer.exp_dir), key=f"expert.sources: {name}")
    if (stage := checkpoint.config.get("stage")) not in ("vle_emotion", VLM):
        raise UserError(f"expert.sources: {checkpoint.folder} is of stage={stage}; {name} must be {FORM}")
    require_labels(checkpoint.config.dataset.get("labels") or EMOTIONS, labels, where=str(checkpoint.folder))
    if stage == VLM:  # imported here: other experts need neither
        from trainer.prediction.vlm_source import VlmSource as RunSource
    else:
        from trainer.prediction.vle_source import VleSource as RunSource
    return RunSource(name, checkpoint)


def read_fitted(
    fitted: Mapping[str, Mapping[str, Any]],
    samples: Samples,
    config: DictConfig,
    accelerator: Accelerator,
    folder: Path,
) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Return the log-probabilities of a fitted gate's further sources, by name and image id, and their digests.

    Args:
        fitted: "from" of the gate in checkpoint.json: path, sha256 and answers of each source. expert.sources names
            other places.

    Raises:
        UserError: see read_sources; a source that the gate does not have, or in mode=test one without any image.
    """
    places = {name: str(found["path"]) for name, found in fitted.items()}
    named = dict(split_entry(entry) for entry in config.expert.sources)
    if unknown := named.keys() - places.keys():
        raise UserError(f"expert.sources: the gate was not fitted with {min(unknown)}; run stage=gate with it")
    found, digests = {}, {}
    for name, what in (places | named).items():
        if config.mode == "predict" and Path(what).suffix.lower() in TABLES and not expand_user(what).is_file():
            print_status(f"warning: {what} is missing; for {name} the gate uses the average of the other sources")
            continue
        (source,) = read_sources([f"{name}={what}"], config)
        if source.answers != fitted[name]["answers"]:
            kind = "answers without probabilities" if fitted[name]["answers"] else "probabilities"
            raise UserError(f"expert.sources: the gate was fitted with {kind} of {name}, and {what} has others")
        digests[name] = source.digest
        if not source.is_file and digests[name] != fitted[name]["sha256"]:
            print_status(f"warning: the gate was fitted with another network than that of {source.path}")
        found[name] = source.log_probs(samples, config, accelerator, folder)
        report_missing(source, samples, found[name], required=config.mode == "test")
    return found, digests


def report_missing(source: Source, samples: Samples, found: Mapping[str, Tensor], *, required: bool) -> None:
    """Print how many images have no entry; raise UserError if none has one and that is `required`."""
    missing = len(samples) - len(found)
    if missing == len(samples) and required:
        raise UserError(
            f"expert.sources: {source.path} has no prediction for any of the {missing} pictures, the first is "
            f"{samples[0].id} ({samples[0].path.name}): name a file that has them"
        )
    if missing:
        where = f"{missing} of {len(samples)} pictures have no entry"
        print_status(f"{source.name}: {where}; there the gate uses the average of the other sources")
