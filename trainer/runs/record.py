"""The record of how a run was made.

RUN/config.yaml   the resolved configuration; `python run.py mode=train --config-path=RUN name=OTHER` repeats the run
RUN/run.json      digests of data and weights, and for every start: versions, git commit, hardware, command
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.files import write_json, write_text
from common.ranks import command_line
from common.reading import read_json
from trainer.runs.provenance import environment

CONFIG, RECORD = "config.yaml", "run.json"
RESUME = {"trainer.overwrite": None, "trainer.resume": "auto"}  # keys of a command that resumes


def write_record(run: Path, config: DictConfig, ingredients: Mapping[str, Any], *, step: int) -> None:
    """Write config.yaml and run.json when a training starts or resumes at `step`.

    Args:
        ingredients: see trainer.setup.ingredients.
    """
    repeated = config.copy()
    if repeated.trainer.exp_name == repeated.name:
        repeated.trainer.exp_name = "${name}"  # so that another name is enough to repeat it in another folder
    starts: Any = []
    with suppress(OSError, ValueError, KeyError, TypeError):
        starts = read_json(run / RECORD)["starts"] if step else []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    start = {"time": now, "step": step, "command": command(), "folder": str(Path.cwd()), **environment()}
    starts = [*(starts if isinstance(starts, list) else []), start]
    write_json(run / RECORD, {"name": config.name, "seed": config.seed, "made_of": ingredients, "starts": starts})
    write_text(run / CONFIG, OmegaConf.to_yaml(repeated))


def command(changes: Mapping[str, object] | None = None) -> str:
    """Return the command line of this process or of its launcher with `changes` to its keys; None removes a key."""
    words = command_line()
    new = [f"{key}={value}" for key, value in (changes or {}).items() if value is not None]
    keys = {*(changes or ())} - {word.partition("=")[0] for word in new if word in words}
    words = [word for word in words if word.partition("=")[0] not in keys]
    return shlex.join([*words, *(word for word in new if word not in words)])
