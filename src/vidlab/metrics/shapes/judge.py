"""The judge of moving-shapes clips: does a generated video show what its caption says?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.data.moving_shapes.source import LEAST_FRAMES, RENDERER_VERSION
from vidlab.errors import DataError, UserError
from vidlab.factors import Factors
from vidlab.metrics.base import Batch, VideoMetric
from vidlab.metrics.intervals import bootstrap_mean
from vidlab.metrics.results import MetricResult
from vidlab.metrics.shapes.grade import DIMENSIONS, Grade, grade
from vidlab.metrics.shapes.parse import parse_scene
from vidlab.metrics.shapes.parsed_scene import Floats, ParsedScene

JUDGE_VERSION = 1
"""Part of every result's conditions: raise it with every change of a score."""


class ShapesJudge(VideoMetric):
    """Grades clips (B, 3, T, H, W) in [-1, 1] against the factors that their ``moving_shapes`` captions name.

    The judge sees pixels alone. It finds the background by fitting plain, gradient, striped and checkered patterns
    under every camera motion, the objects as what differs from it in color, their tracks from their coverage to
    fractions of a pixel, and their shapes by comparing that coverage with the renderer's own drawings of all four. What
    it saw is then compared with the named factors: each ``DIMENSIONS`` entry gets a score in [0, 1] that falls steadily
    as the video departs from them (an object of the right color and no clear shape scores 1 for color and little for
    class). Dimensions stand for those of VBench (Huang et al. 2023, arXiv:2311.17982) and are measured by other means.

    A clip is graded only on what its caption names, and always on the number of objects and on consistency. Its total
    is the mean of its graded dimensions, the value is the mean of the totals over clips; a dimension's value is the
    mean over the clips it is graded on.

    What does not move a dimension: class, size, position, motion and speed are blind to wrong colors; color, class,
    size and subject consistency to the order of frames and to frozen frames; the consistencies to the caption. Shuffled
    frames lengthen a path, so they lower speed only for slow objects. A background far from every color of the data
    set is not recognized, which costs ``scene`` and ``camera_motion`` alike.

    Give the videos as they were generated: lossy encoding blurs small shapes.

    Args:
        frames, stride, seed: as for every metric; at least 4 frames.
        resamples: of the bootstrap over clips that gives the intervals.
    """

    name: ClassVar[str] = "shapes_judge"
    needs_factors: ClassVar[bool] = True
    minimum_frames = LEAST_FRAMES
    higher_is_better = True

    scores: list[Tensor]

    def __init__(self, frames: int | None = None, stride: int = 1, seed: int = 0, resamples: int = 1000) -> None:
        super().__init__(frames, stride, seed)
        self.resamples = resamples
        self._add_rows("scores", (len(DIMENSIONS),))

    def dimensions(self) -> Mapping[str, MetricResult]:
        """The result of each dimension that any clip was graded on, in their order; every process must call it.

        Raises:
            DataError: no clip was given.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync, should_unsync=True):
            keys, scores = self._sorted()
            graded = ~scores.isnan()
            return {
                name: self._mean(f"{self.name}/{name}", keys[graded[:, column]], scores[graded[:, column], column])
                for column, name in enumerate(DIMENSIONS)
                if graded[:, column].any()
            }

    def settings(self) -> Mapping[str, str]:
        """Versions of the judge and of the data set's renderer."""
        return {"judge": str(JUDGE_VERSION), "renderer": str(RENDERER_VERSION)}

    def _take(self, batch: Batch) -> None:
        wanted = _complete(batch.factors, len(batch.videos), self.name)
        rows = [_row(grade(scene_of(clip), named)) for clip, named in zip(batch.videos, wanted, strict=True)]
        self.scores.append(torch.tensor(rows, dtype=torch.float64, device=self.device))
        self.keys.append(batch.keys)

    def _result(self) -> MetricResult:
        keys, scores = self._sorted()
        return self._mean(self.name, keys, scores.nanmean(1))

    def _sorted(self) -> tuple[Tensor, Tensor]:
        """Keys (N,) and scores (N, dimensions), NaN where a clip is not graded."""
        order = self._order()
        if not len(order):
            raise DataError(f"{self.name}: no clip was given.")
        return self._rows("keys")[order], self._rows("scores")[order]

    def _mean(self, name: str, keys: Tensor, scores: Tensor) -> MetricResult:
        found = bootstrap_mean(scores.tolist(), self.resamples, seed=self.seed)
        return replace(
            self._describe(scores.mean().item(), len(scores)),
            name=name,
            interval=found.interval,
            keys=tuple(keys.tolist()),
            scores=tuple(scores.tolist()),
            notes=() if found.interval is not None else ("no interval: fewer than 2 clips",),
        )


def scene_of(video: Float[Tensor, "3 T H W"]) -> ParsedScene:
    """Everything the judge can tell of one clip, (3, T, H, W) in [-1, 1]."""
    return parse_scene(gray_levels(video))


def gray_levels(video: Float[Tensor, "3 T H W"]) -> Floats:
    """A clip in [-1, 1] as RGB frames (T, H, W, 3) in [0, 255]."""
    frames = (video.detach().float().cpu().clamp(-1, 1) + 1) * 127.5
    return frames.permute(1, 2, 3, 0).contiguous().numpy()


def _row(graded: Grade) -> list[float]:
    return [graded.scores.get(name, math.nan) for name in DIMENSIONS]


def _complete(factors: Sequence[Factors | None] | None, clips: int, name: str) -> list[Factors]:
    found = [one for one in factors or () if one is not None]
    if len(found) != clips or len(factors or ()) != clips:
        raise UserError(
            f"{name} grades clips of data=moving_shapes, whose factors are known: give update(factors=...) with one "
            f"for each of the {clips} clips, there are {len(found)}."
        )
    return found
