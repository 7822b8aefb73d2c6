"""The record of how a run was made.

RUN/config.yaml   the resolved configuration; `python run.py mode=train --config-path=RUN name=OTHER` repeats the run
RUN/run.json      digests of data and weights, and for every start: versions, git commit, hardware, command
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.files import write_json, write_text
from common.ranks import command_line
from common.reading import read_json
from trainer.runs.provenance import environment

CONFIG, RECORD = "config.yaml", "run.json"
GOING_ON = {"trainer.overwrite": None, "trainer.resume": "auto"}  # changes of a command that goes on where it stopped


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
