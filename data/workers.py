"""What a loader process does with signals: nothing; they are for the process that started it to answer.

A terminal sends Ctrl-C to all processes of a command, a cluster its warnings and SIGTERM. A loader process that died of
one would take the training with it, in the middle of a step.
"""

from __future__ import annotations

import os
import signal
import threading


def obey_parent_only(worker: int = 0) -> None:
    """For `worker_init_fn`: ignore SIGINT and SIGUSR1 from anybody, and SIGTERM from all but the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # Linux; elsewhere there is no telling from whom a signal comes
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_parent_says_so, args=(os.getppid(),), daemon=True).start()


def _end_when_parent_says_so(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
