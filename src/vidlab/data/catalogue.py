"""Published data sets in the form they are distributed: an annotation file and videos, used where they are."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from vidlab.assets import cache_folder
from vidlab.data.clip_row import ClipRow
from vidlab.data.pool import in_processes
from vidlab.data.source import prepare_once
from vidlab.data.splits import GatheredRows
from vidlab.data.video import probe
from vidlab.errors import CorruptClipError, DataError, UserError

log = logging.getLogger(__name__)
LISTED = 5

# Videos handed to the probing processes at a time.
WAITING = 4096

# Raise when the index of unchanged files would come out different.
VERSION = 2


@dataclass(frozen=True)
class Entry:
    """One video that an annotation names.

    Args:
        file: relative to the data set's folder.
        captions: one or more texts.
        source: the recording the clip was cut from; "" when it is its own.
        split: ``train`` or ``val``; "" leaves it to the clip's name.
        scores: what the annotation says of the clip's quality, by name.
    """

    file: str
    captions: tuple[str, ...]
    source: str = ""
    split: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Catalogue(ABC):
    """A folder of videos and the annotation that describes them, as a ``ClipSource``.

    Nothing is copied: an index is written to the cache, under a hash of the annotation's name, size and change time,
    of the folder and of the settings. Videos are probed once, in several processes. Videos that the annotation names
    and the folder does not have are counted and reported; all of the public lists name videos that can no longer be
    downloaded.

    Args:
        path: the data set's folder.
        annotation: the annotation file, relative to ``path`` or absolute; None takes the data set's usual name.
        val_fraction: share of clips held out by name, where the data set has no split of its own.
        cache_dir: where the index is kept; None is the vidlab cache.
        name: in logs and messages.

    Raises:
        UserError: a path that is not set or does not exist.
        DataError: an annotation that cannot be read, or fewer than 2 usable clips.
    """

    path: str | None
    annotation: str | None = None
    val_fraction: float = 0.02
    cache_dir: str | None = None
    name: str = ""

    @abstractmethod
    def entries(self, folder: Path) -> Iterable[Entry]:
        """Every video of the annotation, present or not."""

    @abstractmethod
    def advice(self) -> str:
        """Where the data set comes from and how its folder must look, one or two sentences."""

    def annotated_by(self, folder: Path) -> list[Path]:
        """The files whose change makes a new index."""
        return []

    def prepare(self) -> Path:
        """The folder of the index, made on first use."""
        folder = self._folder()
        digest = blake2b(digest_size=8)
        settings = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.name != "cache_dir"]
        for part in (VERSION, type(self).__name__, folder, *settings):
            digest.update(f"{part}\n".encode())
        for file in self.annotated_by(folder):
            state = file.stat()
            digest.update(f"{file}\n{state.st_size}\n{state.st_mtime_ns}\n".encode())
        cache = Path(self.cache_dir).expanduser() if self.cache_dir else cache_folder()
        return prepare_once(
            cache / self.name / f"{folder.name}-{digest.hexdigest()}", lambda made: self._build(made, folder)
        )

    def find(self, folder: Path, usual: Sequence[str]) -> Path:
        """The annotation file: the one named, or the first of the usual names.

        Raises:
            UserError: it is not there.
        """
        names = [self.annotation] if self.annotation else list(usual)
        for name in names:
            for file in sorted(folder.glob(name)) if "*" in name else [folder / name]:
                if file.is_file():
                    return file
        raise UserError(f"data.path={folder}: no {' or '.join(names)} there. {self.advice()}")

    def _folder(self) -> Path:
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.source.val_fraction={self.val_fraction}: it must lie between 0 and 1")
        if not self.path:
            raise UserError(f"data.path is not set: give the folder of {self.name}, data.path=... {self.advice()}")
        folder = Path(self.path).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"data.path={self.path}: no such folder ({folder}). {self.advice()}")
        return folder

    def _build(self, made: Path, folder: Path) -> None:
        counts, rejected = _Counts(), {}
        with GatheredRows(made, self.val_fraction) as rows:
            for entry, found in _probed(folder, counts.present(folder, self.entries(folder))):
                if isinstance(found, str):
                    rejected[entry.file] = found
                elif not any(entry.captions):
                    rejected[entry.file] = "no caption"
                else:
                    rows.add(found)
            self._report(folder, counts, rejected)
            if rows.count < 2:
                raise DataError(
                    f"data.path={folder}: {counts.named} videos are named, {counts.named - counts.absent} are there, "
                    f"{rows.count} are usable, and 2 are needed (1 to train on, 1 held out). {self.advice()}"
                )
            log.info(
                "data=%s: %d clips indexed, %d absent, %d unusable",
                self.name, rows.count, counts.absent, len(rejected),
            )  # fmt: skip
            metadata = {"named": counts.named, "absent": counts.absent, "rejected": rejected}
            rows.write_index(metadata, root=folder)

    def _report(self, folder: Path, counts: "_Counts", rejected: Mapping[str, str]) -> None:
        if counts.absent:
            log.warning(
                "data=%s: %d of the %d videos named are not in %s and are left out, first %s",
                self.name, counts.absent, counts.named, folder, ", ".join(counts.first_absent),
            )  # fmt: skip
        for file, reason in islice(rejected.items(), LISTED):
            log.warning("data=%s: %s left out: %s", self.name, file, reason)


class _Counts:
    """Videos that an annotation names, and those of them that are not there."""

    def __init__(self) -> None:
        self.named = self.absent = 0
        self.first_absent: list[str] = []

    def present(self, folder: Path, entries: Iterable[Entry]) -> Iterator[Entry]:
        """The entries whose video is there."""
        for entry in entries:
            self.named += 1
            if (folder / entry.file).is_file():
                yield entry
                continue
            self.absent += 1
            if len(self.first_absent) < LISTED:
                self.first_absent.append(entry.file)


def _probed(folder: Path, entries: Iterable[Entry]) -> Iterator[tuple[Entry, ClipRow | str]]:
    """Each entry in order, with its row or why there is none."""
    jobs = ((folder, entry) for entry in entries)
    for (_, entry), found in in_processes(_probe, jobs, "Reading videos", at_once=WAITING, few=64):
        yield entry, found


def _probe(job: tuple[Path, Entry]) -> ClipRow | str:
    folder, entry = job
    file = folder / entry.file
    try:
        info = probe(file, entry.file)
    except CorruptClipError as error:
        return str(error).removeprefix(f"{entry.file}: ")
    return ClipRow(
        key=entry.file,
        shard=entry.file,
        offset=0,
        size=file.stat().st_size,
        captions=entry.captions,
        split=entry.split,
        source=entry.source or entry.file,
        factors=None,
        scores=entry.scores,
        **asdict(info),
    )
