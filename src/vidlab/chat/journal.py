"""The journal of answers: what was paid for is on disk before anything else is done with it."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from vidlab.errors import UserError


@dataclass(frozen=True)
class Usage:
    """What answers took; prices are in the currency of whoever set them.

    Args:
        calls: answers.
        prompt_tokens: tokens of what was asked, pictures included, as the server counted them.
        answer_tokens: tokens of the answers.
        uncounted: answers whose server told no tokens.
        cost: None where no price was set.
    """

    calls: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    uncounted: int = 0
    cost: float | None = None

    def __add__(self, other: "Usage") -> "Usage":
        costs = [cost for cost in (self.cost, other.cost) if cost is not None]
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.answer_tokens + other.answer_tokens,
            self.uncounted + other.uncounted,
            sum(costs) if costs else None,
        )

    def __str__(self) -> str:
        text = f"{self.calls} calls, {self.prompt_tokens} + {self.answer_tokens} tokens"
        if self.uncounted:
            text += f" ({self.uncounted} calls without a count)"
        return text if self.cost is None else f"{text}, cost {self.cost:.4f}"


@dataclass(frozen=True)
class Answer:
    """One answer.

    Args:
        text: what the model said.
        model: that answered, as the server names it.
        usage: of this call.
        finished: False where the answer was cut at its longest.
    """

    text: str
    model: str
    usage: Usage
    finished: bool = True


class Journal:
    """Answers by the identity of their request, in a file of JSON lines that only grows.

    A line is synced to the disk before its answer is used. A line that a kill cut off is dropped when the journal is
    opened, and its request is asked again. Used as a context manager; one process at a time.

    Args:
        path: the file; made where there is none.

    Raises:
        UserError: another process has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._answers: dict[str, Answer] = {}
        self._writing = Lock()
        self._lock = FileLock(f"{path}.lock")
        self._file: BinaryIO | None = None

    def __enter__(self) -> "Journal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"{self.path} is in use by another process: wait for it, or give another folder.") from None
        self._file = self.path.open("ab+")
        self._file.truncate(self._read(self._file))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._writing:  # an answer that is being written is finished
            assert self._file is not None
            self._file.close()
            self._file = None
        self._lock.release()

    def _read(self, file: BinaryIO) -> int:
        """Take in the whole lines; returns where the last of them ends."""
        file.seek(0)
        end = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            try:
                record = json.loads(line)
                usage = Usage(**record["usage"])
                self._answers[record["id"]] = Answer(record["answer"], record["model"], usage, record["finished"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{self.path} has a line that is no answer ({error}); move the file away.") from error
        return end

    def __len__(self) -> int:
        return len(self._answers)

    def __iter__(self) -> Iterator[Answer]:
        return iter(list(self._answers.values()))

    def get(self, key: str) -> Answer | None:
        """The answer to a request, or None."""
        return self._answers.get(key)

    def put(self, key: str, answer: Answer, about: str) -> None:
        """Keep an answer for good; from any thread."""
        record: Mapping[str, Any] = {"id": key, "about": about, "model": answer.model, "answer": answer.text}
        line = json.dumps({**record, "finished": answer.finished, "usage": asdict(answer.usage)}) + "\n"
        with self._writing:
            if self._file is None:
                return  # the command has ended
            self._file.write(line.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._answers[key] = answer
