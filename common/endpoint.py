"""Chat completions of a language model behind an OpenAI-compatible API, through the `openai` client.

The client does the retries, the waiting (Retry-After) and the timeouts. Added here: which addresses may be used, that
redirects are not followed, and one sentence for each error. The API key appears in no message.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from common.errors import UserError, shorten

KEY_VARIABLE = "EMOSCRIBE_API_KEY"
CONTENT_FILTERS = ("content_filter", "content_policy", "content policy", "moderation")
LOGPROBS = {"top_logprobs": 20, "logprobs": True}  # 20: the most that OpenAI's API and vLLM permit
FEW_LOGPROBS = 5  # which most other servers permit
USAGE = {"cost": "cost", "prompt_tokens": "tokens_asked", "completion_tokens": "tokens_answered"}
WAYS_OUT = {
    401: f"set {KEY_VARIABLE} to a valid key",
    402: "the account has no credit or quota left; run the same command again when it has",
    403: f"set {KEY_VARIABLE} to a key that may use this model",
    404: "there is no such address or model; check {endpoint} and {model}",
    413: "{too_large}",
}


class Words(NamedTuple):
    """Words of the messages: the names of the user's settings, and what becomes of them."""

    endpoint: str  # --endpoint
    model: str  # --model
    sent: str  # what is sent: pictures
    encrypted: str  # way out where it would be sent unencrypted: use https
    too_large: str  # what to do if the server finds it too large
    rejected: str  # what to check if the server rejects the request


class Refused(Exception):
    """The server or the model declines to answer these messages; sending them again would not help."""


class Failed(Exception):
    """No usable response after all retries; other messages or a later run may succeed."""


class Token(NamedTuple):
    text: str
    alternatives: dict[str, float]  # probabilities of the likeliest tokens at its place, among them its own


class Reply(NamedTuple):
    text: str  # may be empty
    cut_off: bool  # the limit of tokens was reached
    usage: dict[str, float]  # tokens of the prompt and of the answer, and the cost if the server reports it
    tokens: Sequence[Token] = ()  # of the text; empty unless they were requested and the server supports it


