"""A stand-in for the Hugging Face hub: one repository, with the requests of pushing and downloading small files."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest

PAGE = "https://huggingface.co/org/painter"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalHub:
    """The files of a repository by name; `status`: what a commit is answered with."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.status = 200

    def commit(self, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del self.files[value["path"]]

    def tree(self) -> list[dict]:
        digests = {name: hashlib.sha1(content).hexdigest() for name, content in self.files.items()}
        return [{"type": "file", "path": n, "oid": digests[n], "size": len(c)} for n, c in self.files.items()]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer_json(self, value: object, status: int = 200) -> None:
        self.answer(json.dumps(value).encode(), status, Content_Type="application/json")

    def do_POST(self) -> None:
        hub, body = self.server.hub, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status = hub.status if "Authorization" in self.headers else 401
        if status != 200:
            self.answer_json({"error": "no"}, status)
        elif "/preupload/" in self.path:
            found = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self.answer_json({"files": [{**file, "shouldIgnore": False} for file in found]})
        elif "/commit/" in self.path:
            hub.commit(body)
            self.answer_json({"commitOid": COMMIT, "commitUrl": f"{PAGE}/commit/{COMMIT}", "pullRequestUrl": None})
        else:  # a new repository; the check of the card's front matter
            self.answer_json({"url": PAGE, "warnings": [], "errors": []})

    def do_GET(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        if "/resolve/" in path:
            content = hub.files[path.rpartition("/")[2]]
            self.answer(content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)
        elif "/tree/" in path:
            self.answer_json(hub.tree())
        else:
            siblings = [{"rfilename": name} for name in hub.files]
            self.answer_json({"id": "org/painter", "sha": COMMIT, "private": False, "siblings": siblings})

    do_HEAD = do_GET


@contextmanager
def local_hub(cache: object, *, token: str | None = "hf_test") -> Iterator[LocalHub]:
    """Let huggingface_hub use the stand-in and this cache."""
    hub, constants = LocalHub(), huggingface_hub.constants
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = hub
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        patch.delenv("HF_TOKEN", raising=False) if token is None else patch.setenv("HF_TOKEN", token)
        try:
            yield hub
        finally:
            server.shutdown()
            server.server_close()
