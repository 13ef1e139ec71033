"""DOVER's technical score of clips, by a local copy of its weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from typing_extensions import override

from vidlab.curation.engine.records import Clip, Measurement
from vidlab.curation.engine.stage import Measure, check_given
from vidlab.curation.engine.video_file import VideoFile
from vidlab.errors import UserError
from vidlab.perceptual.dover import FRAMES, fragments, load_dover
from vidlab.perceptual.weights import weights_digest

SCORE = "dover"


@dataclass(frozen=True)
class DoverQuality(Measure):
    """DOVER's technical score (Wu et al. 2023, arXiv:2211.04894), as ``dover``: higher is better.

    The mean over views of 32 frames, each from the middle of its part of the clip, of what the technical branch puts
    out. The authors scale it afterwards, by a mean of 0.11 and a deviation of 0.07. Open-Sora Plan (section 4.2, step
    5) keeps what is above 0 and does not say of which; here it is the score before that.

    Args:
        weights_path: the published file, ``DOVER.pth``, or its tensors as .safetensors.
        views: stretches of a clip that are scored; the authors take three.
        every: 2 takes every second frame of a stretch, as the authors do.

    Raises:
        UserError: a setting is out of range.
    """

    weights_path: str | None = None
    views: int = 3
    every: int = 2

    not_in_version = ("weights_path",)

    def __post_init__(self) -> None:
        if self.views < 1 or self.every < 1:
            raise UserError(f"views={self.views}, every={self.every}: each must be 1 or more.")

    @property
    @override
    def provides(self) -> tuple[str, ...]:
        return (SCORE,)

    @override
    def check(self, key: str) -> None:
        path = None if self.weights_path is None else Path(self.weights_path).expanduser()
        check_given(f"{key}.weights_path", path, "DOVER.pth, the published weights")

    @override
    def weights(self) -> Sequence[str]:
        there = self.weights_path is not None and Path(self.weights_path).expanduser().is_file()
        return [weights_digest(str(self.weights_path)) if there else ""]

    @override
    def measure(self, video: VideoFile, clips: Sequence[Clip]) -> Sequence[Measurement]:
        return [Measurement({SCORE: float(np.mean(list(self._scores(video, clip))))}) for clip in clips]

    def _scores(self, video: VideoFile, clip: Clip) -> Iterator[float]:
        model = load_dover(str(self.weights_path))
        for wanted in views(clip.frames, self.views, self.every):
            yield model(fragments(torch.from_numpy(video.frames(clip, wanted))))


def views(length: int, count: int, every: int) -> Iterator[list[int]]:
    """The frames of each view: 32, every so many, in the middle of one of ``count`` equal parts of the clip.

    Where a part is too short they begin at its beginning and reach beyond it, around the clip's end to its beginning.
    """
    part = length // count
    for at in range(count):
        first = part * at + max(0, part - FRAMES * every) // 2
        yield [(first + step * every) % length for step in range(FRAMES)]
