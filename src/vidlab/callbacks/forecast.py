"""When a run will end, by the pace of its own steps."""

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

MINUTE, HOUR, DAY = 60, 3600, 86400


@dataclass(frozen=True)
class Remaining:
    """What a run has still to do.

    Args:
        steps: optimizer steps.
        validations: how many.
        at_most: seconds that are left to it at all; None without a limit.
    """

    steps: int
    validations: int
    at_most: float | None = None


class Forecast:
    """Measures the pace of a run and says how long the rest of it takes.

    The first step, which pays for workers, allocations and compilation, does not count. Validations are counted by the
    last one's duration, the one before training included; previews and files with the steps that they lie between.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = self._since = 0.0
        self._first = self._last = 0
        self._marked: float | None = None
        self._validation_began: float | None = None
        self._seconds_per_validation = 0.0

    def start(self, step: int) -> None:
        """Training begins, or goes on, after so many steps."""
        self._first = self._last = step
        self._begun, self._marked = self._clock(), None

    def stepped(self, step: int) -> None:
        """So many steps are done; batches of a step that are still accumulated change nothing."""
        if step == self._last:
            return
        self._last, now = step, self._clock()
        if self._marked is None:
            self._first, self._since = step, now
        self._marked = now

    def validation_started(self) -> None:
        """The clock of steps stands still."""
        self._validation_began = self._clock()

    def validation_ended(self) -> None:
        """It runs again."""
        if self._validation_began is not None:
            self._seconds_per_validation = self._clock() - self._validation_began
            self._since += self._seconds_per_validation
            self._validation_began = None

    @property
    def elapsed(self) -> float:
        """Seconds since training began."""
        return self._clock() - self._begun

    @property
    def steps(self) -> int:
        """Steps of this run that were measured."""
        return self._last - self._first

    @property
    def steps_per_second(self) -> float | None:
        """Of this run, without its validations; None before the second step."""
        if self._marked is None or self.steps < 1:
            return None
        return self.steps / max(self._marked - self._since, 1e-9)

    def seconds_left(self, remaining: Remaining) -> float | None:
        """Seconds until the end; None before the second step."""
        if (pace := self.steps_per_second) is None:
            return None
        seconds = remaining.steps / pace + remaining.validations * self._seconds_per_validation
        return seconds if remaining.at_most is None else min(seconds, remaining.at_most)


def validations_left(step: int, last_step: int, batches_per_step: int, interval: float) -> int:
    """Validations from a step to the last, one after it included.

    Args:
        step: optimizer steps done.
        last_step: of the run.
        batches_per_step: that accumulate.
        interval: batches between two validations; infinite without.
    """
    done, all_batches = step * batches_per_step, last_step * batches_per_step
    if interval == float("inf"):
        return 1
    return int(all_batches // interval - done // interval) + bool(all_batches % interval)


def duration(seconds: float) -> str:
    """In the two largest units: ``45 s``, ``3 min 55 s``, ``2 h 5 min``, ``3 d 4 h``."""
    whole = round(seconds)
    for unit, name, smaller, its_name in ((DAY, "d", HOUR, "h"), (HOUR, "h", MINUTE, "min"), (MINUTE, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // smaller} {its_name}"
    return f"{whole} s"


def clock_time(seconds: float, now: float | None = None) -> str:
    """The time of day in so many seconds; with the date where that is another day.

    Args:
        seconds: from now.
        now: seconds since the epoch.
    """
    start = time.time() if now is None else now
    then, today = time.localtime(start + seconds), time.localtime(start)
    return time.strftime("%H:%M" if then[:3] == today[:3] else "%Y-%m-%d %H:%M", then)


def peak_memory(device: torch.device) -> int:
    """Bytes that were needed at most so far: of tensors on a GPU, of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
