"""How a training starts: anew, with the weights of another run, or by resuming; and what prevents it."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from common.config.check import defaults, groups, leaves
from common.errors import UserError
from common.faults import why_not_written
from common.files import remove_folder, require_inside, tidy
from common.locks import Busy, holder_file, locked
from trainer.runs.checkpoint import TRAINING, Checkpoint, find_checkpoint, find_in_run
from trainer.runs.console import print_status
from trainer.runs.record import CONFIG, RECORD
from trainer.runs.retention import INDEX, entries
from trainer.runs.state import TrainState

RELOCATABLE_KEYS = ("model.vision.pretrained_name", "model.vision.architecture", "model.text.pretrained_name")

LOCK = ".lock"
EPOCHS = "trainer.epochs"
FOLDERS = ("checkpoints", "tensorboard")
TRACES = (*FOLDERS, "metrics.jsonl", "skipped.jsonl", CONFIG, RECORD)
# Keys that must not change when a training resumes automatically,
FIXED = (
    "seed",
    "model.",
    "dataset.",
    "vle.",
    "vlm.",
    "trainer.precision",
    "trainer.accumulation_steps",
    "trainer.clip_grad_norm",
    "trainer.limit_train_batches",
    "trainer.checkpoint_callback_params.monitor",
)
# except locations, whose content is compared instead (trainer/setup/ingredients.py), and keys without effect on it.
FREE = (
    *RELOCATABLE_KEYS,
    *(f"dataset.{key}" for key in ("root", "tokenizer", "vad_lexicon", "facts", "strict", "test_ds.")),
    *(f"dataset.{ds}.{key}" for ds in ("train_ds", "validation_ds") for key in ("json_path", "visual_dir")),
    *(f"dataset.{ds}.num_workers" for ds in ("train_ds", "validation_ds")),
    *(
        f"vle.{key}"
        for key in ("pretrained_name", "vision", "text", "tokenizer", "answers", "partner", "retrieval_images", "llm.")
    ),
    *(f"vlm.{key}" for key in ("pretrained_name", "instructions", "tuned")),
    *(f"expert.{key}" for key in ("teacher.weights", "teacher.epochs", "student.teacher", "student.epochs")),
)


@dataclass(frozen=True, slots=True)
class Start:
    """The checkpoint that a training starts from, if any."""

    checkpoint: Checkpoint | None = None
    resumes: bool = False  # with its optimizer, schedule and step too
    same_run: bool = False  # in the folder of the checkpoint
    auto: bool = False  # because of trainer.resume=auto; then the configuration must be the same

    @property
    def state(self) -> TrainState:
        return TrainState.from_dict(self.checkpoint.info["state"]) if self.resumes else TrainState()


@contextmanager
def run_lock(run: Path, *, purpose: str = "training") -> Iterator[None]:
    """Hold the folder's lock, so that no two commands write into it, and remove unfinished files of a killed one.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    for name in (LOCK, holder_file(Path(LOCK)).name, *TRACES):
        require_inside(run / name, run, is_folder=name in FOLDERS)
    if (index := run / "checkpoints" / INDEX).is_dir():
        raise UserError(f"{index} is not a file and cannot be written: remove it")
    lock = run / LOCK
    new = [folder for folder in (run, *run.parents) if not folder.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_if_empty, new)
        try:
            stack.enter_context(locked(lock, purpose=purpose, wait=False))
            tidy(run)
            tidy(run / "checkpoints")
        except Busy as busy:
            here = f" on {socket.gethostname()}, " in str(busy)  # where the system frees the locks of dead processes
            down = "" if here else f", or, if that machine is down, delete {lock}"
            raise UserError(f"{run} is in use by {busy}: wait for it, or choose another name=…{down}") from None
        except OSError as error:
            other = "write the results elsewhere with trainer.exp_dir=FOLDER"
            other = "choose another trainer.exp_dir or name=…" if purpose == "training" else other
            raise UserError(f"{run} cannot be written ({why_not_written(run, error)}): {other}") from error
        yield


