"""TensorBoard's event files, written at once and in this thread.

torch's SummaryWriter leaves the writing to a thread of its own, and a fault there (a full disk, a folder that was
deleted) ends up as a traceback of that thread and as an exception at some later call. Here it is the call's own.
"""

from __future__ import annotations

import io
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

PREFIX = "events.out.tfevents."
FIRST = Event(file_version="brain.Event:2")


class EventFile:
    """One file of events in `folder`; made with the first of them, and made anew where somebody took it away.

    Args:
        purge_step: events of earlier files from this step on are taken back.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        self.folder = folder
        self.purge_step = purge_step
        self.path: Path | None = None

    def add(self, summaries: list[Summary], step: int) -> None:
        """Raises OSError: the file cannot be written; the next call may succeed."""
        events = [Event(step=step, summary=summary) for summary in summaries]
        if self.path is None or not self.path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self._new()
            again = [] if self.purge_step is None else [_restart(self.purge_step)]
            _append(path, [FIRST, *again, *events])
            self.path, self.purge_step = path, None
        else:
            _append(self.path, events)

    def _new(self) -> Path:
        """Named with a time later than those of the files that are there.

        TensorBoard reads a run's files in the order of their names, which begin with the second; there may be several
        within one, and the clock may have been set back.
        """
        times = [path.name.removeprefix(PREFIX)[:10] for path in self.folder.glob(f"{PREFIX}*")]
        latest = max((int(text) for text in times if text.isdecimal()), default=0)
        return self.folder / f"{PREFIX}{max(int(time.time()), latest + 1):010d}.{socket.gethostname()}.{os.getpid()}.0"


def _restart(step: int) -> Event:
    return Event(step=step, session_log=SessionLog(status=SessionLog.START))


def _append(path: Path, events: list[Event]) -> None:
    """In one write: a process that is killed leaves all of them or, at worst, a record that readers leave out."""
    records = io.BytesIO()
    writer, now = RecordWriter(records), time.time()
    for event in events:
        event.wall_time = now
        writer.write(event.SerializeToString())
    with path.open("ab") as file:
        file.write(records.getvalue())
