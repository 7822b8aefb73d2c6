"""Is there a network? Asked once, before anything that downloads is imported."""

from __future__ import annotations

import os
import socket
import threading
from urllib.parse import urlsplit

SECONDS = 3.0  # a name server that never answers would else be waited for much longer


def offline_where_unreachable() -> None:
    """Keep to the files on this machine where the model hub cannot be reached.

    huggingface_hub tries a download for minutes before it gives up; told to be offline it takes its cache or fails at
    once. Nothing is asked where the user has settled it (HF_HUB_OFFLINE), or where a proxy stands between.
    """
    settled = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    if any(os.environ.get(name) for name in settled):
        return
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    answered = threading.Event()
    port = endpoint.port or (80 if endpoint.scheme == "http" else 443)
    asking = threading.Thread(target=_ask, args=(endpoint.hostname or "", port, answered), daemon=True)
    asking.start()
    asking.join(SECONDS)
    if not answered.is_set():
        os.environ["HF_HUB_OFFLINE"] = "1"


def _ask(host: str, port: int, answered: threading.Event) -> None:
    try:
        socket.create_connection((host, port), timeout=SECONDS).close()
    except OSError:
        return
    answered.set()
