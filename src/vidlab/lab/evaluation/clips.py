"""Videos that are scored, and real clips they are measured against, read batch by batch."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.data.clip_transform import scale_to_cover
from vidlab.data.datasets.annotation import Annotation, read_entry
from vidlab.data.datasets.folder import VIDEO_SUFFIXES, find_videos, tables_of
from vidlab.data.datasets.folder_captions import caption_columns, gather_captions
from vidlab.data.names import RENAME, is_utf8, reason_of, shown
from vidlab.data.remarks import Remarks, sentences
from vidlab.data.storage.clip_row import ClipRow, factors_from_json, factors_to_json
from vidlab.data.storage.index import INDEX_NAME, ClipIndex
from vidlab.data.storage.shards import open_member, read_member
from vidlab.data.tables.files import open_table
from vidlab.data.video import read_frames, to_pixels
from vidlab.errors import DataError, UserError
from vidlab.factors import Factors
from vidlab.files import write_json

log = logging.getLogger(__name__)

LISTED = 3
RECORD = "clips.json"


@dataclass(frozen=True)
class ScoredClip:
    """A video to score.

    Args:
        key: names the clip; clips of two runs with one key are compared with each other.
        caption: what it should show.
        path: the lossless original.
        factors: what a rendered clip with this caption shows; None where nobody knows.
    """

    key: str
    caption: str
    path: Path
    factors: Factors | None = None

    def frames(self) -> np.ndarray:
        """uint8 (T, H, W, 3).

        Raises:
            CorruptClipError: the file cannot be read.
        """
        return read_frames(self.path, None, self.path.name)


def clips_of_folder(folder: Path, key: str) -> list[ScoredClip]:
    """Every video below a folder that ``data=folder`` would find, in the order of their names.

    Captions come from where ``data=folder`` takes them: the only table at the top that has files and captions, of
    which the first of a video counts, or the text files beside the videos, whose lines are one caption here. Videos
    whose text or name cannot be read are left out, counted and named. Videos that an evaluation wrote bring their keys
    and factors along.

    Args:
        folder: where to look.
        key: the configuration key that named it, for messages.

    Raises:
        UserError: there is no such folder.
        DataError: it holds no video.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: there is no such folder.")
    if (folder / RECORD).is_file():
        return read_record(folder)
    videos = find_videos(folder)
    if not videos:
        raise DataError(f"{key}={folder}: no video found (looked for {' '.join(VIDEO_SUFFIXES)}).")
    table = _table(folder)
    found = gather_captions(folder, videos, table)
    left_out = dict(found.rejected)
    clips = []
    for path in videos:
        name = path.relative_to(folder).as_posix()
        if not is_utf8(name):
            left_out[shown(name)] = f"its name is not UTF-8; {RENAME}"
        elif path not in found.unread:
            captions = found.captions.get(path, ())
            clips.append(ScoredClip(name, " ".join(captions[:1] if table else captions), path))
    report_left_out(f"{key}={folder}", left_out, len(videos))
    if not clips:
        raise DataError(f"{key}={folder}: none of {len(videos)} videos can be used: {_first(left_out)}.")
    return clips


def _table(folder: Path) -> Path | None:
    """The only table at the top of a folder that names files and captions."""
    fitting = [table for table in tables_of(folder) if not isinstance(caption_columns(open_table(table).columns), str)]
    if len(fitting) > 1:
        log.warning("%s holds several tables of captions: none is read", folder)
    return fitting[0] if len(fitting) == 1 else None


def readable(clips: Sequence[ScoredClip], where: str) -> list[ScoredClip]:
    """The clips whose every frame can be decoded; the others are counted and named.

    Args:
        clips: at least one.
        where: the key and the folder that named them, for messages.

    Raises:
        DataError: none can.
    """
    left_out: dict[str, str] = {}
    fine = []
    for clip in clips:
        try:
            clip.frames()
        except Exception as error:  # whatever a file makes a decoder raise
            left_out[clip.key] = reason_of(error, clip.path.name)
        else:
            fine.append(clip)
    report_left_out(where, left_out, len(clips))
    if not fine:
        raise DataError(f"{where}: none of {len(clips)} videos can be read: {_first(left_out)}.")
    return fine


def report_left_out(where: str, reasons: Mapping[str, str], total: int) -> None:
    """Say how many videos are left out, and why the first are."""
    if reasons:
        log.warning("%s: %d of %d videos cannot be used: %s", where, len(reasons), total, _first(reasons))


def _first(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in islice(reasons.items(), LISTED))


def write_record(folder: Path, clips: Sequence[ScoredClip]) -> None:
    """Write keys, captions and factors of the videos of a folder, in one step."""
    rows = [
        {"key": clip.key, "caption": clip.caption, "file": clip.path.name, "factors": factors_to_json(clip.factors)}
        for clip in clips
    ]
    write_json(folder / RECORD, rows, indent=1)


