"""Many questions to one server: several at once, each paid for once."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from vidlab.chat.endpoint import Endpoint, QuestionRefusedError
from vidlab.chat.journal import Answer, Journal, Usage
from vidlab.chat.messages import ChatRequest, identity

# Requests that are made ahead of their answers, in units of those in flight: pictures take memory.
AHEAD = 2


@dataclass(frozen=True)
class Refused:
    """A question that the server does not take, and its reason."""

    reason: str


class ChatClient:
    """Asks a server, and never twice what its journal has.

    Args:
        endpoint: the server.
        journal: open.

    Attributes:
        spent: what the answers of this client took.
        kept: answers that the journal had.
    """

    def __init__(self, endpoint: Endpoint, journal: Journal) -> None:
        self.endpoint = endpoint
        self.journal = journal
        self.spent = Usage()
        self.kept = 0
        self._asking: dict[str, Lock] = {}
        self._answered = False  # whether the server has been there

    def answers(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[ChatRequest, Answer | Refused]]:
        """Each request with its answer, in order, ``endpoint.at_once`` of them in flight.

        A thread writes its answer to the journal before it hands it over, so a kill loses only what is in flight.

        Raises:
            UserError: the server is not there, refuses the key, or keeps failing; answers in flight are still kept.
        """
        waiting: deque[tuple[ChatRequest, Future[tuple[Answer | Refused, bool]]]] = deque()
        pool = ThreadPoolExecutor(self.endpoint.at_once, thread_name_prefix="chat")
        try:
            for request in requests:
                waiting.append((request, pool.submit(self._answer, request)))
                while len(waiting) > AHEAD * self.endpoint.at_once or (waiting and waiting[0][1].done()):
                    yield self._taken(*waiting.popleft())
            while waiting:
                yield self._taken(*waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _answer(self, request: ChatRequest) -> tuple[Answer | Refused, bool]:
        """The answer, and whether it was asked for now; in a thread."""
        body = self.endpoint.body(request)
        key = identity(self.endpoint.address, body)
        with self._asking.setdefault(key, Lock()):  # of two equal questions in flight the second waits for the first
            found = self.journal.get(key)
            if found is not None:
                return found, False
            try:
                answer = self.endpoint.ask(body, answered=self._answered)
            except QuestionRefusedError as error:
                self._answered = True
                return Refused(str(error)), False
            self._answered = True
            self.journal.put(key, answer, request.about)
        return answer, True

    def _taken(
        self, request: ChatRequest, future: "Future[tuple[Answer | Refused, bool]]"
    ) -> tuple[ChatRequest, Answer | Refused]:
        answer, new = future.result()
        if isinstance(answer, Answer):
            if new:
                self.spent = self.spent + answer.usage
            else:
                self.kept += 1
        return request, answer
