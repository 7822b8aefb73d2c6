"""Digests of the files that a training depends on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from common.config.rules import SHARDS
from common.files import sha256
from common.reading import expand_user
from data.samples import Samples
from data.shards import file_of
from trainer.setup.parts import Parts, frozen_weights


def ingredients(config: DictConfig, samples: Mapping[str, Samples], parts: Parts) -> dict[str, dict[str, Any]]:
    """Return the digest of each file that a training depends on, by the key that names it.

    The digest of an image folder covers the names of the images, not their contents.
    """
    found = image_digests(config, samples)
    if config.model.vad.enabled:
        found["dataset.vad_lexicon"] = file_digest(config.dataset.vad_lexicon)
    tokenizer = parts.template.tokenizer.backend_tokenizer.to_str()
    found["dataset.tokenizer"] = {"sha256": hashlib.sha256(tokenizer.encode()).hexdigest()}
    return found | frozen_weights(parts.captioner)


def image_digests(config: DictConfig, samples: Mapping[str, Samples]) -> dict[str, dict[str, Any]]:
    """Return the digests of annotations and images alone."""
    found: dict[str, dict[str, Any]] = {}
    for split, of_split in samples.items():
        files = config.dataset[split]
        if config.dataset.name == SHARDS:
            found |= _shards_digests(split, of_split, files.json_path)
            continue
        if files.json_path is not None:
            found[f"dataset.{split}.json_path"] = file_digest(files.json_path)
        root = os.path.realpath(expand_user(files.visual_dir or config.dataset.train_ds.visual_dir))
        names = hashlib.sha256()
        for index in range(len(of_split)):
            names.update(os.fsencode(os.path.relpath(of_split.path(index), root)) + b"\0")
        found[f"dataset.{split}.visual_dir"] = {"images": len(of_split), "sha256": names.hexdigest()}
    return found


def _shards_digests(split: str, samples: Samples, pattern: str) -> dict[str, dict[str, Any]]:
    """Return the digests of the annotations in the shards, and of the pictures' places in them."""
    texts, places = hashlib.sha256(), hashlib.sha256()
    for sample in samples:
        content = (sample.id, sample.texts, sample.emotions, sample.histogram, sample.language)
        texts.update(repr(content).encode("utf-8", "backslashreplace"))
        shard = file_of(sample.path)
        places.update(os.fsencode(os.path.relpath(sample.path, shard.parent)) + b"\0")
    return {
        f"dataset.{split}.json_path": {"path": str(pattern), "sha256": texts.hexdigest()},
        f"dataset.{split}.visual_dir": {"images": len(samples), "sha256": places.hexdigest()},
    }


def file_digest(path: str) -> dict[str, str]:
    absolute = expand_user(path).absolute()
    return {"path": str(absolute), "sha256": sha256(absolute)}
