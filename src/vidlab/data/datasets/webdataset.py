"""Tar shards made by others, used where they are: ``data=shards``."""

import fnmatch
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path

from vidlab.assets import cache_folder
from vidlab.command_line import setting, shell_word
from vidlab.data.datasets.base import prepare_once
from vidlab.data.datasets.splits import GatheredRows
from vidlab.data.names import shown, walk_files
from vidlab.data.parallel import in_processes
from vidlab.data.remarks import Remarks, sentences
from vidlab.data.storage.tar_scan import ShardContent, scan_shard
from vidlab.data.video import DecodeLimits
from vidlab.errors import DataError, UserError

log = logging.getLogger(__name__)

LISTED = 5
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4")
UNPACK = "compressed shards cannot be read at an offset: unpack them (gunzip, unxz, unzstd)"
# What is counted of samples, and how it is said. The first two are always recorded, even when there are none.
LEFT_OUT = {
    "without_video": "without video in %s: left out",
    "without_caption": "without caption in %s: left out",
    "with_further_videos": "with several videos in %s: those without a text of their own name are left out",
}
ALWAYS = ("without_video", "without_caption")

# Raise when the index of unchanged shards would come out different.
VERSION = 3


@dataclass(frozen=True)
class TarShards:
    """Every captioned video in the WebDataset shards (.tar) under a folder, as a ``ClipSource``.

    Nothing is copied: the tar headers are walked, each video is probed once, in one process per processor, and an index
    of offsets is written to the cache, under a hash of the shards' names, sizes and change times.

    A sample has a video (``.mp4 .webm .mkv .avi .mov``; also ``.video.mp4``) and a caption: ``captions`` in its
    ``.json``, else the non-empty lines of its ``.txt``, else ``caption`` or ``text`` in its ``.json``. The ``.json``
    may also have a ``split`` (train, val or test), a ``source`` and ``scores``, a table of numbers. The key of a clip
    is ``<shard without .tar>/<key in the shard>``.

    A sample's files need not stand side by side. Folders behind symbolic links hold shards too; hidden ones do not.
    Members that are damaged, cut off, sparse or links are named in the index, counted, and refused beyond
    ``data.max_corrupt``; samples without video or caption are counted and left out.

    Args:
        path: the folder.
        cache_dir: where the index is kept; None is the vidlab cache.
        val_fraction: share of recordings held out by name, between 0 and 1, where not every sample has its split.
        pattern: which files are shards, relative to ``path``; ``**`` is any depth.
        name: name of the data set in logs.
        max_megapixels: millions of pixels that a frame may have.

    Raises:
        UserError: ``path`` or ``val_fraction`` is not what it should be.
        DataError: no shard, or fewer than 2 usable clips.
    """

    path: str | None
    cache_dir: str | None = None
    val_fraction: float = 0.02
    pattern: str = "**/*.tar"
    name: str = "shards"
    max_megapixels: float = 64

    def prepare(self) -> Path:
        """The folder of the index; the shards are read on first use and whenever one changed."""
        folder = self._folder()
        shards, compressed = find_shards(folder, self.pattern)
        if not shards:
            named = f". {len(compressed)} are compressed, first {shown(compressed[0])}" if compressed else ""
            raise DataError(
                f"data.path={shown(folder)}: no shard found (looked for {self.pattern}){named}. Compressed shards "
                "(.tar.gz) cannot be read at an offset: unpack them with gunzip"
            )
        states = _states(shards)
        digest = blake2b(digest_size=8)
        for part in (VERSION, folder, self.val_fraction, self.max_megapixels, *states):
            digest.update(os.fsencode(f"{part}\n"))
        cache = cache_folder(self.cache_dir)
        # a name may have 255 bytes, and a folder of that length has one already
        target = cache / self.name / f"{shown(folder.name)[:100]}-{digest.hexdigest()}"

        def build(made: Path) -> None:
            for file in compressed[:1]:
                log.warning("data=%s: %d files like %s: %s", self.name, len(compressed), shown(file), UNPACK)
            self._build(made, folder, shards, states)

        return prepare_once(target, build)

    def _folder(self) -> Path:
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.source.val_fraction={self.val_fraction}: it must lie between 0 and 1")
        if not self.path:
            raise UserError("data.path is not set: give the folder of WebDataset shards (.tar), data.path=/my/shards")
        folder = Path(self.path).expanduser().resolve()
        if folder.is_file():
            place = shell_word(setting("data.path", folder.parent))
            raise UserError(f"data.path={self.path}: this is a file; give the folder that holds the shards: {place}")
        if not folder.is_dir():
            raise UserError(f"data.path={self.path}: no such folder ({folder}); give the folder that holds the shards")
        return folder

    def _build(self, made: Path, folder: Path, shards: list[Path], states: list[str]) -> None:
        rejected: dict[str, str] = {}
        remarks = Remarks()
        left_out = dict.fromkeys(ALWAYS, 0)
        work = partial(scan_shard, folder, limits=DecodeLimits(self.max_megapixels))
        with GatheredRows(made, self.val_fraction) as rows:
            at_once = 4 * (os.cpu_count() or 1)
            jobs = in_processes(work, shards, "Reading shards", at_once, 2, len(shards), partial(_fatal, folder))
            for _, found in jobs:
                for row in found.rows:
                    rows.add(row)
                rejected |= found.rejected
                for key, said in found.remarks:
                    remarks.add(key, said)
                for reason, count in found.left_out.items():
                    left_out[reason] = left_out.get(reason, 0) + count
            self._report(folder, rejected, left_out)
            for remark in sentences(remarks.metadata()):
                log.warning("data=%s: %s", self.name, remark)
            _refuse_changed(shards, states)
            if rows.count < 2:
                raise DataError(
                    f"data.path={shown(folder)}: {rows.count} usable clips in {len(shards)} shards, and 2 are needed "
                    f"(1 to train on, 1 held out). Without video: {left_out['without_video']}, without caption: "
                    f"{left_out['without_caption']}. The files of a sample have one name up to the first dot of it, "
                    "000.mp4 and 000.txt" + "".join(f"; {key}: {rejected[key]}" for key in _first(rejected))
                )
            log.info("data=%s: %d clips in %d shards, %d unusable", self.name, rows.count, len(shards), len(rejected))
            metadata = {"shards": len(shards), **left_out, "rejected": rejected, **remarks.metadata()}
            rows.write_index(metadata, root=folder)

    def _report(self, folder: Path, rejected: Mapping[str, str], left_out: Mapping[str, int]) -> None:
        for key in _first(rejected):
            log.warning("data=%s: %s left out: %s", self.name, key, rejected[key])
        for reason, count in left_out.items():
            if count:
                log.warning("data=%s: %d samples %s", self.name, count, LEFT_OUT[reason] % shown(folder))


