"""For tests of malicious files: pickles that run something, and a record of what a call does outside its folder."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from common.config.check import check_config
from common.errors import UserError
from tests.helpers import tiny
from tests.helpers.tiny import write_splits
from tests.helpers.weight_files import Call

FORMS = ("zip", "legacy", "raw")  # torch.save since 1.6, torch.save before, pickle


def write_evil(path: Path, marker: Path, form: str = "zip") -> Path:
    """Write a file of weights that creates the folder `marker` if it is unpickled unsafely."""
    content = {"weight": Call(os.mkdir, str(marker))}
    if form == "raw":
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


def train_keys(root: Path) -> dict[str, object]:
    """Return the keys of a training of the smallest network with one step an epoch and short greedy texts."""
    keys = write_splits(root, train=4, val=2, test=3)
    return keys | {"dataset.vad_lexicon": None, "model.contrastive.enabled": False, "trainer.limit_train_batches": 1}


def sent_run(trained: Path, root: Path) -> Path:
    """Return a copy of a run without checksums, which an attacker could have recomputed."""
    run = Path(shutil.copytree(trained, root / "runs" / "run"))
    (checkpoint_of(run) / "SHA256SUMS").unlink()
    return run


def picture_of(trained: Path) -> Path:
    return trained.parent.parent / "test" / "images" / "Style" / "picture-000.png"


def checkpoint_of(run: Path) -> Path:
    return next((run / "checkpoints").glob("step-*"))


def composed(mode: str, keys: dict[str, object]) -> DictConfig:
    """Return the configuration of `python run.py mode=MODE KEY=VALUE …`."""
    config = tiny.composed(mode, keys)
    check_config(config)
    return config


def snapshot(root: Path) -> dict[Path, tuple[int, int, int]]:
    """Return size, modification time and mode of everything below `root`; links are not followed."""
    found = {}
    for folder, subfolders, names in os.walk(root):
        for path in (Path(folder, name) for name in (*subfolders, *names)):
            info = path.lstat()
            found[path] = (info.st_size if path.is_file() else 0, info.st_mtime_ns, info.st_mode)
    return found


class Late(BaseException):
    """A timeout; not an Exception, so that the tested code cannot catch it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Late if the block takes longer."""

    def late(*_: object) -> None:
        raise Late(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- side effects -----------------------------------------------------------------------------------------------------

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
OUTWARD = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "socket.getaddrinfo")
_watched: list[tuple[Path, list[str]]] = []


def _notice(event: str, args: tuple) -> None:
    if not _watched or event not in ("open", *CHANGES, *OUTWARD):
        return
    root, found = _watched[-1]
    if event in OUTWARD:
        if event == "socket.connect" and not isinstance(args[1], tuple):  # a socket of this machine
            return
        found.append(f"{event} {args!r}")
    elif event != "open" or (isinstance(args[2], int) and args[2] & WRITING):
        names = [os.fsdecode(name) for name in args[: 1 if event == "open" else 2] if isinstance(name, str | bytes)]
        if event in ("os.remove", "os.rmdir") and args[1] >= 0:  # shutil.rmtree passes names relative to an open folder
            names = [os.path.join(os.readlink(f"/proc/self/fd/{args[1]}"), name) for name in names]  # noqa: PTH115, PTH118
        outside = (name for name in names if not Path(os.path.realpath(name)).is_relative_to(root))
        found += (f"{event} {name}" for name in outside if name != os.devnull and "__pycache__" not in name)


sys.addaudithook(_notice)


@contextmanager
def confined(root: Path) -> Iterator[list[str]]:
    """Record what the block writes, moves or removes outside `root`, and the programs and connections it starts."""
    _watched.append((Path(os.path.realpath(root)), []))
    try:
        yield _watched[-1][1]
    finally:
        _watched.pop()


def refusal(call: Callable[[], object], *parts: object, seconds: float = 60) -> str:
    """Return the message, one line, of a call that raises UserError; `parts` must be in it."""
    with time_limit(seconds), pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert message and "\n" not in message
    for part in parts:
        assert str(part) in message, message
    return message
