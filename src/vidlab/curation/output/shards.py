"""Writes the clips that a curation keeps as WebDataset shards, one per partition, ready for ``data=shards``."""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha1
from itertools import chain, groupby
from pathlib import Path

import numpy as np

from vidlab.curation.cache_writer import whole_file
from vidlab.curation.engine.records import Clip
from vidlab.curation.engine.store import StageKey
from vidlab.curation.engine.video_file import VideoFile, reduced_size
from vidlab.curation.engine.work import Videos
from vidlab.data.names import shown
from vidlab.data.video import encode_frames
from vidlab.errors import CorruptClipError, UserError

log = logging.getLogger(__name__)

FOLDER = "shards"
KEY_LENGTH = 20
WHOLE = 1 << 30
_FORMAT = 1  # counted up when equal clips give other shards


@dataclass(frozen=True)
class ShardExport:
    """One tar file per partition: ``key.mp4`` (H.264), ``key.txt`` and ``key.json`` of each clip, in order.

    The key is the beginning of the clip's id, so a clip keeps its key whatever else is kept. Equal clips give equal
    bytes.

    Args:
        short_side: pixels that larger clips are reduced to; None keeps their size.
        caption: what a clip without a caption is captioned with; None leaves such clips out.

    Raises:
        UserError: a setting is out of range.
    """

    short_side: int | None = None
    caption: str | None = None

    def __post_init__(self) -> None:
        if self.short_side is not None and self.short_side < 16:
            raise UserError(f"export.short_side={self.short_side}: it must be at least 16 pixels, or null.")
        if self.caption is not None and not self.caption.strip():
            raise UserError("export.caption is empty: give a text, or null to leave clips without a caption out.")

    def path(self, root: Path, key: StageKey, partition: str) -> Path:
        """The shard of a partition behind a stage."""
        what = json.dumps([_FORMAT, asdict(self), key.chain])
        return root / FOLDER / f"{partition}-{sha1(what.encode()).hexdigest()[:8]}.tar"

    def done(self, root: Path, key: StageKey) -> set[str]:
        """Names of the partitions that are written."""
        ending = self.path(root, key, "").name
        return {path.name.removesuffix(ending) for path in (root / FOLDER).glob(f"[!.]*{ending}")}

    def write(self, root: Path, key: StageKey, partition: str, clips: Sequence[Clip], videos: Videos) -> None:
        """Write the shard of a partition, whole or not at all."""
        from webdataset.writer import TarWriter

        path = self.path(root, key, partition)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary, temporary.open("wb") as stream:
            # a fixed time and owner make equal clips give equal bytes
            tar = TarWriter(stream, user="vidlab", group="vidlab", encoder=False, mtime=0)
            for source, own in groupby(clips, lambda clip: clip.source):
                captioned = [clip for clip in own if clip.captions or self.caption]
                for clip, video in self._encoded(videos[source], captioned):
                    tar.write(self._sample(clip, video, videos[source]))
            tar.close()

    def _encoded(self, video: VideoFile, clips: Sequence[Clip]) -> Iterator[tuple[Clip, bytes]]:
        """Clips of one video and their encoded bytes, in one pass over it."""
        chunks = video.small_frames(clips, self.short_side or WHOLE)
        try:
            for _, parts in groupby(chunks, lambda part: part[0].id):
                clip, _, first = next(parts)
                frames = chain(first, (frame for _, _, chunk in parts for frame in chunk))  # noqa: B031
                height, width = (
                    side + side % 2
                    for side in reduced_size(clip.area.height, clip.area.width, self.short_side or WHOLE)
                )
                yield clip, encode_frames(map(_even, frames), height, width, clip.fps)
        except CorruptClipError as error:
            log.warning("left out of the shards: %s", shown(error))

    def _sample(self, clip: Clip, video: bytes, source: VideoFile) -> dict[str, str | bytes]:
        captions = clip.captions or (self.caption or "",)
        record = {
            "captions": captions,
            "source": clip.source,
            "scores": dict(clip.scores),
            "clip": {"id": clip.id, "start": clip.start, "end": clip.end, "crop": clip.crop},
        }
        record |= {"split": source.source.split} if source.source.split else {}
        text = json.dumps(record, sort_keys=True)
        return {"__key__": clip.id[:KEY_LENGTH], "mp4": video, "txt": captions[0].encode(), "json": text.encode()}

    def remove_others(self, root: Path, key: StageKey, partitions: Sequence[str]) -> None:
        """Remove shards of other settings: a folder of shards is one data set."""
        wanted = {self.path(root, key, partition).name for partition in partitions}
        for path in (root / FOLDER).glob("*.tar"):
            if path.name not in wanted:
                path.unlink()


def _even(frame: np.ndarray) -> np.ndarray:
    """H.264 in yuv420p wants even sides: an odd last row or column is repeated."""
    return np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), "edge")