def find_shards(folder: Path, pattern: str) -> tuple[list[Path], list[Path]]:
    """Files below a folder whose path from there fits ``pattern``, and compressed ones beside them.

    Small and capital letters are the same, since ``.TAR`` is a tar.
    """
    wanted = [part.lower() for part in pattern.split("/") if part != "."]
    shards, compressed = [], []
    for file in walk_files(folder):
        if _fits([part.lower() for part in file.relative_to(folder).parts], wanted):
            shards.append(file)
        elif file.name.lower().endswith(COMPRESSED):
            compressed.append(file)
    return sorted(shards), sorted(compressed)


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        return any(_fits(parts[skipped:], pattern[1:]) for skipped in range(len(parts)))
    return fnmatch.fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _fatal(folder: Path, shard: Path, reason: str) -> ShardContent:
    """What stands for a shard with a video that ends the process that probes it."""
    return ShardContent(rejected={shown(shard.relative_to(folder)): reason})


def _states(shards: Sequence[Path]) -> list[str]:
    """Name, size and change time of each."""
    states = []
    for shard in shards:
        try:
            state = shard.stat()
            states.append(f"{shard}\n{state.st_size}\n{state.st_mtime_ns}")
        except OSError as error:  # it is named as unusable when the shards are read
            states.append(f"{shard}\n{error.errno}")
    return states


def _refuse_changed(shards: Sequence[Path], states: Sequence[str]) -> None:
    for shard, before, now in zip(shards, states, _states(shards), strict=True):
        if before != now:
            raise DataError(f"{shown(shard)} changed while it was read: wait until it is complete, and run again")


def _first(rejected: Mapping[str, str]) -> list[str]:
    return list(islice(rejected, LISTED))
