"""Digests of what a training is made of besides its configuration."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from common.files import sha256
from common.reading import expanded
from data.samples import Samples
from model.build import own_state
from model.captioner import Captioner
from model.weights.digests import add_tensors
from trainer.setup.parts import Parts


def ingredients(config: DictConfig, samples: Mapping[str, Samples], parts: Parts) -> dict[str, dict[str, Any]]:
    """Digests of the files that a training depends on, by the configuration key that names them.

    Pictures are not read: the digest of a folder is that of the file names in use.
    """
    found = of_images(config, samples)
    if config.model.vad.enabled:
        found["dataset.vad_lexicon"] = of_file(config.dataset.vad_lexicon)
    tokenizer = parts.template.tokenizer.backend_tokenizer.to_str()
    found["dataset.tokenizer"] = {"sha256": hashlib.sha256(tokenizer.encode()).hexdigest()}
    for key, digest in _frozen(parts.captioner).items():
        found[key] = {"sha256": digest}
    return found


def of_images(config: DictConfig, samples: Mapping[str, Samples]) -> dict[str, dict[str, Any]]:
    """The same for annotations and images alone."""
    found: dict[str, dict[str, Any]] = {}
    for split, of_split in samples.items():
        files = config.dataset[split]
        if files.json_path is not None:
            found[f"dataset.{split}.json_path"] = of_file(files.json_path)
        root = os.path.realpath(expanded(files.visual_dir or config.dataset.train_ds.visual_dir))
        names = (os.path.relpath(of_split.path(index), root) for index in range(len(of_split)))
        found[f"dataset.{split}.visual_dir"] = {"images": len(of_split), "sha256": _names(names)}
    return found


def of_file(path: str) -> dict[str, str]:
    absolute = expanded(path).absolute()
    return {"path": str(absolute), "sha256": sha256(absolute)}


def _names(names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + b"\0")
    return digest.hexdigest()


def _frozen(captioner: Captioner) -> dict[str, str]:
    """Digests of the frozen pretrained weights, which are not in the checkpoints."""
    own, found = own_state(captioner), {}
    for key, prefix in (("model.vision.pretrained_name", "vision."), ("model.text.pretrained_name", "language.")):
        state = captioner.state_dict().items()
        if frozen := {name: tensor for name, tensor in state if name.startswith(prefix) and name not in own}:
            found[key] = of_tensors(frozen)
    return found


def of_tensors(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    add_tensors(digest, state)
    return digest.hexdigest()