class Endpoint:
    """One model at one address; `async with endpoint.client` closes its connections.

    Args:
        url: base URL of the API, with or without /chat/completions.
        timeout: seconds, of one request.
        retries: of a request that fails with 408, 409, 429 or 5xx, or without a response.
        as_json: request a JSON object as answer.
        allow_http: permit unencrypted requests to another machine.

    Raises:
        UserError: `openai` is not installed, or the URL or the key cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        timeout: float,
        retries: int,
        max_tokens: int,
        words: Words,
        as_json: bool = False,
        allow_http: bool = False,
    ) -> None:
        try:
            import openai
        except ModuleNotFoundError:
            raise UserError(f"{words.endpoint} needs the openai client: pip install openai") from None
        self._base, local = _checked(url, words, allow_http=allow_http)
        self.shown, self._words = f"{self._base}/chat/completions", words
        self._no_completion = f"{self.shown} sends no chat completion; check {words.endpoint}"
        self._errors = openai
        self._model = model
        self._timeout = timeout
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not self._key.isascii() or not self._key.isprintable() or " " in self._key:
            raise UserError(f"{KEY_VARIABLE} contains characters that no key has")
        self._options: dict[str, Any] = {"response_format": {"type": "json_object"}} if as_json else {}
        self._options |= {"temperature": 0, "max_tokens": max_tokens, **LOGPROBS}
        self.client = openai.AsyncOpenAI(
            base_url=self._base,
            api_key=self._key or "none",
            default_query=dict(parse_qsl(urlsplit(url).query)),
            timeout=timeout,
            max_retries=retries,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=not local),
        )

    async def complete(self, messages: Sequence[dict[str, Any]], *, logprobs: bool = False) -> Reply:
        """Return the model's reply, at temperature 0, in JSON mode if configured, where the server supports it.

        Args:
            logprobs: also return the tokens with their alternatives, where the server supports it.

        Raises:
            Refused, Failed: for these messages.
            UserError: for any messages, such as a wrong key or an unknown model.
        """
        while True:
            options = {name: value for name, value in self._options.items() if logprobs or name not in LOGPROBS}
            create = self.client.chat.completions.create(model=self._model, messages=messages, **options)
            try:
                return self._reply(await create)
            except ValueError:
                raise Failed(self._no_completion) from None
            except self._errors.OpenAIError as error:
                if not self._drop_option(error, options):
                    raise self._explained(error) from None

    def _drop_option(self, error: Exception, sent: dict[str, Any]) -> bool:
        """Return whether the server rejected one of the options that were sent; later requests do without it."""
        rejected = [name for name in sent if name in str(error) and name != "max_completion_tokens"]
        if getattr(error, "status_code", None) not in (400, 403, 422) or not rejected:
            return False
        name, value = rejected[0], sent[rejected[0]]
        if self._options.get(name) != value:  # a concurrent request has changed it
            return True
        del self._options[name]
        if name == "max_tokens":
            self._options["max_completion_tokens"] = value
        elif name == "logprobs":
            self._options.pop("top_logprobs", None)
        elif name == "top_logprobs" and value > FEW_LOGPROBS:
            self._options[name] = FEW_LOGPROBS
        return True

    def _reply(self, completion: Any) -> Reply:
        try:
            choice = completion.choices[0]
            if choice.finish_reason == "content_filter" or choice.message.refusal:
                raise Refused("the model refuses to answer")
            text = self._without_key(choice.message.content or "")
        except (AttributeError, IndexError, TypeError):
            raise Failed(self._no_completion) from None
        usage = {ours: getattr(completion.usage, name, None) for name, ours in USAGE.items()}
        counted = {name: value for name, value in usage.items() if isinstance(value, (int, float)) and value >= 0}
        return Reply(text, choice.finish_reason == "length", counted, _tokens(choice))

    def _explained(self, error: Any) -> Exception:
        """Return the exception to raise instead of one of the client's."""
        words, status = self._words, getattr(error, "status_code", None)
        if status is None:
            timed_out = isinstance(error, self._errors.APITimeoutError)
            reason = f"no response within {self._timeout:g} s" if timed_out else shorten(error.__cause__ or error)
            return Failed(f"{self.shown} cannot be reached ({self._without_key(reason)}); check {words.endpoint}")
        message = f"{self.shown}: {shorten(self._without_key(str(error)), 300)}"
        if any(word in message.lower() for word in CONTENT_FILTERS):
            return Refused(message)
        if status in (400, 422):
            return Failed(f"{message}: {words.rejected.format(model=self._model)}")
        if "insufficient_quota" in message:
            status = 402
        if 300 <= status < 400:
            return UserError(f"{message}: redirects are not followed; give the final address as {words.endpoint}")
        if status not in WAYS_OUT:
            return Failed(message)
        return UserError(f"{message}: {WAYS_OUT[status].format(**words._asdict())}")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if len(self._key) >= 8 else text


def _tokens(choice: Any) -> list[Token]:
    """Return the tokens of an answer with their alternatives, none if their form is another one."""
    try:
        places = [(place.token, (*(place.top_logprobs or ()), place)) for place in choice.logprobs.content]
        return [Token(text, {each.token: math.exp(min(each.logprob, 0)) for each in found}) for text, found in places]
    except (AttributeError, TypeError):
        return []


def _checked(url: str, words: Words, *, allow_http: bool) -> tuple[str, bool]:
    """Return the base URL without its query, and whether it is on this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port  # an invalid port raises
    except ValueError:
        parts, host = None, ""
    if not host or parts.scheme not in ("http", "https") or not url.isascii() or not url.isprintable() or " " in url:
        raise UserError(f"{words.endpoint} must be an address such as https://HOST/v1")
    if parts.username is not None or parts.password is not None:
        raise UserError(f"{words.endpoint} must not contain a password; put the key into the variable {KEY_VARIABLE}")
    local = host in ("localhost", "127.0.0.1", "::1")
    if parts.scheme == "http" and not local and not allow_http:
        raise UserError(
            f"{words.endpoint} http://{parts.netloc}: {words.sent} and key would be sent unencrypted; {words.encrypted}"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/chat/completions')}", local
