"""The source videos of a data set, whether they have captions or not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from vidlab.curation.engine.records import Crop, SourceVideo
from vidlab.data.datasets.base import ClipSource
from vidlab.data.names import shown
from vidlab.data.storage.clip_row import ClipRow
from vidlab.data.storage.index import ClipIndex
from vidlab.errors import DataError


@runtime_checkable
class RawVideos(Protocol):
    """A data set whose videos need no captions."""

    def raw_videos(self) -> tuple[Path, dict[Path, tuple[str, ...]]]:
        """The folder, and every video below it with its captions."""
        ...


def source_videos(source: ClipSource) -> Iterator[SourceVideo]:
    """The videos that a curation begins with: the files of a folder, or the clips of any other data set.

    Raises:
        DataError: there are none.
    """
    if isinstance(source, RawVideos):
        folder, videos = source.raw_videos()
        for video, captions in videos.items():
            name = shown(video.relative_to(folder).as_posix())  # bytes that are no text cannot be stored
            yield SourceVideo(name, str(video), captions=captions, state=_state(video))
        return
    index = ClipIndex.open(source.prepare())
    if not len(index):
        raise DataError(f"data={source.name} has no clip")
    for position in range(len(index)):
        yield _of_row(index.row(position), index.root)


def _of_row(row: ClipRow, root: Path) -> SourceVideo:
    window = None if row.first_frame is None else (row.first_frame, row.first_frame + row.frames)
    crop = None if row.crop is None else Crop(*row.crop, row.height, row.width)
    file = root / row.shard
    is_file = row.offset == 0 and not row.shard.lower().endswith(".tar")
    offset, size = (None, 0) if is_file else (row.offset, row.size)
    state = f"{_state(file)} {row.offset} {row.crc}"
    return SourceVideo(row.key, str(file), offset, size, window, crop, row.captions, row.split, state)


def _state(file: Path) -> str:
    try:
        found = file.stat()
    except OSError:  # it is rejected by name when it is opened
        return "absent"
    return f"{found.st_size} {found.st_mtime_ns}"
