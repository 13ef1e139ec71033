"""A reader under attack: its good inputs, how it is called, and what may come out when one of them is damaged."""

import logging
import os
import shutil
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from random import Random

from vidlab.errors import UserError

from .edits import EDITS, Edit

# Outcomes: those allowed, and faults.
ALLOWED = ("good", "changed", "named", "refused")
FAULTS = ("traceback", "hang", "crash", "memory", "lost", "stopped", "spread", "altered", "escaped")


@dataclass(frozen=True)
class Found:
    """What a reader made of its input.

    Args:
        items: the content of each item, or a digest of it, by name.
        said: what was named as unreadable, left out or counted: reasons and warnings.
    """

    items: Mapping[str, str]
    said: Sequence[str] = ()


@dataclass(frozen=True)
class Subject:
    """A file that is damaged.

    Args:
        file: below the folder of the input.
        edits: a name in ``EDITS``, or the edits themselves.
        items: those it holds. A sound container with damage in these must still give all others; None where it holds
            all, so that a reader may refuse it.
        countable: whether an item that is missing can be noticed: a line cut from a list cannot.
        nodes: whether it may also become a folder, a pipe, a link to nowhere, or nothing.
    """

    file: str
    edits: str | tuple[Edit, ...] = "bytes"
    items: frozenset[str] | None = None
    countable: bool = True
    nodes: bool = False


@dataclass(frozen=True)
class Target:
    """A reader.

    Args:
        name: of the target.
        make: writes good inputs into a folder and says which files are to be damaged.
        read: reads that folder.
        exact: whether a checksum promises that what is read is what was written; its subjects are then damaged without
            making checksums right.
        slow: whether only the long campaign has time for it.
    """

    name: str
    make: Callable[[Path], Sequence[Subject]]
    read: Callable[[Path], Found]
    exact: bool = False
    slow: bool = False


@dataclass(frozen=True)
class Verdict:
    """What came of one damaged input."""

    outcome: str
    detail: str = ""
    steps: tuple[str, ...] = ()
    trace: str = field(default="", repr=False)


class PromiseBrokenError(Exception):
    """A reader's result shows a fault; ``outcome`` is its kind."""

    def __init__(self, outcome: str, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome


def digest(*parts: object) -> str:
    """Of anything with a faithful text or bytes."""
    hashed = blake2b(digest_size=8)
    for part in parts:
        hashed.update(part if isinstance(part, bytes) else repr(part).encode("utf-8", "surrogatepass"))
        hashed.update(b"\0")
    return hashed.hexdigest()


@contextmanager
def listening() -> Iterator[list[str]]:
    """Warnings of the logging and the warnings module, as they are given."""
    said: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    ear = Ear(logging.WARNING)
    loggers = [logging.getLogger(), *(logging.getLogger(n) for n in ("lightning", "lightning.pytorch", "vidlab"))]
    deaf = [one for one in loggers[1:] if not one.propagate]
    for one in (loggers[0], *deaf):
        one.addHandler(ear)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield said
            said += [str(one.message) for one in caught if not issubclass(one.category, DeprecationWarning)]
    finally:
        for one in (loggers[0], *deaf):
            one.removeHandler(ear)


NODES: Mapping[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a pipe": lambda path: os.mkfifo(path),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "nothing": lambda path: None,
    "an empty file": lambda path: path.touch(),
}


def damage(
    target: str, number: int, good: Path, bad: Path, subjects: Sequence[Subject], keep: Sequence[int] | None = None
) -> tuple[Subject, tuple[str, ...]]:
    """Copy ``good`` to ``bad`` and damage one file of it; the same for the same target, number and steps kept."""
    random = Random(f"{target} {number}")
    subject = random.choice(subjects)
    count = random.choice((1, 1, 1, 2, 3, 6))
    shutil.rmtree(bad, ignore_errors=True)
    shutil.copytree(good, bad)
    path = bad / subject.file
    if subject.nodes and random.random() < 0.05:
        kind = random.choice(list(NODES))
        path.unlink()
        NODES[kind](path)
        if kind in ("a folder", "nothing"):  # of which nobody can tell that it was a file
            subject = replace(subject, countable=False)
        return subject, (f"0: {subject.file} is {kind}",)
    edits = EDITS[subject.edits] if isinstance(subject.edits, str) else subject.edits
    data, steps = path.read_bytes(), []
    for step in range(count):
        own = Random(f"{target} {number} {step}")
        if (keep is None or step in keep) and data:
            data, said = own.choice(edits)(own, data)
            steps.append(f"{step}: {subject.file}: {said}")
    path.write_bytes(data)
    return subject, tuple(steps)


def judge(target: Target, original: Found, subject: Subject, folder: Path) -> Verdict:
    """Read a damaged input and compare with what was in it before."""
    try:
        with listening() as warned:
            found = target.read(folder)
    except UserError as error:
        if not str(error).strip() or "Traceback" in str(error):
            return Verdict("traceback", f"a {type(error).__name__} without a message: {error}")
        return Verdict("refused" if subject.items is None else "stopped", f"{type(error).__name__}: {error}")
    except PromiseBrokenError as error:
        return Verdict(error.outcome, str(error))
    except MemoryError:
        return Verdict("memory", "MemoryError", trace=traceback.format_exc())
    except Exception as error:
        return Verdict("traceback", f"{type(error).__name__}: {str(error)[:200]}", trace=traceback.format_exc())
    return compare(target, original, subject, Found(found.items, [*found.said, *warned]))


def compare(target: Target, original: Found, subject: Subject, found: Found) -> Verdict:
    """What is there against what was there."""
    missing = [key for key in original.items if key not in found.items]
    differing = [key for key, value in original.items.items() if found.items.get(key, value) != value]
    # an item of another row that this one now names too is said by its name
    whole = "; ".join(found.said)
    free = () if subject.items is None else [key for key in (*missing, *differing) if key not in subject.items]
    others = [key for key in free if key in missing or key not in whole]
    said = whole[:300]
    if others:
        return Verdict("spread", f"{others[0]} is not what it was; said: {said or 'nothing'}")
    if len(found.items) < len(original.items):
        if not found.said:
            return Verdict("lost" if subject.countable else "changed", f"{', '.join(missing[:3])} without a word")
        return Verdict("named", said)
    if target.exact and (missing or differing):
        return Verdict("altered", f"{', '.join([*differing, *missing][:3])} differs from what was written")
    if missing or differing or found.said:
        return Verdict("named" if found.said else "changed", said)
    return Verdict("good")
