"""One OpenAI-compatible server: how a question is put to it and what its errors mean."""

import http.client
import json
import os
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vidlab.chat.journal import Answer, Usage
from vidlab.chat.messages import ChatRequest
from vidlab.errors import UserError
from vidlab.redaction import MASK, redact

PATH = "/chat/completions"
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# A server that is busy, restarting or out of luck: asking again helps.
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
# This one question is at fault, such as a picture that is too large or a text that a filter refuses.
OF_THE_QUESTION = frozenset({400, 413, 415, 422})
LONGEST_WAIT = 60.0  # seconds
LEAST = {"at_once": 1, "retries": 0, "max_tokens": 1}


class QuestionRefusedError(Exception):
    """The server takes this question never, and others perhaps."""


class _PassingError(Exception):
    """Asking again may help; ``wait`` is what the server asks for, in seconds."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class _AbsentError(_PassingError):
    """Nobody listens at the address: it is wrong, or the server does not run or not yet."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take the key to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Endpoint:
    """A server with OpenAI's ``/chat/completions``: OpenAI's own, vLLM, Ollama, llama.cpp, LM Studio and many more.

    The key comes from an environment variable and goes into the header of requests alone: it is in no file, no message
    and no log. Redirects are not followed.

    Args:
        url: up to and with ``/v1``.
        model: as the server names it.
        key_variable: name of the environment variable that holds the key; where it is not set, none is sent.
        at_once: requests in flight.
        retries: of a request that failed for a passing reason, each after twice the wait, or what the server asks for.
        backoff: seconds before the first of them.
        timeout: seconds until an answer must have begun.
        max_tokens: of an answer.
        temperature: 0 is the likeliest answer.
        prompt_price: of a million tokens of what is asked; None counts tokens alone.
        answer_price: of a million tokens of answers.

    Raises:
        UserError: a setting that cannot work.
    """

    url: str | None = None
    model: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    at_once: int = 8
    retries: int = 6
    backoff: float = 1.0
    timeout: float = 120.0
    max_tokens: int = 512
    temperature: float = 0.0
    prompt_price: float | None = None
    answer_price: float | None = None

    def __post_init__(self) -> None:
        if not self.url or not re.match(r"https?://[^/\s]+", self.url):
            raise UserError(
                f"endpoint.url={redact(str(self.url))}: give the address of an OpenAI-compatible server, such as "
                "http://localhost:8000/v1."
            )
        if not self.model:
            raise UserError("endpoint.model is not set: give the model's name on the server.")
        if not VARIABLE.fullmatch(self.key_variable):
            # perhaps the key itself, which no message may hold
            raise UserError("endpoint.key_variable must be the name of an environment variable, never the key itself.")
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"endpoint.{name}={getattr(self, name)}: it must be {least} or more.")
        if not self.timeout > 0 or self.backoff < 0:
            raise UserError(f"endpoint.timeout={self.timeout}, endpoint.backoff={self.backoff}: seconds from 0 on.")

    @property
    def source(self) -> str:
        """What answered, for records: the model and the host."""
        host = self.address.removeprefix("http://").removeprefix("https://").split("/")[0]
        return f"{self.model} at {host}"

    @property
    def address(self) -> str:
        """The URL without what may be secret in it, and without a slash at its end, for records."""
        scheme, _, place = redact(str(self.url)).rstrip("/").removesuffix(PATH).partition("://")
        host, slash, path = place.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """What is sent, without the key."""
        return {
            "model": self.model,
            "messages": request.messages(),
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
        }

    def ask(self, body: Mapping[str, Any], answered: bool = False) -> Answer:
        """The answer to one request, asked again as often as ``retries`` says.

        Args:
            body: what is sent.
            answered: whether the server has answered before, so that it will be there again; a first question to an
                address at which nobody listens is not asked again.

        Raises:
            QuestionRefusedError: the server refuses this question.
            UserError: the server is not there, does not know the model, refuses the key, or keeps failing.
        """
        wait = self.backoff
        for attempt in range(self.retries + 1):
            try:
                return self._answer(self._post(body))
            except _PassingError as error:
                if isinstance(error, _AbsentError) and not answered:
                    raise UserError(
                        f"endpoint.url={redact(str(self.url))} cannot be reached: {error}. Start the server, or "
                        "correct the address."
                    ) from None
                if attempt == self.retries:
                    raise UserError(
                        f"endpoint.url={redact(str(self.url))} failed {attempt + 1} times, at last: {error}. Every "
                        "answer so far is kept: run the command again to go on."
                    ) from None
                time.sleep(min(LONGEST_WAIT, max(wait, error.wait)))
                wait *= 2
        raise AssertionError("unreachable")

    def _post(self, body: Mapping[str, Any]) -> Any:
        """The content of the answer, or what kind of failure it is."""
        key = os.environ.get(self.key_variable, "").strip()
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        address = str(self.url).rstrip("/").removesuffix(PATH) + PATH
        request = urllib.request.Request(address, json.dumps(body).encode(), headers, method="POST")
        try:
            with urllib.request.build_opener(_NoRedirects).open(request, timeout=self.timeout) as reply:
                return json.loads(_without(key, reply.read().decode("utf-8", "replace")))
        except urllib.error.HTTPError as error:
            self._raise(error.code, _without(key, _text_of(error)), error.headers.get("Retry-After"), bool(key))
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            kind = _AbsentError if isinstance(reason, ConnectionRefusedError | socket.gaierror) else _PassingError
            raise kind(_without(key, redact(str(reason) or type(error).__name__))) from None

    def _raise(self, status: int, text: str, wait: str | None, with_key: bool) -> None:
        """Raise what an HTTP status means."""
        told = f"HTTP {status}: {redact(text)[:200] or 'no reason given'}"
        if status in PASSING:
            raise _PassingError(told, _seconds(wait))
        if status in OF_THE_QUESTION:
            raise QuestionRefusedError(told)
        advice = ""
        if status in (401, 403):
            state = "is set and was refused" if with_key else "is not set"
            advice = f" The environment variable {self.key_variable} {state}."
        elif status == 404:
            advice = f" Is {self.model} the name of a model there, and does the address end in /v1?"
        raise UserError(f"endpoint.url={redact(str(self.url))} answers {told}.{advice}")

    def _answer(self, content: Any) -> Answer:
        """The answer in what the server sent."""
        try:
            choice = content["choices"][0]
            text = choice["message"]["content"]
            text = "" if text is None else text  # a refusal, or a model that thought until it was cut: paid for too
            if not isinstance(text, str):
                raise TypeError("no text")
        except (KeyError, IndexError, TypeError):
            told = json.dumps(content)[:200]
            raise _PassingError(f"an answer without choices[0].message.content: {redact(told)}") from None
        usage = content.get("usage") or {}
        asked, answered = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
        uncounted = int(asked is None or answered is None)
        cost = None
        if not uncounted and (self.prompt_price is not None or self.answer_price is not None):
            cost = ((asked or 0) * (self.prompt_price or 0) + (answered or 0) * (self.answer_price or 0)) / 1e6
        model = str(content.get("model") or self.model)
        used = Usage(1, asked or 0, answered or 0, uncounted, cost)
        return Answer(text, model, used, choice.get("finish_reason") != "length")


def _without(key: str, text: str) -> str:
    """A text in which the key, should the server repeat it, is masked."""
    return text.replace(key, MASK) if key else text


def _text_of(error: urllib.error.HTTPError) -> str:
    try:
        return " ".join(error.read(2000).decode("utf-8", "replace").split())
    except OSError:
        return ""


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text or 0))
    except ValueError:
        return 0.0


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and value >= 0 else None
