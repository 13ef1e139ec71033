"""Videos that are scored, and real clips they are measured against, read batch by batch."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.clip import Factors
from vidlab.data.dataset import scale_to_cover
from vidlab.data.folder import VIDEO_SUFFIXES
from vidlab.data.index import INDEX_NAME, ClipIndex, factors_from_json, factors_to_json
from vidlab.data.shards import read_member
from vidlab.data.video import probe, read_frames, to_pixels
from vidlab.errors import DataError, UserError
from vidlab.files import write_json

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
    """Every video below a folder, captioned by the text file beside it, in the order of their names.

    Videos that an evaluation wrote bring their keys and factors along.

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
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    if not paths:
        raise DataError(f"{key}={folder}: no video found (looked for {' '.join(VIDEO_SUFFIXES)}).")
    return [ScoredClip(str(path.relative_to(folder)), _caption(path), path) for path in paths]


def _caption(path: Path) -> str:
    beside = path.with_suffix(".txt")
    return " ".join(beside.read_text().split()) if beside.is_file() else ""


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
        rows = json.loads((folder / RECORD).read_text())
        clips = [
            ScoredClip(row["key"], row["caption"], folder / Path(row["file"]).name, factors_from_json(row["factors"]))
            for row in rows
        ]
    except (ValueError, KeyError, TypeError) as error:
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
    """Where the bytes of a real clip lie, and at what distance its frames are taken."""

    key: str
    root: Path
    shard: str
    offset: int
    size: int
    frames: int
    stride: int = 1
    crc: int | None = None

    def cut(self, frames: int, height: int, width: int) -> Float[Tensor, "3 T H W"]:
        """The middle stretch and the middle crop, scaled as in training, in [-1, 1]."""
        span = (frames - 1) * self.stride + 1
        first = (self.frames - span) // 2
        data = read_member(self.root, self.shard, self.offset, self.size, crc=self.crc)
        scaled = scale_to_cover(read_frames(data, range(first, first + span, self.stride), self.key), height, width)
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
        lengths.append(clip.frames)
        fitting += [clip] if clip.frames >= frames else []
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
        row = index.row(position)
        yield RealClip(row.key, index.root, row.shard, row.offset, row.size, row.frames, crc=row.crc)


def _loose(folder: Path) -> Iterator[RealClip]:
    for clip in clips_of_folder(folder, "reference"):
        size = clip.path.stat().st_size
        yield RealClip(clip.key, clip.path.parent, clip.path.name, 0, size, probe(clip.path).frames)


def real_batches(
    clips: Sequence[RealClip], shape: tuple[int, int, int], size: int
) -> Iterator[tuple[tuple[str, ...], Float[Tensor, "B 3 T H W"]]]:
    """Keys and pixels of reference clips, cut to (frames, height, width), ``size`` at once."""
    for start in range(0, len(clips), size):
        part = clips[start : start + size]
        yield tuple(clip.key for clip in part), torch.stack([clip.cut(*shape) for clip in part])
