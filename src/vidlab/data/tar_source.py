"""Tar shards made by others, used where they are: ``data=shards``."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from vidlab.assets import cache_folder
from vidlab.data.clip_row import ClipRow
from vidlab.data.pool import in_processes
from vidlab.data.shards import SPLITS, read_member
from vidlab.data.source import prepare_once
from vidlab.data.splits import GatheredRows
from vidlab.data.tar_shards import Damage, Member, Sample, samples
from vidlab.data.video import probe
from vidlab.errors import CorruptClipError, DataError, UserError

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = ("mp4", "webm", "mkv", "avi", "mov")
LISTED = 5
# A caption or record longer than this is none.
MAX_TEXT_BYTES = 1 << 20

# Raise when the index of unchanged shards would come out different.
VERSION = 1


@dataclass(frozen=True)
class TarShards:
    """Every captioned video in the WebDataset shards (.tar) under a folder, as a ``ClipSource``.

    Nothing is copied: the tar headers are walked, each video is probed once, in one process per processor, and an index
    of offsets is written to the cache, under a hash of the shards' names, sizes and change times.

    A sample has a video (``.mp4 .webm .mkv .avi .mov``; also ``.video.mp4``) and a caption: ``captions`` in its
    ``.json``, else the non-empty lines of its ``.txt``, else ``caption`` or ``text`` in its ``.json``. The ``.json``
    may also have a ``split`` (train, val or test), a ``source`` and ``scores``, a table of numbers. The key of a clip
    is ``<shard without .tar>/<key in the shard>``.

    Members that are damaged or cut off are named in the index, counted, and refused beyond ``data.max_corrupt``;
    samples without video or caption are counted and left out.

    Args:
        path: the folder.
        cache_dir: where the index is kept; None is the vidlab cache.
        val_fraction: share of recordings held out by name, between 0 and 1, where not every sample has its split.
        pattern: which files are shards, relative to ``path``; ``**`` is any depth.
        name: name of the data set in logs.

    Raises:
        UserError: ``path`` or ``val_fraction`` is not what it should be.
        DataError: no shard, or fewer than 2 usable clips.
    """

    path: str | None
    cache_dir: str | None = None
    val_fraction: float = 0.02
    pattern: str = "**/*.tar"
    name: str = "shards"

    def prepare(self) -> Path:
        """The folder of the index; the shards are read on first use and whenever one changed."""
        folder = self._folder()
        shards = sorted(path for path in folder.glob(self.pattern) if path.is_file())
        if not shards:
            raise DataError(
                f"data.path={folder}: no shard found (looked for {self.pattern}). Compressed shards (.tar.gz) cannot "
                "be read at an offset: unpack them with gunzip"
            )
        digest = blake2b(digest_size=8)
        for part in (VERSION, folder, self.val_fraction):
            digest.update(f"{part}\n".encode())
        for shard in shards:
            state = shard.stat()
            digest.update(f"{shard}\n{state.st_size}\n{state.st_mtime_ns}\n".encode())
        cache = Path(self.cache_dir).expanduser() if self.cache_dir else cache_folder()
        target = cache / self.name / f"{folder.name}-{digest.hexdigest()}"
        return prepare_once(target, lambda made: self._build(made, folder, shards))

    def _folder(self) -> Path:
        if not 0 < self.val_fraction < 1:
            raise UserError(f"data.source.val_fraction={self.val_fraction}: it must lie between 0 and 1")
        if not self.path:
            raise UserError("data.path is not set: give the folder of WebDataset shards (.tar), data.path=/my/shards")
        folder = Path(self.path).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(f"data.path={self.path}: no such folder ({folder}); give the folder that holds the shards")
        return folder

    def _build(self, made: Path, folder: Path, shards: list[Path]) -> None:
        rejected: dict[str, str] = {}
        left_out = {"without_video": 0, "without_caption": 0}
        work = partial(scan_shard, folder)
        with GatheredRows(made, self.val_fraction) as rows:
            at_once = 4 * (os.cpu_count() or 1)
            for _, found in in_processes(work, shards, "Reading shards", at_once, few=2, total=len(shards)):
                for row in found.rows:
                    rows.add(row)
                rejected |= found.rejected
                left_out = {reason: count + getattr(found, reason) for reason, count in left_out.items()}
            self._report(folder, rejected, left_out)
            if rows.count < 2:
                raise DataError(
                    f"data.path={folder}: {rows.count} usable clips in {len(shards)} shards, and 2 are needed (1 to "
                    f"train on, 1 held out). Without video: {left_out['without_video']}, without caption: "
                    f"{left_out['without_caption']}" + "".join(f"; {key}: {rejected[key]}" for key in _first(rejected))
                )
            log.info("data=%s: %d clips in %d shards, %d unusable", self.name, rows.count, len(shards), len(rejected))
            rows.write_index({"shards": len(shards), **left_out, "rejected": rejected}, root=folder)

    def _report(self, folder: Path, rejected: Mapping[str, str], left_out: Mapping[str, int]) -> None:
        for key in _first(rejected):
            log.warning("data=%s: %s left out: %s", self.name, key, rejected[key])
        for reason, count in left_out.items():
            if count:
                log.warning(
                    "data=%s: %d samples %s in %s: left out", self.name, count, reason.replace("_", " "), folder
                )


def _first(rejected: Mapping[str, str]) -> list[str]:
    return list(islice(rejected, LISTED))


@dataclass(frozen=True)
class ShardContent:
    """What one shard holds.

    Args:
        rows: usable clips, in order; ``split`` is empty where the sample names none.
        rejected: damaged samples and places of the shard, and why.
        without_video: samples without a video.
        without_caption: samples with a video and no caption.
    """

    rows: tuple[ClipRow, ...]
    rejected: Mapping[str, str]
    without_video: int
    without_caption: int


def scan_shard(root: Path, shard: Path) -> ShardContent:
    """Walk the headers of ``shard`` and probe its videos. Names are relative to ``root``."""
    name = shard.relative_to(root).as_posix()
    rows: dict[str, ClipRow] = {}
    rejected: dict[str, str] = {}
    left_out = {"without_video": 0, "without_caption": 0}
    for sample in samples(shard):
        if isinstance(sample, Damage):
            rejected[f"{name}, byte {sample.offset}"] = sample.reason
            continue
        key = f"{name.removesuffix('.tar')}/{sample.key}"
        video = video_of(sample)
        if video is None:
            left_out["without_video"] += 1
        elif key in rows:
            rejected[f"{name}, byte {video.offset}"] = f"a second sample has the key {sample.key!r}"
        else:
            try:
                row = _row(root, name, key, sample, video)
            except CorruptClipError as error:
                rejected[key] = str(error).removeprefix(f"{key}: ")
                continue
            if row is None:
                left_out["without_caption"] += 1
            else:
                rows[key] = row
    return ShardContent(tuple(rows.values()), rejected, **left_out)


def video_of(sample: Sample) -> Member | None:
    """The first video of a sample."""
    return next((m for suffix, m in sample.members.items() if suffix.rpartition(".")[2] in VIDEO_SUFFIXES), None)


def _row(root: Path, shard: str, key: str, sample: Sample, video: Member) -> ClipRow | None:
    """The row of a sample; None without a caption."""
    if not video.whole:
        raise CorruptClipError("cut off: the shard ends before the video does")
    record = _record(root, shard, sample)
    captions = tuple(dict.fromkeys(_captions(root, shard, sample, record)))
    if not captions:
        return None
    info = probe(read_member(root, shard, video.offset, video.size), key)
    split, source, scores = record.get("split"), record.get("source"), record.get("scores")
    return ClipRow(
        key=key,
        shard=shard,
        offset=video.offset,
        size=video.size,
        captions=captions,
        split=split if split in SPLITS else "",
        source=source if isinstance(source, str) and source else key,
        factors=None,
        scores={str(k): float(v) for k, v in scores.items() if _is_number(v)} if isinstance(scores, dict) else {},
        **asdict(info),
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _record(root: Path, shard: str, sample: Sample) -> dict[str, Any]:
    text = _text(root, shard, sample, "json")
    try:
        record = json.loads(text) if text else {}
    except ValueError as error:
        raise CorruptClipError(f"its .json is not JSON ({error})") from None
    return record if isinstance(record, dict) else {}


def _captions(root: Path, shard: str, sample: Sample, record: Mapping[str, Any]) -> Iterator[str]:
    """Captions without superfluous white space, from where they are first found."""
    listed = record.get("captions")
    texts: list[Any] = listed if isinstance(listed, list) else _text(root, shard, sample, "txt").splitlines()
    if not any(str(text).strip() for text in texts):
        single = record.get("caption") or record.get("text") or ()
        texts = single if isinstance(single, list) else [single] if isinstance(single, str) else []
    for text in texts:
        if isinstance(text, str) and text.strip():
            yield " ".join(text.split())


def _text(root: Path, shard: str, sample: Sample, suffix: str) -> str:
    member = sample.members.get(suffix)
    if member is None:
        return ""
    if not member.whole or member.size > MAX_TEXT_BYTES:
        raise CorruptClipError(f"its .{suffix} is " + ("too large" if member.whole else "cut off"))
    try:
        return read_member(root, shard, member.offset, member.size).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CorruptClipError(f"its .{suffix} is not UTF-8 text") from None
