"""Clips of several shapes and two sources, single frames among them; the same bytes everywhere, as nothing is lost."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidlab.data.datasets.base import prepare_once
from vidlab.data.storage.shards import ShardWriter
from vidlab.data.video import VideoInfo, encode

SIZES = ((16, 28), (28, 16), (20, 20))
LENGTHS = (9, 9, 1, 5)


def frames_of(number: int) -> np.ndarray:
    """A wave of its own for every clip, in whole numbers throughout: uint8 (T, H, W, 3)."""
    height, width = SIZES[number % len(SIZES)]
    t, y, x = np.meshgrid(*map(np.arange, (LENGTHS[number % len(LENGTHS)], height, width)), indexing="ij")
    phase = (3 * t + (number % 5 + 1) * y + (number % 7 + 1) * x + 11 * number) % 64
    ramp = np.abs(phase - 32) * 7
    return np.stack([ramp, 255 - ramp, (ramp + 16 * number) % 256], axis=-1).astype(np.uint8)


@dataclass(frozen=True)
class Mixed:
    """48 clips, every eighth held out."""

    folder: str
    name: str = "mixed"

    def prepare(self) -> Path:
        """The folder of the index."""
        return prepare_once(Path(self.folder) / "mixed", self.write)

    def write(self, folder: Path) -> None:
        """Make the shards and the index."""
        with ShardWriter(folder, clips_per_shard=20) as writer:
            for number in range(48):
                frames = frames_of(number)
                length, height, width = frames.shape[:3]
                source = "web" if number % 3 else "film"
                info = VideoInfo(length, height, width, 8.0, length / 8)
                captions = [f"the red clip {number}", f"a blue wave {number}"]
                split = "train" if number % 8 else "val"
                writer.add(f"clip_{number:02d}", encode(frames, 8, lossless=True), info, captions, split, source)
