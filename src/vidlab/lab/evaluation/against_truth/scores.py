"""Scores of clips against the truth: clip by clip, and of whole sets by FVD."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vidlab.errors import UserError
from vidlab.lab.evaluation.against_truth.made import Clips, Frames
from vidlab.metrics.base import ClipMetric
from vidlab.metrics.intervals import Interval, subsampled
from vidlab.metrics.reconstruction.lpips import VideoLPIPS
from vidlab.metrics.reconstruction.psnr import PSNR
from vidlab.metrics.reconstruction.ssim import SSIM
from vidlab.metrics.sets.distances import frechet_distance
from vidlab.metrics.sets.features import Extractor, i3d_extractor
from vidlab.metrics.statistics.over_seeds import Estimate, mean_over_seeds
from vidlab.perceptual.i3d import MIN_FRAMES

FVD_FRAMES, FVD_DRAWS = 16, 50
LPIPS_SIZE = (64, 64)  # AlexNet reads no less than 35 pixels a side
TRUTH = "the truth"
PER_CLIP: Mapping[str, Callable[[], ClipMetric | None]] = {
    "squared_error": lambda: None,
    "psnr": PSNR,
    "ssim": SSIM,
    "lpips": lambda: VideoLPIPS(size=LPIPS_SIZE),
}
METRICS = (*PER_CLIP, "fvd")


def check_metrics(names: Sequence[str], frames: int) -> None:
    """Refuse metrics that are unknown, or that clips are too short for.

    Raises:
        UserError: naming them.
    """
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        raise UserError(f"metrics: {', '.join(unknown) or 'none given'}; choose among {', '.join(METRICS)}.")
    if "fvd" in names and frames < MIN_FRAMES:
        raise UserError(
            f"fvd reads clips of at least {MIN_FRAMES} frames, these have {frames}. Leave it out, or, of a temporal "
            "upsampler, measure longer clips: --frames 17."
        )


@dataclass
class Scores:
    """Gathers the scores of several ways to make the same clips.

    Args:
        metrics: names, of ``METRICS``.
        counted: the frames that are compared clip by clip; FVD is of the first 16 frames of whole clips.
        extractor: clips to features, for FVD; None is I3D.
    """

    metrics: Sequence[str]
    counted: Frames
    extractor: Extractor | None = None
    per_clip: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    features: dict[str, list[Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._made = {name: PER_CLIP[name]() for name in self.metrics if name in PER_CLIP}
        if "fvd" in self.metrics and self.extractor is None:
            self.extractor = i3d_extractor()

    def add(self, truth: Clips, made: Mapping[str, Clips]) -> None:
        """Score clips, made in each of several ways; the same ways, in the same order of clips, each time."""
        for how, clips in made.items():
            for name, metric in self._made.items():
                found = _scored(metric, clips[:, :, self.counted], truth[:, :, self.counted])
                self.per_clip.setdefault(name, {}).setdefault(how, []).extend(found)
        if self.extractor is not None:
            for how, clips in {TRUTH: truth, **made}.items():
                rows = self.extractor(clips[:, :, :FVD_FRAMES].contiguous()).flatten(0, 1)
                self.features.setdefault(how, []).append(rows)

    def mean(self, metric: str, how: str) -> Estimate:
        """The mean over clips, with its interval."""
        return mean_over_seeds(self.per_clip[metric][how], drawn="clips")

    def gain(self, metric: str, how: str, other: str) -> Estimate:
        """The mean of one way minus another's, clip by clip, with its interval."""
        values = [torch.tensor(self.per_clip[metric][name], dtype=torch.float64) for name in (how, other)]
        return mean_over_seeds((values[0] - values[1]).tolist(), drawn="clips")

    def fvd(self, how: str) -> tuple[float, Interval | None]:
        """FVD of clips made one way against the truth, with its interval from halves."""
        made, truth = self._rows(how), self._rows(TRUTH)
        value = frechet_distance(made, truth)
        return value, subsampled(
            lambda a, b: frechet_distance(made[a], truth[b]), value, len(made), len(truth), FVD_DRAWS
        )

    def fvd_gain(self, how: str, other: str) -> tuple[float, Interval | None]:
        """FVD of one way minus another's: halves are of the same clips for both, which leaves out what they share."""
        made, rest, truth = self._rows(how), self._rows(other), self._rows(TRUTH)

        def difference(clips: Tensor, real: Tensor) -> float:
            return frechet_distance(made[clips], truth[real]) - frechet_distance(rest[clips], truth[real])

        everything = torch.arange(len(made))
        value = difference(everything, everything)
        return value, subsampled(difference, value, len(made), len(truth), FVD_DRAWS)

    def _rows(self, how: str) -> Tensor:
        return torch.cat(self.features[how])


def _scored(metric: ClipMetric | None, clips: Clips, truth: Clips) -> list[float]:
    if metric is None:
        return [float(value) for value in (clips - truth).double().square().mean(dim=(1, 2, 3, 4))]
    metric.reset()
    metric.update(clips, reference=truth, keys=None)
    return list(metric.result().scores or ())
