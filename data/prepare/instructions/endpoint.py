"""An OpenAI-compatible interface (/chat/completions), asked over HTTP with the standard library.

Nothing is sent but to the address that was named: no redirect is followed, plain HTTP is refused but to this machine,
and the key stands in no message, file or exception.
"""

from __future__ import annotations

import email.utils
import http.client
import json
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from data.prepare.instructions.threads import Stopped
from errors import UserError

KEY_VARIABLE = "EMOSCRIBE_API_KEY"
LARGEST = 1 << 22  # bytes of an answer
LONGEST_WAIT = 600.0  # seconds that a server may ask to wait
PIECE = 1 << 16
NO_KEY = {401: "does not accept the key", 403: "does not allow this"}


class Refused(Exception):
    """The server will not answer about this picture; asking again would not help."""


class NoAnswer(Exception):
    """The server did not answer, however often it was asked; another picture or time may do better."""


class _Transient(Exception):
    """A fault that may be gone a moment later, and how many seconds the server asks to wait."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Invalid(Exception):
    """The server understands the request and does not like it."""


class Reply(NamedTuple):
    text: str
    usage: dict[str, float]  # tokens asked, tokens answered, and their cost if the server tells it


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_args, **_named) -> None:
        return None  # and the status itself is the error


class Endpoint:
    """One model behind one address; may be used by several threads.

    Args:
        url: up to and without /chat/completions.
        timeout: seconds that a whole answer may take.
        retries: of a request that fails in a way that may pass.
        wait: seconds before the first of them; each waits twice as long as the one before.

    Raises:
        UserError: an address that is none, or not encrypted and not on this machine; a key that cannot be one.
    """

    def __init__(
        self, url: str, *, model: str, timeout: float, retries: int, allow_http: bool = False, wait: float = 1.0
    ) -> None:
        self.address = _address(url, allow_http=allow_http)
        self.model = model
        self.timeout = timeout
        self.retries = retries
        self.stop = threading.Event()
        self._wait = wait
        self._key = _key()
        self._lock = threading.Lock()
        self._not_before = 0.0  # by the monotonic clock
        self.answered = False  # ever: its faults are then about single pictures
        self._form: dict[str, Any] = {"response_format": {"type": "json_object"}}
        self._form_serves = False
        self._limit = "max_tokens"
        local = _is_local(urlsplit(self.address).hostname)
        proxies = [urllib.request.ProxyHandler({})] if local else []  # of the environment, for all others
        self._opener = urllib.request.build_opener(_NoRedirect, *proxies)

    @property
    def shown(self) -> str:
        """The address without what may be a secret of it."""
        return urlunsplit((*urlsplit(self.address)[:3], "", ""))

    def complete(self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int) -> Reply:
        """The model's answer, as probable as it can be (temperature 0), as a JSON object where the server can do that.

        Raises:
            Refused, NoAnswer: for this picture. Stopped: `stop` is set.
            UserError: for every picture: a wrong address, model or key.
        """
        attempt, form = 0, self._form
        while True:
            self._wait_for_turn()
            limit = self._limit
            try:
                reply = self._post(
                    {"model": self.model, "messages": messages, "temperature": 0, limit: max_tokens, **form}
                )
            except _Invalid as error:
                if "max_completion_tokens" in str(error) and limit == "max_tokens":
                    self._limit = "max_completion_tokens"
                elif form and ("response_format" in str(error) or not self._form_serves):
                    form = {}
                else:
                    raise self._refusal(str(error)) from None
            except _Transient as error:
                if attempt == self.retries:
                    raise NoAnswer(f"{error}, asked {attempt + 1} times") from None
                self._postpone(error, attempt)
                attempt += 1
            else:
                self.answered, self._form = True, form
                self._form_serves = bool(form)
                return reply

    # --- one request --------------------------------------------------------------------------------------------------

    def _post(self, body: Mapping[str, Any]) -> Reply:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "EmoScribe"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.address, json.dumps(body).encode(), headers, method="POST")
        deadline = time.monotonic() + self.timeout
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                return _reply(self._read(response, deadline))
        except urllib.error.HTTPError as error:
            with error:
                raise self._meaning(error, deadline) from None
        except urllib.error.URLError as error:
            raise self._unreachable(error.reason) from None
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None

    def _read(self, response: Any, deadline: float) -> str:
        content = bytearray()
        while piece := response.read1(PIECE):
            content += piece
            if len(content) > LARGEST:
                raise _Transient(f"it sent more than {LARGEST:,} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError
        text = content.decode("utf-8", errors="replace")
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text

    def _meaning(self, error: urllib.error.HTTPError, deadline: float) -> Exception:
        """What an HTTP status says."""
        status = error.code
        try:
            said = _message(self._read(error, deadline))
        except (OSError, http.client.HTTPException, _Transient):
            said = ""
        answer = f"{self.shown} answers {status}" + (f" ({said})" if said else "")
        if status in (408, 409, 425, 429) or status >= 500:
            return _Transient(answer, _retry_after(error.headers.get("Retry-After")))
        if status in NO_KEY:
            given = f"the key in {KEY_VARIABLE}" if self._key else f"a key, of which {KEY_VARIABLE} holds none"
            return UserError(f"{answer}: it {NO_KEY[status]}; it needs {given} to be one that may use {self.model}")
        if 300 <= status < 400:
            target = urlsplit(error.headers.get("Location", "")).netloc or "elsewhere"
            return UserError(f"{answer}: it sends on to {target}, which is not followed; give the final --endpoint")
        if status == 402:
            return UserError(f"{answer}: it wants to be paid; the same command goes on when it is")
        if status == 404:
            return UserError(f"{answer}: there is no such address or model; check --endpoint and --model {self.model}")
        if status == 413:
            return UserError(f"{answer}: the pictures are too large for it; give a smaller --max-side")
        return _Invalid(answer)

    def _unreachable(self, reason: object) -> Exception:
        if isinstance(reason, TimeoutError):
            return _Transient(f"{self.shown} does not answer within {self.timeout:g} s")
        if isinstance(reason, ssl.SSLError):
            return UserError(f"{self.shown} cannot be reached safely ({_short(reason)})")
        refused = isinstance(reason, ConnectionRefusedError) or type(reason).__name__ == "gaierror"
        if refused and not self.answered:
            return UserError(f"{self.shown} cannot be reached ({_short(reason)}); check --endpoint and the network")
        return _Transient(f"{self.shown} breaks off ({_short(reason)})")

    # --- what to do about faults --------------------------------------------------------------------------------------

    def _refusal(self, said: str) -> Exception:
        """A server that has answered before minds the picture, such as what is naked in it; else it minds us."""
        if self.answered or any(
            word in said.lower() for word in ("content_filter", "content_policy", "content policy", "moderation")
        ):
            return Refused(said)
        return UserError(f"{said}: it does not understand the request; check that {self.model} takes pictures")

    def _postpone(self, error: _Transient, attempt: int) -> None:
        """Nobody asks before the time that the server gave; without one, only the request that failed waits."""
        if error.wait is None:
            self._sleep(min(self._wait * 2**attempt, 60.0))
            return
        if error.wait > LONGEST_WAIT:
            raise UserError(f"{error}: it asks to wait {error.wait:,.0f} s; the same command goes on then") from None
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + error.wait)

    def _wait_for_turn(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            self._sleep(left)
        self._sleep(0)

    def _sleep(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Stopped


def _address(url: str, *, allow_http: bool) -> str:
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or not url.isascii() or not url.isprintable() or " " in url:
        raise UserError("--endpoint must be an address such as https://HOST/v1")
    if parts.username is not None or parts.password is not None:
        raise UserError(f"--endpoint must hold no password; put the key into the environment variable {KEY_VARIABLE}")
    if parts.scheme == "http" and not allow_http and not _is_local(parts.hostname):
        raise UserError(
            f"--endpoint {parts.scheme}://{parts.netloc}: pictures and key would go there unencrypted; give an https "
            "address, or --allow-http"
        )
    path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def _is_local(host: str | None) -> bool:
    return host in ("localhost", "127.0.0.1", "::1")


def _key() -> str:
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if key and not (key.isascii() and key.isprintable() and " " not in key):
        raise UserError(f"{KEY_VARIABLE} holds characters that no key has")
    return key


def _reply(text: str) -> Reply:
    try:
        content = json.loads(text)
        choice = content["choices"][0]
        message = choice["message"]
        said = message["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        raise _Transient(f"it sends no chat completion ({_message(text) or 'not even JSON'})") from None
    if choice.get("finish_reason") == "content_filter" or (isinstance(message, dict) and message.get("refusal")):
        raise Refused("the model refuses to answer")
    return Reply(said if isinstance(said, str) else "", _usage(content.get("usage")))


def _usage(usage: object) -> dict[str, float]:
    names = {"prompt_tokens": "tokens_asked", "completion_tokens": "tokens_answered", "cost": "cost"}
    values = {ours: usage.get(name) for name, ours in names.items()} if isinstance(usage, dict) else {}
    return {name: value for name, value in values.items() if type(value) in (int, float) and 0 <= value < 1e12}


def _message(text: str) -> str:
    """What a server says of a fault."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    for key in ("error", "message", "detail"):
        content = content.get(key, content) if isinstance(content, dict) else content
    return _short(content if isinstance(content, str) else json.dumps(content) if content else text)


def _short(said: object) -> str:
    return " ".join(str(said).split())[:300]


def _retry_after(value: str | None) -> float | None:
    """Seconds; the header has them, or a date."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().replace(".", "", 1).isdecimal():
        return float(value)
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError, OverflowError):
        return None
