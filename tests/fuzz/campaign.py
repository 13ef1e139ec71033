"""Cases of targets, run in a worker that is watched; what failed, reduced to the steps it takes."""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .target import ALLOWED, FAULTS, Verdict

TESTS = Path(__file__).resolve().parents[1]
# Seconds without a sign of life before a reader counts as hanging: far above what any takes on a loaded machine.
PATIENCE = 60.0
SOURCE = TESTS.parent / "src"


class Watched:
    """A worker and its time limit.

    Args:
        folder: for inputs.
        patience: seconds that one case may take.
    """

    def __init__(self, folder: Path, patience: float = PATIENCE) -> None:
        self.folder, self.patience = folder, patience
        paths = [str(TESTS), str(SOURCE), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(paths),
            "HF_HUB_OFFLINE": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fuzz.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        os.set_blocking(self._answers.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._answers, selectors.EVENT_READ)
        self._buffer = b""
        if self._next(300) is None:
            raise RuntimeError("the worker did not start")

    def _next(self, seconds: float) -> dict[str, Any] | None:
        """The next answer; None when there is none in time."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not self._selector.select(left):
                return None
            part = self._answers.read()
            if part == b"":
                raise RuntimeError("the worker ended")
            self._buffer += part or b""
        line, _, self._buffer = self._buffer.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found

    def run(
        self, target: str, cases: Sequence[int], keep: Sequence[int] | None = None
    ) -> Iterator[tuple[int, Verdict]]:
        """(case, verdict) of each case; a crash or a hang is that of its case, and the next ones follow."""
        pending = list(cases)
        while pending:
            request = {"target": target, "cases": pending, "keep": keep, "folder": str(self.folder)}
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
            for case, verdict in self._stretch(target, pending):
                pending.remove(case)
                yield case, verdict

    def _stretch(self, target: str, pending: Sequence[int]) -> Iterator[tuple[int, Verdict]]:
        """What one child answers, to its end."""
        current, pid, hung = None, 0, False
        while "exit" not in (answer := self._next(self.patience) or {}):
            if not answer:
                if hung or not pid:
                    raise RuntimeError(f"target {target}: its process cannot be ended")
                hung = True
                os.kill(pid, signal.SIGKILL)
            elif "pid" in answer:
                pid = answer["pid"]
            elif "begin" in answer:
                current = answer["begin"]
            else:
                current = None
                yield answer.pop("case"), Verdict(**answer | {"steps": tuple(answer["steps"])})
        if current is None and answer["exit"]:
            unready = Verdict("crash", "the target cannot be set up", (), answer["log"])
            yield from [(case, unready) for case in pending]
        if current is not None:
            ended = f"no answer in {self.patience:g} s" if hung else f"ended with {answer['exit']}"
            yield current, Verdict("hang" if hung else "crash", ended, (), answer["log"])

    def close(self) -> None:
        """End the worker."""
        self._requests.close()
        self._process.kill()
        self._process.wait()


def where(trace: str) -> str:
    """The last line of vidlab in a traceback, with the exception, so that equal faults count as one."""
    frames = [line.strip() for line in trace.splitlines() if "vidlab" in line and line.strip().startswith("File ")]
    return frames[-1].split("vidlab/")[-1].replace('", line ', ":").partition(",")[0] if frames else ""


@dataclass
class Failure:
    """A fault and how to see it again."""

    target: str
    case: int
    verdict: Verdict
    keep: tuple[int, ...] = ()
    times: int = 1

    @property
    def kind(self) -> tuple[str, ...]:
        """Equal for faults that are most likely one."""
        said = re.sub(r"\S*/\S*|\d+", "#", self.verdict.detail)[:40]
        said = said if self.verdict.outcome in ("traceback", "stopped") else ""
        return self.target, self.verdict.outcome, said, where(self.verdict.trace)

    def text(self) -> str:
        """The command that repeats it, what was done to the input, and what came of it."""
        kept = f" --keep {','.join(map(str, self.keep))}" if self.keep else ""
        lines = [f"{self.verdict.outcome} in {self.target} ({self.times} times): {self.verdict.detail[:400]}"]
        lines.append(f"  python tests/fuzz --target {self.target} --case {self.case}{kept}")
        lines += [f"  {step}" for step in self.verdict.steps]
        tail = [line for line in self.verdict.trace.rstrip().splitlines() if line.strip()][-6:]
        return "\n".join([*lines, *(f"    {line}" for line in tail)])


@dataclass
class Tally:
    """What came of the cases of each target."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    failures: dict[tuple[str, ...], Failure] = field(default_factory=dict)

    def add(self, target: str, case: int, verdict: Verdict) -> Failure | None:
        """Count a case; its failure where that is one of a new kind."""
        self.counts.setdefault(target, Counter())[verdict.outcome] += 1
        if verdict.outcome not in FAULTS:
            return None
        failure = Failure(target, case, verdict)
        known = self.failures.setdefault(failure.kind, failure)
        if known is not failure:
            known.times += 1
            return None
        return failure

    def table(self) -> str:
        """A line for each target."""
        lines = [f"{'target':<24}{'inputs':>8}" + "".join(f"{name:>9}" for name in ALLOWED) + "   faults"]
        total: Counter[str] = Counter()
        for target, count in [*sorted(self.counts.items()), ("all", total)]:
            total += count if target != "all" else Counter()
            faults = ", ".join(f"{count[name]} {name}" for name in FAULTS if count[name]) or "0"
            lines.append(
                f"{target:<24}{count.total():>8}" + "".join(f"{count[n]:>9}" for n in ALLOWED) + f"   {faults}"
            )
        return "\n".join(lines)


def reduced(worker: Watched, failure: Failure) -> Failure:
    """The failure with the fewest steps that still give it, one by one left out."""
    steps = [int(step.partition(":")[0]) for step in failure.verdict.steps]
    kept, verdict = list(steps), failure.verdict
    for step in steps if len(steps) > 1 else ():
        fewer = [one for one in kept if one != step]
        if not fewer:
            break
        ((_, found),) = worker.run(failure.target, [failure.case], fewer)
        if Failure(failure.target, failure.case, found).kind == failure.kind:
            kept, verdict = fewer, found
    return Failure(failure.target, failure.case, verdict, tuple(kept) if kept != steps else (), failure.times)


def run_cases(worker: Watched, tally: Tally, target: str, cases: Sequence[int]) -> list[Failure]:
    """Run cases of one target into ``tally``; the failures of new kinds."""
    new = [failure for case, verdict in worker.run(target, cases) if (failure := tally.add(target, case, verdict))]
    found = [reduced(worker, failure) for failure in new]
    for failure in found:
        tally.failures[failure.kind] = failure
    return found
