"""The process in which readers are attacked: forks a child per stretch of cases, so that one may crash or hang.

Requests and answers are JSON, one a line. ``{"target", "cases", "keep", "folder"}`` is answered by ``{"pid"}``, a
``{"begin"}`` before and a ``{"case", "outcome", ...}`` after each case, and ``{"exit", "log"}``.
"""

import faulthandler
import importlib
import json
import os
import resource
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TextIO

from .target import Found, Target, Verdict, damage, judge

# Address space, and memory in use, that reading a small file may add.
SPACE, MEMORY = 3 << 30, 700 << 20
# Imported once, not in every child.
PRELOADED = (
    "av", "pyarrow.parquet", "PIL.Image", "vidlab.lab.generate", "vidlab.data.datasets.folder",
    "vidlab.data.datasets.panda70m", "vidlab.lab.evaluation.clips", "vidlab.curation.cache_writer", "fuzz.targets",
)  # fmt: skip


def space_used() -> int:
    """Bytes of address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def most_memory() -> int:
    """Bytes that were in use at once."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def prepared(target: Target, folder: Path) -> tuple[Path, list[Any], Found]:
    """Good inputs, what is damaged of them, and what is read from them undamaged.

    Caches lie below ``folder`` too, since readers name what they make after the place of what they read.
    """
    os.environ["VIDLAB_CACHE"] = str(folder / "cache")
    good = folder / "good"
    good.mkdir(parents=True)
    subjects = list(target.make(good))
    untouched = folder / "bad"
    shutil.copytree(good, untouched)
    return good, subjects, target.read(untouched)


def attack(target: Target, request: dict[str, Any], answers: TextIO) -> None:
    """Read damaged inputs one after the other, and say what came of each."""

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    folder = Path(request["folder"]) / str(os.getpid())
    good, subjects, original = prepared(target, folder)
    limit = space_used() + SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for case in request["cases"]:
        answer(begin=case)
        before = most_memory()
        subject, steps = damage(target.name, case, good, folder / "bad", subjects, request["keep"])
        verdict = judge(target, original, subject, folder / "bad")
        if most_memory() - before > MEMORY:
            verdict = Verdict("memory", f"{(most_memory() - before) >> 20} MiB; {verdict.outcome}: {verdict.detail}")
        answer(case=case, **asdict(replace(verdict, steps=steps)))
        shutil.rmtree(folder / "cache", ignore_errors=True)
        if verdict.outcome == "memory":
            break  # the peak would hide the next one


def child(request: dict[str, Any], log: Path, answers: TextIO) -> None:
    """One stretch of cases; what is printed goes to ``log``."""
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    faulthandler.enable(2)
    from .targets import BROKEN, TARGETS

    attack({**TARGETS, **BROKEN}[request["target"]], request, answers)


def main() -> None:
    """Serve requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    for module in PRELOADED:
        importlib.import_module(module)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        log = Path(request["folder"]) / "log"
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                print(json.dumps({"pid": os.getpid()}), file=answers, flush=True)
                child(request, log, answers)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        exit_code = os.waitstatus_to_exitcode(status)
        told = log.read_text(errors="replace")[-3000:] if log.exists() else ""
        print(json.dumps({"exit": exit_code, "log": told if exit_code else ""}), file=answers, flush=True)
        shutil.rmtree(Path(request["folder"]) / str(pid), ignore_errors=True)


if __name__ == "__main__":
    main()
