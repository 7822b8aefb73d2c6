"""How a training begins: anew, with the weights of another, or where it was broken off; and what forbids it."""

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
from common.locks import Busy, holder_of, locked
from trainer.runs.checkpoint import TRAINING, Checkpoint, find_checkpoint, find_in_run
from trainer.runs.record import CONFIG, RECORD
from trainer.runs.retention import entries
from trainer.runs.state import TrainState

MOVABLE = ("model.vision.pretrained_name", "model.vision.architecture", "model.text.pretrained_name")

LOCK = ".lock"
EPOCHS = "trainer.epochs"
TRACES = ("checkpoints", "tensorboard", "metrics.jsonl", "skipped.jsonl", CONFIG, RECORD)
# What must stay as it was for a training to go on as if nothing had happened,
FIXED = (
    "seed",
    "model.",
    "dataset.",
    "trainer.precision",
    "trainer.accumulation_steps",
    "trainer.clip_grad_norm",
    "trainer.limit_train_batches",
    "trainer.checkpoint_callback_params.monitor",
)
# except locations, whose content is compared instead (trainer/setup/ingredients.py), and what does not affect training.
FREE = (
    *MOVABLE,
    *(f"dataset.{key}" for key in ("root", "tokenizer", "vad_lexicon", "strict", "test_ds.")),
    *(f"dataset.{ds}.{key}" for ds in ("train_ds", "validation_ds") for key in ("json_path", "visual_dir")),
    *(f"dataset.{ds}.num_workers" for ds in ("train_ds", "validation_ds")),
    *(f"expert.{key}" for key in ("teacher.weights", "teacher.epochs", "student.teacher", "student.epochs")),
)


@dataclass(frozen=True, slots=True)
class Start:
    """What a training begins with.

    Args:
        checkpoint: whose weights; None: none.
        goes_on: with its optimiser, schedule and step too.
        same_run: goes on in the folder in which the checkpoint lies.
        again: because of trainer.resume=auto; then it must be the same training.
    """

    checkpoint: Checkpoint | None = None
    goes_on: bool = False
    same_run: bool = False
    again: bool = False

    @property
    def state(self) -> dict[str, Any]:
        """Of the training: that of a new one, unless it goes on."""
        return self.checkpoint.info["state"] if self.goes_on else TrainState().as_dict()

    @property
    def step(self) -> int:
        return self.state["step"]


@contextmanager
def alone(run: Path, *, purpose: str = "training") -> Iterator[None]:
    """Hold the folder's lock, so that no two commands write into it; what a killed one left unfinished is cleared.

    Raises:
        UserError: another process writes into it, or nobody can.
    """
    for name in (LOCK, holder_of(Path(LOCK)).name, *TRACES):
        require_inside(run / name, run)
    lock = run / LOCK
    new = [folder for folder in (run, *run.parents) if not folder.exists()]
    with ExitStack() as stack:
        stack.callback(_remove_if_empty, new)
        try:
            stack.enter_context(locked(lock, purpose=purpose, wait=False))
            tidy(run)
            tidy(run / "checkpoints")
        except Busy as busy:
            here = f" on {socket.gethostname()}, " in str(busy)  # there the system itself frees the lock of the dead
            down = "" if here else f", or, if that machine is down, delete {lock}"
            raise UserError(f"{run} is in use by {busy}: wait for it, or choose another name=…{down}") from None
        except OSError as error:
            other = "choose another trainer.exp_dir or name=…"
            other = other if purpose == "training" else "send the results elsewhere with trainer.exp_dir=FOLDER"
            raise UserError(f"{run} cannot be written ({why_not_written(run, error)}): {other}") from error
        yield


