"""A checkpoint of a captioner or VLM with heads and gates, which test and predict use like any other.

CHECKPOINT/ as in trainer/runs/checkpoint.py, and:  student.safetensors   the heads, HEAD.NAME
                                                   gate.safetensors      the gates and temperatures
                                                   teacher.jsonl         the teacher's logits, for a row of the test
                                                   checkpoint.json       "expert": their settings and validation scores
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from common.config.rules import VLM
from common.files import write_folder, write_json
from data.emotions import labels_entry
from trainer.runs.checkpoint import TRAINING, Checkpoint
from trainer.runs.provenance import provenance
from trainer.runs.retention import SUMS, folder_name, retain, write_sums
from trainer.runs.seen import FILE as SEEN
from trainer.runs.seen import write_seen

HEADS, GATE, TEACHER = "student.safetensors", "gate.safetensors", "teacher.jsonl"
NOT_COPIED = (TRAINING, SUMS, SEEN, "config.yaml", "checkpoint.json")


def write_bundle(
    run: Path,
    source: Checkpoint,
    *,
    config: DictConfig,
    expert: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]],
    seen: Mapping[str, Tensor],
    files: Mapping[str, Path] | None = None,
) -> Path:
    """Write RUN/checkpoints/step-N, replacing other checkpoints there, and return it.

    Args:
        source: checkpoint whose files are copied.
        expert: plain values for checkpoint.json.
        tensors: by file name.
        seen: by network, see trainer.runs.seen.
        files: paths to copy, by their new names.

    Raises:
        WriteError: a file cannot be written.
    """
    root, step = run / "checkpoints", source.info["state"]["step"]
    config = config.copy()
    config.trainer.exp_name = run.name  # where test and predict write
    if source.config.get("stage") == VLM:
        config.stage = VLM  # by which test and predict find the host
    earlier = {key: value for key, value in source.info.items() if key != "expert"}

    def fill(folder: Path) -> None:
        for path in sorted(source.folder.iterdir()):
            if path.name not in (*NOT_COPIED, *tensors) and path.is_file():
                shutil.copyfile(path, folder / path.name)
        for name, path in (files or {}).items():
            shutil.copyfile(path, folder / name)
        for name, state in tensors.items():
            save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, folder / name)
        write_seen(folder, seen)
        OmegaConf.save(config, folder / "config.yaml")
        entry = {**labels_entry(config.dataset.labels), **expert}
        write_json(folder / "checkpoint.json", {**earlier, "expert": entry, **provenance()})
        write_sums(folder)

    write_folder(root / folder_name(step), fill)
    retain(root, step, best=0, last=1)
    return root / folder_name(step)
