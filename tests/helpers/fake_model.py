"""A local server with the API of an OpenAI-compatible vision-language model, for tests."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Asked(NamedTuple):
    """A request."""

    number: int  # of all requests, from 0
    path: str
    headers: dict[str, str]  # by name in lower case
    body: dict
    picture: bytes  # of a JPEG

    @property
    def turns(self) -> list[dict]:
        return self.body["messages"]


class Answer(NamedTuple):
    """A response: the model's text, or an error message if the status is not 200, or `content` as it is."""

    text: str | None = ""
    status: int = 200
    content: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    finish: str = "stop"

    def encoded(self) -> bytes:
        if self.content is not None:
            return self.content.encode()
        if self.status != 200:
            return json.dumps({"error": {"message": self.text}}).encode()
        choice = {"index": 0, "finish_reason": self.finish, "message": {"role": "assistant", "content": self.text}}
        return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 20}}).encode()


def both(observation: str, reasoning: str) -> Answer:
    return Answer(json.dumps({"observation": observation, "reasoning": reasoning}))


def describe(asked: Asked) -> Answer:
    """A usable answer that depends on the picture alone."""
    name = sha256(asked.picture).hexdigest()[:6]
    return both(f"A flat field of colour number {name}.", f"The colour number {name} fills the whole view.")


class FakeModel:
    """`with FakeModel(answer) as model:` listens at model.url; model.asked lists the requests.

    Args:
        answer: from a request to its response; None: the connection stays open without one.
    """

    def __init__(self, answer: Callable[[Asked], Answer | None] = describe) -> None:
        self.asked: list[Asked] = []
        self.over = threading.Event()
        self._answer = answer
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> FakeModel:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_error) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()

    def _receive(self, handler: BaseHTTPRequestHandler) -> Asked:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        parts = body["messages"][1]["content"]
        url = next(part["image_url"]["url"] for part in parts if part["type"] == "image_url")
        data = url.removeprefix("data:image/jpeg;base64,")
        with self._lock:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            asked = Asked(len(self.asked), handler.path, headers, body, base64.b64decode(data, validate=True))
            self.asked.append(asked)
        return asked

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                answer = fake._answer(fake._receive(self))
                if answer is None:
                    fake.over.wait()
                    return
                content = answer.encoded()
                self.send_response(answer.status)
                for name, value in {
                    "Content-Type": "application/json",
                    **dict(answer.headers),
                    "Content-Length": str(len(content)),
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_arguments) -> None:
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (BrokenPipeError, ConnectionResetError):  # the client is gone
                    self.close_connection = True

        return Handler