def _remove_if_empty(folders: list[Path]) -> None:
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def find_start(config: DictConfig, run: Path, *, named: bool = True) -> Start:
    """The checkpoint to begin with, if any.

    Args:
        named: whether pretrained_name is that checkpoint's run.

    Raises:
        UserError: a run that is neither to go on nor to be replaced, a checkpoint that is not there, or keys that
            exclude each other.
    """
    auto, overwrite = config.trainer.resume == "auto", config.trainer.overwrite
    if auto and overwrite:
        raise UserError("trainer.overwrite=true begins anew and trainer.resume=auto goes on: take one of them")
    if config.resume_pretrained_state and config.pretrained_name is None:
        raise UserError("resume_pretrained_state=true needs pretrained_name=RUN: the run to go on with")
    if auto and (last := _last_of(run)) is not None:
        return Start(last, goes_on=True, same_run=True, again=True)
    start = _named(config, run) if named else Start()
    if start.same_run or overwrite:
        return start
    if (run / CONFIG).exists() and not (run / RECORD).exists():
        raise UserError(f"{run / CONFIG} is no run's, and would be replaced: move it, or choose another name=…")
    if not auto and any((run / name).exists() for name in TRACES):
        raise UserError(
            f"{run} already holds a run: choose another name=…, go on with it (trainer.resume=auto; under other "
            f"settings pretrained_name={run} resume_pretrained_state=true), or replace it (trainer.overwrite=true)"
        )
    return start


def _last_of(run: Path) -> Checkpoint | None:
    """The run's last whole checkpoint; None where there is none, with a warning where all are damaged."""
    try:
        last = find_in_run(run, prefer="last")
    except UserError as error:
        print(f"warning: {error}; no other is whole, so {run} is begun anew", file=sys.stderr)
        return None
    if last is not None and not (last.folder / TRAINING).is_file():
        raise UserError(
            f"{run} holds weights without the state of a training: choose another name=…, with pretrained_name={run} "
            "to begin with them"
        )
    return last


def _named(config: DictConfig, run: Path) -> Start:
    if config.pretrained_name is None:
        return Start()
    goes_on = config.resume_pretrained_state
    prefer = "last" if goes_on else "best"
    checkpoint = find_checkpoint(config.pretrained_name, Path(config.trainer.exp_dir), prefer=prefer)
    return Start(checkpoint, goes_on, same_run=goes_on and checkpoint.run.resolve() == run.resolve())


def clear(run: Path, config: DictConfig, start: Start) -> None:
    """Make room for a new run, once nothing can go wrong any more that the user could have known.

    Checkpoints that turned out damaged are set aside: there may be something to rescue in them.
    """
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


# --- the same training? ----------------------------------------------------------------------------------------------


def refuse_changes(config: DictConfig, start: Start, made_of: Mapping[str, Any], *, processes: int) -> None:
    """Raises UserError, naming the first key that differs: going on would not give what the run began to be."""
    checkpoint = start.checkpoint
    ways = "choose another name=…, or "
    if config.stage == "caption":
        ways += f"go on all the same with pretrained_name={checkpoint.run} resume_pretrained_state=true "
        ways += "trainer.resume=null"
    else:
        ways += "begin anew with trainer.overwrite=true trainer.resume=null"
    before, now = _values(checkpoint.config), _values(config)
    for key in sorted(defaults(), key=lambda key: not key.startswith("expert.")):  # of which others follow
        if _is_fixed(key, config.stage) and _compared(key, before[key]) != _compared(key, now[key]):
            raise UserError(
                f"{checkpoint.run} was trained with {key}={_shown(before[key])}, not {_shown(now[key])}: {ways}"
            )
    stored = checkpoint.info.get("made_of", made_of)
    for key in {**stored, **made_of}:
        if stored.get(key, {}).get("sha256") != made_of.get(key, {}).get("sha256"):
            what = "the list of images in" if key.endswith("visual_dir") else "the content of"
            raise UserError(f"{checkpoint.run}: {what} {key} is not what it was when the run began: {ways}")
    if checkpoint.info.get("processes", processes) != processes:
        raise UserError(f"{checkpoint.run} was trained by {checkpoint.info['processes']} processes: {ways}")
    if before[EPOCHS] != now[EPOCHS]:
        print(
            f"{EPOCHS} was {before[EPOCHS]} so far; from here on the learning rate is that of {now[EPOCHS]}",
            file=sys.stderr,
        )


def _is_fixed(key: str, stage: str) -> bool:
    return key.startswith((*FIXED, f"expert.{stage}.")) and not key.startswith(FREE)


def _compared(key: str, value: Any) -> Any:
    """Cached tokens are of half precision: that they are cached matters, not where."""
    return value is not None if key == "dataset.feature_cache" else value


def _values(config: DictConfig) -> dict[str, Any]:
    """Every key and its value; missing keys have their defaults."""
    return defaults() | dict(leaves(OmegaConf.to_container(config, resolve=True), groups()))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