def _remove_if_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def find_start(config: DictConfig, run: Path, *, named: bool = True) -> Start:
    """Return the checkpoint to start from, if any.

    Args:
        named: False: ignore pretrained_name.

    Raises:
        UserError: the folder holds a run and the keys neither resume nor replace it, the checkpoint does not exist, or
            keys contradict each other.
    """
    auto, overwrite = config.trainer.resume == "auto", config.trainer.overwrite
    if auto and overwrite:
        raise UserError("trainer.overwrite=true begins anew and trainer.resume=auto resumes: use one of them")
    if config.resume_pretrained_state and config.pretrained_name is None:
        raise UserError("resume_pretrained_state=true needs pretrained_name=RUN: the run to resume")
    if auto and (last := _last_of(run)) is not None:
        return Start(last, resumes=True, same_run=True, auto=True)
    start = _named(config, run) if named else Start()
    if start.same_run or overwrite:
        return start
    if (run / CONFIG).exists() and not (run / RECORD).exists():
        raise UserError(f"{run / CONFIG} belongs to no run and would be replaced: move it, or choose another name=…")
    if not auto and any((run / name).exists() for name in TRACES):
        raise UserError(
            f"{run} already holds a run: choose another name=…, resume it (trainer.resume=auto; with other "
            f"settings pretrained_name={run} resume_pretrained_state=true), or replace it (trainer.overwrite=true)"
        )
    return start


def _last_of(run: Path) -> Checkpoint | None:
    """Return the run's last valid checkpoint, or None; print a warning if all are damaged."""
    try:
        last = find_in_run(run, prefer="last")
    except UserError as error:
        print(f"warning: {error}; no other checkpoint is valid, so {run} begins anew", file=sys.stderr)
        return None
    if last is not None and not (last.folder / TRAINING).is_file():
        raise UserError(
            f"{run} holds weights without the state of a training: choose another name=…, with pretrained_name={run} "
            "to start from them"
        )
    return last


def _named(config: DictConfig, run: Path) -> Start:
    if config.pretrained_name is None:
        return Start()
    resumes = config.resume_pretrained_state
    prefer = "last" if resumes else "best"
    checkpoint = find_checkpoint(config.pretrained_name, Path(config.trainer.exp_dir), prefer=prefer)
    return Start(checkpoint, resumes, same_run=resumes and checkpoint.run.resolve() == run.resolve())


def clear(run: Path, config: DictConfig, start: Start) -> None:
    """Remove an earlier run from the folder, once all checks are done; damaged checkpoints are moved aside."""
    if start.same_run:
        return
    checkpoints = run / "checkpoints"
    if entries(checkpoints) and not config.trainer.overwrite:
        aside = run / "checkpoints.damaged"
        if aside.exists():
            remove_folder(aside)
        checkpoints.rename(aside)
    for path in (run / name for name in TRACES):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def refuse_changes(config: DictConfig, checkpoint: Checkpoint, ingredients: Mapping[str, Any], processes: int) -> None:
    """Raise UserError with the first key, file or number of processes that differs from those of the checkpoint."""
    run, info = checkpoint.run, checkpoint.info
    ways = "choose another name=…, or "
    if config.stage == "caption":
        ways += f"resume all the same with pretrained_name={run} resume_pretrained_state=true trainer.resume=null"
    else:
        ways += "begin anew with trainer.overwrite=true trainer.resume=null"
    before, now = _values(checkpoint.config), _values(config)
    for key in sorted(defaults(), key=lambda key: not key.startswith("expert.")):  # other keys follow from those
        fixed = key.startswith((*FIXED, f"expert.{config.stage}.")) and not key.startswith(FREE)
        old, new = before[key], now[key]
        if key == "dataset.feature_cache":  # cached tokens have half precision: whether there is one matters, not where
            fixed = (old is None) != (new is None)
        if fixed and old != new:
            raise UserError(f"{run} was trained with {key}={_shown(old)}, not {_shown(new)}: {ways}")
    stored = info.get("made_of", ingredients)
    for key in {**stored, **ingredients}:
        if stored.get(key, {}).get("sha256") != ingredients.get(key, {}).get("sha256"):
            what = "the list of images in" if key.endswith("visual_dir") else "the content of"
            raise UserError(f"{run}: {what} {key} has changed since the run began: {ways}")
    if info.get("processes", processes) != processes:
        raise UserError(f"{run} was trained by {info['processes']} processes: {ways}")
    if before[EPOCHS] != now[EPOCHS]:
        print_status(
            f"{EPOCHS} was {before[EPOCHS]} so far; from here on the learning rate follows that of {now[EPOCHS]}"
        )


def _values(config: DictConfig) -> dict[str, Any]:
    """Return every key with its value or default."""
    return defaults() | dict(leaves(OmegaConf.to_container(config, resolve=True), groups()))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
