"""A local server with the API of an OpenAI-compatible model, for tests."""

from __future__ import annotations

import base64
import json
import math
import threading
from collections.abc import Callable
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Request(NamedTuple):
    number: int  # from 0
    path: str
    headers: dict[str, str]  # by name in lower case
    body: dict
    picture: bytes  # of a JPEG; empty in a request without one

    @property
    def turns(self) -> list[dict]:
        return self.body["messages"]


class Answer(NamedTuple):
    """The model's text, an error message if the status is not 200, or `content` unchanged.

    Args:
        tokens: text and alternatives of each token, with their probabilities, as logprobs.
        cut: the connection ends before the last byte.
    """

    text: str | None = ""
    status: int = 200
    content: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    finish: str = "stop"
    tokens: tuple[tuple[str, dict[str, float]], ...] = ()
    cut: bool = False
    cost: float | None = None

    def encoded(self) -> bytes:
        if self.content is not None:
            return self.content.encode()
        if self.status != 200:
            return json.dumps({"error": {"message": self.text}}).encode()
        choice = {"index": 0, "finish_reason": self.finish, "message": {"role": "assistant", "content": self.text}}
        if self.tokens:
            choice["logprobs"] = {"content": [_token(text, found) for text, found in self.tokens]}
        usage = {"prompt_tokens": 100, "completion_tokens": 20} | ({} if self.cost is None else {"cost": self.cost})
        return json.dumps({"choices": [choice], "usage": usage}).encode()


def _token(text: str, alternatives: dict[str, float]) -> dict:
    found = [{"token": other, "logprob": math.log(share)} for other, share in alternatives.items()]
    return {"token": text, "logprob": math.log(alternatives[text]), "top_logprobs": found}


def both(observation: str, reasoning: str) -> Answer:
    return Answer(json.dumps({"observation": observation, "reasoning": reasoning}))


def describe(request: Request) -> Answer:
    """Return a usable answer that depends only on the picture."""
    name = sha256(request.picture).hexdigest()[:6]
    return both(f"A flat field of colour number {name}.", f"The colour number {name} fills the whole view.")


class FakeModel:
    """`with FakeModel(answer) as model:` listens at model.url and records model.requests.

    Args:
        answer: return the response to a request; None: never respond.
    """

    def __init__(self, answer: Callable[[Request], Answer | None] = describe) -> None:
        self.requests: list[Request] = []
        self.closed = threading.Event()
        self._answer = answer
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> FakeModel:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_error) -> None:
        self.closed.set()
        self._server.shutdown()
        self._server.server_close()

    def _receive(self, handler: BaseHTTPRequestHandler) -> Request:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        contents = [turn["content"] for turn in body["messages"] if isinstance(turn["content"], list)]
        parts = [part for content in contents for part in content]
        url = next((part["image_url"]["url"] for part in parts if part["type"] == "image_url"), "")
        data = url.removeprefix("data:image/jpeg;base64,")
        with self._lock:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            request = Request(len(self.requests), handler.path, headers, body, base64.b64decode(data, validate=True))
            self.requests.append(request)
        return request

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                answer = fake._answer(fake._receive(self))
                if answer is None:
                    fake.closed.wait()
                    return
                content = answer.encoded()
                self.send_response(answer.status)
                headers = {"Content-Type": "application/json", **dict(answer.headers)}
                for name, value in (*headers.items(), ("Content-Length", str(len(content)))):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content[: -1 if answer.cut else None])
                self.close_connection = answer.cut

            def log_message(self, *_arguments) -> None:
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (BrokenPipeError, ConnectionResetError):  # the client has disconnected
                    self.close_connection = True

        return Handler
