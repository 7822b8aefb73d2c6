"""The record of how a run was made.

RUN/config.yaml   the resolved configuration; `python run.py mode=train --config-path=RUN name=OTHER` repeats the run
RUN/run.json      digests of data and weights, and for every start: versions, git commit, hardware, command
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from data.samples import Samples
from files import sha256, write_json, write_text
from foreign import expanded, read_json
from launcher import command_line
from model.build import own_state
from model.captioner import Captioner
from model.digests import add_tensors
from trainer.parts import Parts
from trainer.provenance import environment

CONFIG, RECORD = "config.yaml", "run.json"
GOING_ON = {"trainer.overwrite": None, "trainer.resume": "auto"}  # changes of a command that goes on where it stopped


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


def write_record(run: Path, config: DictConfig, made_of: Mapping[str, Any], *, step: int) -> None:
    """Write config.yaml and run.json when a training starts, or resumes at `step`."""
    repeated = config.copy()
    if repeated.trainer.exp_name == repeated.name:
        repeated.trainer.exp_name = "${name}"  # so that another name is enough to repeat it beside this one
    earlier = _earlier(run / RECORD) if step else []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    start = {"time": now, "step": step, "command": command(), "folder": str(Path.cwd()), **environment()}
    record = {"name": config.name, "seed": config.seed, "made_of": made_of, "starts": [*earlier, start]}
    write_json(run / RECORD, record)
    write_text(run / CONFIG, OmegaConf.to_yaml(repeated))


def _earlier(path: Path) -> list[Any]:
    try:
        starts = read_json(path)["starts"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return starts if isinstance(starts, list) else []


def command(changes: Mapping[str, object] | None = None) -> str:
    """The command line of this process, or of its launcher, with `changes` to its keys; None removes a key."""
    words = command_line()
    new = [f"{key}={value}" for key, value in (changes or {}).items() if value is not None]
    keys = {*(changes or ())} - {word.partition("=")[0] for word in new if word in words}
    kept = [word for word in words if word.partition("=")[0] not in keys]
    return shlex.join([*kept, *(word for word in new if word not in kept)])
