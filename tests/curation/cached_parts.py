"""Small parts for encoding, found by Hydra in this process and in workers."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from vidlab.autoencoders.base import Posterior
from vidlab.autoencoders.haar import Haar
from vidlab.data.datasets.base import prepare_once
from vidlab.data.storage.index import ClipIndex
from vidlab.data.storage.shards import ShardWriter
from vidlab.data.video import VideoInfo, encode
from vidlab.errors import DataError

SIZES = ((16, 28), (28, 16), (20, 20))
LENGTH = 9


def frames_of(number: int) -> np.ndarray:
    """A blurred pattern that moves, different in every clip, frame and column."""
    height, width = SIZES[number % len(SIZES)]
    small = np.random.default_rng(number).uniform(-1, 1, (3, 4))
    t, y, x = np.meshgrid(*(np.linspace(0, 1, size) for size in (LENGTH, height, width)), indexing="ij")
    waves = [np.sin(6 * (a * t + b * y + c * x + d)) for a, b, c, d in small]
    return np.round(127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


@dataclass(frozen=True)
class Patterns:
    """Clips of three sizes with two captions each, every fourth held out; ``broken`` ones cannot be decoded."""

    folder: str
    clips: int = 12
    broken: tuple[int, ...] = ()
    name: str = "patterns"

    def prepare(self) -> Path:
        return prepare_once(Path(self.folder) / f"{self.clips}-{len(self.broken)}", self.write)

    def write(self, folder: Path) -> None:
        with ShardWriter(folder, clips_per_shard=5) as writer:
            for number in range(self.clips):
                video = encode(frames_of(number), 8, lossless=True)
                video = bytes(len(video)) if number in self.broken else video
                info = VideoInfo(LENGTH, *SIZES[number % len(SIZES)], 8.0, LENGTH / 8)
                captions = [f"red clip moves {number}", f"the blue one and {number}"]
                writer.add(f"clip_{number:02d}", video, info, captions, "train" if number % 4 else "val")


class Noisy(Haar):
    """A Haar transform that says how uncertain it is: more where the mean is large."""

    def posterior(self, pixels: torch.Tensor) -> Posterior:
        mean = self.encode(pixels)
        return Posterior(mean, mean.abs() - 2)


class Slow(Haar):
    """Takes its time, so that it can be stopped in the middle."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return super().encode(pixels)


class Broken(Haar):
    """Gives nothing finite."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().encode(pixels) / 0.0


class PartlyBroken(Haar):
    """Gives nothing finite for dark clips, whose mean is below -0.26."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        dark = pixels.mean(dim=(1, 2, 3, 4)) < -0.26
        return super().encode(pixels).masked_fill(dark[:, None, None, None, None], float("nan"))


class Refusing(Haar):
    """Cannot be used."""

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        raise DataError("this encoder is out of order")


def index_of(folder: Path, **settings) -> ClipIndex:
    return ClipIndex.open(Patterns(str(folder), **settings).prepare())
