"""Published data sets in the form they are distributed: an annotation file and videos, used where they are."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import islice
from pathlib import Path

from vidlab.assets import cache_folder
from vidlab.command_line import setting, shell_word
from vidlab.data.datasets.annotation import Annotation, ReadEntry, row_or_reason
from vidlab.data.datasets.base import fingerprint, prepare_once
from vidlab.data.datasets.splits import GatheredRows
from vidlab.data.names import FolderPaths, file_below, is_file, shown
from vidlab.data.parallel import in_processes
from vidlab.data.remarks import Remarks, sentences
from vidlab.data.storage.clip_row import ClipRow
from vidlab.data.tables.table_rows import BadItem
from vidlab.data.video import DecodeLimits
from vidlab.errors import DataError, UserError

log = logging.getLogger(__name__)
LISTED = 5

# Videos handed to the probing processes at a time.
WAITING = 4096

# Raise when the index of unchanged files would come out different.
VERSION = 3


@dataclass(frozen=True)
class AnnotatedVideos(ABC):
    """A folder of videos and the annotation that describes them, as a ``ClipSource``.

    Nothing is copied: an index is written to the cache, under a hash of the annotation's name, size and change time,
    of the folder and of the settings. Videos are probed once, in several processes. Videos that the annotation names
    and the folder does not have are counted and reported; all of the public lists name videos that can no longer be
    downloaded. Rows that cannot be used, entries that lead out of the folder and videos that cannot be read are named
    in the index, counted, and refused beyond ``data.max_corrupt``. A video that several rows name has the captions of
    all of them.

    Args:
        path: the data set's folder.
        annotation: the annotation file, relative to ``path`` or absolute; None takes the data set's usual name.
        val_fraction: share of clips held out by name, where the data set has no split of its own.
        cache_dir: where the index is kept; None is the vidlab cache.
        name: in logs and messages.
        max_megapixels: millions of pixels that a frame may have.

    Raises:
        UserError: a path that is not set or does not exist.
        DataError: an annotation that cannot be read, or fewer than 2 usable clips.
    """

    path: str | None
    annotation: str | None = None
    val_fraction: float = 0.02
    cache_dir: str | None = None
    name: str = ""
    max_megapixels: float = 64

    @abstractmethod
    def entries(self, folder: Path) -> Iterable[Annotation | BadItem]:
        """Every video of the annotation, present or not, and the rows that cannot be used."""

    @abstractmethod
    def advice(self) -> str:
        """Where the data set comes from and how its folder must look, one or two sentences."""

    def annotated_by(self, folder: Path) -> list[Path]:
        """The files whose change makes a new index."""
        return []

    def class_names(self) -> tuple[str, ...]:
        """The classes that its captions name, in the data set's order; () where captions are texts."""
        return ()

    def prepare(self) -> Path:
        """The folder of the index, made on first use."""
        folder = self._folder()
        settings = [f"{f.name}={getattr(self, f.name)}" for f in fields(self) if f.name != "cache_dir"]
        digest = fingerprint((VERSION, type(self).__name__, folder, *settings), self.annotated_by(folder))
        cache = cache_folder(self.cache_dir)
        return prepare_once(cache / self.name / f"{folder.name}-{digest}", lambda made: self._build(made, folder))

    def find(self, folder: Path, usual: Sequence[str]) -> Path:
        """The annotation file: the one named, or the first of the usual names.

        Raises:
            UserError: it is not there.
        """
        names = [self.annotation] if self.annotation else list(usual)
        for name in names:
            literal = is_file(folder / name) or "*" not in name
            for file in [folder / name] if literal else sorted(folder.glob(name.lstrip("/"))):
                if is_file(file) and not file.name.startswith("."):
                    return file
        raise UserError(f"data.path={folder}: no {' or '.join(names)} there. {self.advice()}")

    def _folder(self) -> Path:
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.source.val_fraction={self.val_fraction}: it must lie between 0 and 1")
        if not self.path:
            raise UserError(f"data.path is not set: give the folder of {self.name}, data.path=... {self.advice()}")
        folder = Path(self.path).expanduser().resolve()
        if folder.is_file():
            place = shell_word(setting("data.path", folder.parent))
            raise UserError(f"data.path={self.path}: this is a file; give its folder: {place}. {self.advice()}")
        if not folder.is_dir():
            raise UserError(f"data.path={self.path}: no such folder ({folder}). {self.advice()}")
        return folder

    def _build(self, made: Path, folder: Path) -> None:
        named = _Named(FolderPaths(folder, self.path))
        with GatheredRows(made, self.val_fraction) as rows:
            for entry, found in _probed(folder, DecodeLimits(self.max_megapixels), named.present(self.entries(folder))):
                if isinstance(found, str):
                    named.rejected[shown(entry.file)] = found
                else:
                    named.shortened += found.row.frames < (entry.num_frames or 0)
                    named.remarks.add(found.row.key, found.remarks)
                    rows.add(found.row)
            self._report(folder, named, rows.repeats)
            usable = rows.count - sum(len(same) - 1 for same in rows.repeats.values())
            if usable < 2:
                raise DataError(
                    f"data.path={folder}: {named.count} videos are named, {named.count - named.absent} are there, "
                    f"{usable} are usable, and 2 are needed (1 to train on, 1 held out). {self.advice()}"
                    + "".join(f" {name}: {why}." for name, why in islice(named.rejected.items(), 3))
                )
            log.info(
                "data=%s: %d clips indexed, %d absent, %d unusable",
                self.name, usable, named.absent, len(named.rejected),
            )  # fmt: skip
            metadata = {"named": named.count, "absent": named.absent, "rejected": named.rejected}
            metadata |= named.remarks.metadata()
            rows.write_index(metadata, root=folder)

    def _report(self, folder: Path, named: "_Named", repeats: Mapping[str, Sequence[ClipRow]]) -> None:
        if named.absent:
            log.warning(
                "data=%s: %d of the %d videos named are not in %s and are left out, first %s",
                self.name, named.absent, named.count, folder, ", ".join(named.first_absent),
            )  # fmt: skip
        for name, reason in islice(named.rejected.items(), LISTED):
            log.warning("data=%s: %s left out: %s", self.name, name, reason)
        for remark in sentences(named.remarks.metadata()):
            log.warning("data=%s: %s", self.name, remark)
        if repeats:
            log.warning(
                "data=%s: %d clips are named more than once, first %s: each is one clip with the captions of all its "
                "rows", self.name, len(repeats), shown(next(iter(repeats))),
            )  # fmt: skip
        if named.shortened:
            log.warning(
                "data=%s: %d clips have fewer frames than the annotation says: those that are there are used",
                self.name, named.shortened,
            )  # fmt: skip


