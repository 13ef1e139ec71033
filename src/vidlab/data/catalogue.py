"""Published data sets in the form they are distributed: an annotation file and videos, used where they are."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from pathlib import Path

from vidlab.assets import cache_folder
from vidlab.data.folder import split_by_key
from vidlab.data.index import ClipRow, write_index
from vidlab.data.source import prepare_once
from vidlab.data.video import probe
from vidlab.errors import CorruptClipError, DataError, UserError

log = logging.getLogger(__name__)
LISTED = 5

# Raise when the index of unchanged files would come out different.
VERSION = 1


@dataclass(frozen=True)
class Entry:
    """One video that an annotation names.

    Args:
        file: relative to the data set's folder.
        captions: one or more texts.
        source: the recording the clip was cut from; "" when it is its own.
        split: ``train`` or ``val``; "" leaves it to the clip's name.
    """

    file: str
    captions: tuple[str, ...]
    source: str = ""
    split: str = ""


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
        named = list(self.entries(folder))
        present = [entry for entry in named if (folder / entry.file).is_file()]
        if len(present) < len(named):
            there = {entry.file for entry in present}
            missing = [entry.file for entry in named if entry.file not in there]
            log.warning(
                "data=%s: %d of the %d videos named are not in %s and are left out, first %s",
                self.name, len(missing), len(named), folder, ", ".join(missing[:LISTED]),
            )  # fmt: skip
        rows, rejected = [], {}
        for entry, found in zip(present, _probed(folder, present), strict=True):
            if isinstance(found, str):
                rejected[entry.file] = found
            elif not any(entry.captions):
                rejected[entry.file] = "no caption"
            else:
                rows.append(found)
        for file, reason in list(rejected.items())[:LISTED]:
            log.warning("data=%s: %s left out: %s", self.name, file, reason)
        if len(rows) < 2:
            raise DataError(
                f"data.path={folder}: {len(named)} videos are named, {len(present)} are there, {len(rows)} are usable, "
                f"and 2 are needed (1 to train on, 1 held out). {self.advice()}"
            )
        log.info(
            "data=%s: %d clips indexed, %d absent, %d unusable",
            self.name,
            len(rows),
            len(named) - len(present),
            len(rejected),
        )
        metadata = {"named": len(named), "absent": len(named) - len(present), "rejected": rejected}
        write_index(made, _with_splits(rows, self.val_fraction), metadata, root=folder)


def _probed(folder: Path, entries: Sequence[Entry]) -> Iterator[ClipRow | str]:
    """A row, or why there is none, for each entry in order."""
    from rich.progress import track

    jobs = [(folder, entry) for entry in entries]
    workers = min(os.cpu_count() or 1, 16)
    if len(jobs) < 64 or workers == 1:
        yield from track(map(_probe, jobs), "Reading videos", len(jobs), transient=True)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from track(pool.map(_probe, jobs, chunksize=32), "Reading videos", len(jobs), transient=True)


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
        **asdict(info),
    )


def _with_splits(rows: list[ClipRow], val_fraction: float) -> list[ClipRow]:
    """The data set's own split where it has one; else clips of one recording go to one side."""
    if all(row.split for row in rows):
        return rows
    return split_by_key(rows, val_fraction)
