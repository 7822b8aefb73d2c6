"""Switch huggingface_hub to offline mode when the hub is unreachable."""

from __future__ import annotations

import os
import socket
import threading
from urllib.parse import urlsplit

SECONDS = 3.0  # connection timeout; also covers a name server that does not answer
DECIDED = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")


def offline_if_unreachable() -> None:
    """Set HF_HUB_OFFLINE=1 if the hub cannot be reached: else every download is retried for minutes before it fails.

    Call this before huggingface_hub is imported. Does nothing if the user has set offline mode or a proxy.
    """
    if any(os.environ.get(name) for name in DECIDED):
        return
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    address = endpoint.hostname or "", endpoint.port or (80 if endpoint.scheme == "http" else 443)
    reachable = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=SECONDS).close()
        except OSError:
            return
        reachable.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if not reachable.is_set():
        os.environ["HF_HUB_OFFLINE"] = "1"