class _Named:
    """Videos that an annotation names, and what became of them.

    Args:
        paths: of the data set's folder.
    """

    def __init__(self, paths: FolderPaths) -> None:
        self.paths = paths
        self.count = self.absent = self.shortened = 0
        self.first_absent: list[str] = []
        self.rejected: dict[str, str] = {}
        self.remarks = Remarks()

    def present(self, entries: Iterable[Annotation | BadItem]) -> Iterator[Annotation]:
        """The entries whose video is there, under the name that it has there."""
        for entry in entries:
            if isinstance(entry, BadItem):
                self.rejected[shown(entry.name)] = entry.reason
                continue
            self.count += 1
            inside = self.paths.relative(entry.file)
            if inside is None:
                self.rejected[shown(entry.file)] = (
                    f"leads out of {self.paths.folder}: link or move what it names into this folder, or set data.path "
                    "to one that holds all"
                )
            elif (there := file_below(self.paths.folder, inside)) is not None:
                yield entry if there == entry.file else replace(entry, file=there)
            else:
                self.absent += 1
                if len(self.first_absent) < LISTED:
                    self.first_absent.append(shown(inside))


def _probed(
    folder: Path, limits: DecodeLimits, entries: Iterable[Annotation]
) -> Iterator[tuple[Annotation, ReadEntry | str]]:
    """Each entry in order, with its row or why there is none."""
    work = partial(row_or_reason, folder, limits=limits)
    yield from in_processes(
        work, entries, "Reading videos", at_once=WAITING, few=64, failed=lambda entry, reason: reason
    )
