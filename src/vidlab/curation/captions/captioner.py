"""The protocol of captioners, and what passes between them and the rest."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from vidlab.chat.journal import Answer, Usage
from vidlab.curation.captions.cleaning import cleaned
from vidlab.curation.engine.video_file import spread
from vidlab.data.storage.clip_row import ClipRow
from vidlab.data.storage.shards import open_member
from vidlab.data.video import DecodeLimits, read_frames


@dataclass(frozen=True)
class Caption:
    """One caption and where it comes from.

    Args:
        text: as it is trained on.
        source: who wrote it, such as a model and its host.
        written: as it was written, where cleaning changed it.
        cut: whether its writer stopped at the longest answer it was allowed.
    """

    text: str
    source: str
    written: str = ""
    cut: bool = False


@dataclass(frozen=True)
class SourceClip:
    """A clip of a data set, whose frames are read when they are asked for.

    Args:
        row: what the index says of it.
        root: the folder that holds its shard.
        limits: what decoding may take.
    """

    row: ClipRow
    root: Path
    limits: DecodeLimits

    def frames(self, count: int) -> UInt8[np.ndarray, "T H W 3"]:
        """``count`` frames spread evenly: the middle of each of as many parts; all where the clip has fewer.

        Raises:
            CorruptClipError: it cannot be read.
        """
        row = self.row
        count = min(count, row.frames)
        file = open_member(self.root, row.shard, row.offset, row.size, row.key, row.crc)
        wanted = [(row.first_frame or 0) + number for number in spread(row.frames, count)]
        return row.area(read_frames(file, wanted, row.key, self.limits))


@dataclass(frozen=True)
class Described:
    """The captions of a clip; none, and a reason, where it could not be described."""

    clip: SourceClip
    captions: Sequence[Caption]
    reason: str = ""

    @classmethod
    def by_model(cls, clip: SourceClip, answer: Answer, source: str, clean: bool) -> "Described":
        """What a model answered, as a caption on one line.

        Args:
            clip: that was shown.
            answer: its words.
            source: who wrote it.
            clean: take "This video shows ..." away.
        """
        text = cleaned(answer.text) if clean else " ".join(answer.text.split())
        written = answer.text if text != answer.text.strip() else ""
        captions = [Caption(text, source, written, not answer.finished)] if text else []
        return cls(clip, captions, "" if captions else "an empty answer")


@runtime_checkable
class Captioner(Protocol):
    """Writes captions of clips."""

    @property
    def source(self) -> str:
        """Who writes them, for records: no key, no password."""
        ...

    def describe(self, clips: Iterable[SourceClip], folder: Path) -> Iterator[Described]:
        """Captions of each clip; those of clips that cannot be read may come last.

        Args:
            clips: read one by one.
            folder: where answers that cost something are kept, so that a second call pays for none of them again.

        Raises:
            UserError: no clip can be described, as where the server is not there.
        """
        ...

    def spent(self) -> Mapping[str, Usage]:
        """What the last call took, by model; empty where nothing is counted."""
        ...


def as_png(frame: UInt8[np.ndarray, "H W 3"], longest: int) -> bytes:
    """A PNG file of a frame, reduced so that its longer side has at most ``longest`` pixels."""
    from PIL import Image

    picture = Image.fromarray(frame)
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