def read_record(folder: Path) -> list[ScoredClip]:
    """What ``write_record`` wrote.

    Raises:
        DataError: the record is damaged, or a video it names is missing.
    """
    try:
        rows = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        clips = [
            ScoredClip(row["key"], row["caption"], folder / Path(row["file"]).name, factors_from_json(row["factors"]))
            for row in rows
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{folder / RECORD} is damaged ({type(error).__name__}: {error}); delete it.") from error
    missing = [clip.path.name for clip in clips if not clip.path.is_file()]
    if missing:
        raise DataError(f"{folder}: {len(missing)} of {len(clips)} videos are missing, the first is {missing[0]}.")
    return clips


def pixels_of(clips: Sequence[ScoredClip]) -> Float[Tensor, "B 3 T H W"]:
    """Videos of one size, in [-1, 1].

    Raises:
        DataError: their sizes differ.
    """
    videos = [clip.frames() for clip in clips]
    for clip, video in zip(clips, videos, strict=True):
        if video.shape != videos[0].shape:
            raise DataError(
                f"{clip.path} has {_size(video)}, {clips[0].path.name} {_size(videos[0])}: videos that are scored "
                "together need one size. Put them into folders of their own."
            )
    return torch.stack([to_pixels(video) for video in videos])


def _size(video: np.ndarray) -> str:
    frames, height, width = video.shape[:3]
    return f"{frames} frames of {height} x {width}"


@dataclass(frozen=True)
class RealClip:
    """Where a real clip lies, and at what distance its frames are taken."""

    root: Path
    row: ClipRow
    stride: int = 1

    @property
    def key(self) -> str:
        """Names the clip."""
        return self.row.key

    def cut(self, frames: int, height: int, width: int) -> Float[Tensor, "3 T H W"]:
        """The middle temporal segment and the middle crop, scaled as in training, in [-1, 1].

        Raises:
            CorruptClipError: it cannot be read.
        """
        row, span = self.row, (frames - 1) * self.stride + 1
        first = (row.frames - span) // 2
        place = (self.root, row.shard, row.offset, row.size, row.key)
        file = read_member(*place, crc=row.crc) if row.first_frame is None else open_member(*place)
        read = read_frames(file, row.frames_in_file(range(first, first + span, self.stride)), row.key)
        scaled = scale_to_cover(row.area(read), height, width)
        top, left = (scaled.shape[1] - height) // 2, (scaled.shape[2] - width) // 2
        return to_pixels(np.ascontiguousarray(scaled[:, top : top + height, left : left + width]))


def real_clips(folder: Path, frames: int, limit: int | None) -> list[RealClip]:
    """Reference clips of a folder of videos, or of a data set with an index, that are long enough.

    Raises:
        UserError: there is no such folder.
        DataError: no clip has as many frames.
    """
    found = _indexed(folder, frames) if (folder / INDEX_NAME).is_file() else _loose(folder)
    lengths: list[int] = []
    fitting = []
    # a data set may have millions of clips, and a video is opened to count its frames: none more than are wanted
    for clip in found:
        lengths.append(clip.row.frames)
        fitting += [clip] if clip.row.frames >= frames else []
        if len(fitting) == limit:
            break
    if not fitting:
        longest = max(lengths, default=0)
        raise DataError(
            f"reference={folder}: none of {len(lengths)} clips has {frames} frames; the longest has {longest}."
        )
    return fitting


def _indexed(folder: Path, frames: int) -> Iterator[RealClip]:
    """The held-out clips, or all where none is held out; only those long enough, where there are some."""
    index = ClipIndex.open(folder)
    held_out = index.select("val")
    index = held_out if len(held_out) else index
    long_enough = index.select(min_frames=frames)
    index = long_enough if len(long_enough) else index
    for position in range(len(index)):
        yield RealClip(index.root, index.row(position))


def _loose(folder: Path) -> Iterator[RealClip]:
    left_out: dict[str, str] = {}
    remarks = Remarks()
    clips = clips_of_folder(folder, "reference")
    try:
        for clip in clips:
            name = clip.path.relative_to(folder).as_posix()
            try:
                found = read_entry(folder, Annotation(name, (clip.caption,)))
            except Exception as error:  # whatever a file makes a decoder raise
                left_out[clip.key] = reason_of(error, name)
            else:
                remarks.add(clip.key, found.remarks)
                yield RealClip(folder, replace(found.row, key=clip.key))
    finally:
        for remark in sentences(remarks.metadata()):
            log.warning("reference=%s: %s", folder, remark)
        report_left_out(f"reference={folder}", left_out, len(clips))


def real_batches(
    clips: Sequence[RealClip], shape: tuple[int, int, int], size: int
) -> Iterator[tuple[tuple[str, ...], Float[Tensor, "B 3 T H W"]]]:
    """Keys and pixels of reference clips, cut to (frames, height, width), ``size`` at once.

    Clips that cannot be read are left out, counted and named.

    Raises:
        DataError: none can be read.
    """
    left_out: dict[str, str] = {}
    for start in range(0, len(clips), size):
        read = {}
        for clip in clips[start : start + size]:
            try:
                read[clip.key] = clip.cut(*shape)
            except Exception as error:  # whatever a file makes a decoder raise
                left_out[clip.key] = reason_of(error, clip.key)
        if read:
            yield tuple(read), torch.stack(list(read.values()))
    report_left_out("reference", left_out, len(clips))
    if clips and len(left_out) == len(clips):
        raise DataError(f"reference: none of {len(clips)} clips can be read: {_first(left_out)}.")
