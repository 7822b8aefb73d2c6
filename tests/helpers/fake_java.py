"""A stand-in for `java` that works, fails or hangs as configured, and a search for leftover processes."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

import pytest

from trainer.metrics import java

# METEOR's protocol: a line of counts per image, then a score per image and one for all.
METEOR_WORKS = """
images=0
while read -r word rest; do
  if [ $word = SCORE ]; then images=$((images + 1)); echo 1.0 2.0; continue; fi
  while [ $images -ge 0 ]; do echo 0.5; images=$((images - 1)); done
done"""
TOKENIZER_WORKS = "exec /bin/cat"


def put_java(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    tokenizer: str = TOKENIZER_WORKS,
    meteor: str = METEOR_WORKS,
    spice: str = "exit 1",
    version: str = "echo 'openjdk version \"1.8.0\"' >&2",
) -> Path:
    """Create folder/java, a script of these parts, as the only Java on PATH; the parts may call folder/sleep."""
    folder.mkdir()
    (folder / "sleep").symlink_to("/bin/sleep")
    script = folder / "java"
    parts = {"-version": version, "PTBTokenizer": tokenizer, "meteor-1.5.jar": meteor, "SpiceScorer": spice}
    cases = "".join(f"*{word}*)\n{part}\n;;\n" for word, part in parts.items())
    script.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}esac\n')
    script.chmod(0o755)
    monkeypatch.setattr(java, "java_bin", lambda: None)
    monkeypatch.setenv("PATH", str(folder))
    return folder


def left_running(folder: Path, *, seconds: float = 30.0) -> list[str]:
    """Return the command lines of processes from `folder` that are still running after `seconds` (on Linux only)."""
    deadline = time.monotonic() + seconds
    while (found := running(folder)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def running(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if f"{folder}/" in command:
                found.append(command)
    return found


def interruptible() -> None:
    """Restore SIGINT, for subprocess' preexec_fn: in the background, shells ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
