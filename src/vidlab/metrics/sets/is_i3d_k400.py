"""Inception score from I3D's Kinetics-400 classes."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from vidlab.errors import DataError
from vidlab.metrics.intervals import subsampled
from vidlab.metrics.results import MetricResult
from vidlab.metrics.sets.features import Extractor, FeatureMetric, i3d_extractor
from vidlab.perceptual.i3d import MIN_FRAMES


def inception_score(logits: Float[Tensor, "N K"], splits: int) -> float:
    """The mean over ``splits`` equal parts of exp(mean of KL(p(y|x) || p(y))) (Salimans et al. 2016,
    arXiv:1606.03498, section 4); between 1 and K. Rows beyond the last whole part are left out.
    """
    log_p = logits.double().log_softmax(1)
    size, scores = len(log_p) // splits, []
    for part in log_p[: size * splits].split(size):
        marginal = part.exp().mean(0)
        # x log x -> 0 as x -> 0, for classes whose probability has become zero in float64
        entropy = torch.xlogy(marginal, marginal).sum()
        scores.append((torch.xlogy(part.exp(), part.exp()).sum(1).mean() - entropy).exp())
    return torch.stack(scores).mean().item()


class InceptionScoreI3D(FeatureMetric):
    """The inception score of I3D's 400 Kinetics classes, named ``is_i3d_k400`` for what it is.

    It is not the IS of papers on UCF-101, which comes from a C3D network fine-tuned on UCF-101. Higher is better,
    between 1 and 400. It needs no reference, and knows nothing of what the clips should look like: a set of sharp
    clips of the wrong things scores high. It is biased upwards at small N.

    Args:
        extractor: clips to logits; None is I3D on its pinned weights.
        frames: frames scored per clip, at least 9.
        stride, seed: as for every metric.
        splits: parts the clips are cut into; each needs at least 2 clips.
        draws: halves drawn without replacement for the interval.
    """

    name: ClassVar[str] = "is_i3d_k400"
    minimum_frames = MIN_FRAMES
    higher_is_better = True

    def __init__(
        self,
        extractor: Extractor | None = None,
        frames: int = 16,
        stride: int = 1,
        seed: int = 0,
        splits: int = 10,
        draws: int = 20,
    ) -> None:
        super().__init__(extractor or i3d_extractor(), frames, stride, seed)
        self.splits, self.draws = splits, draws

    def settings(self) -> Mapping[str, str]:
        """The network and the number of splits."""
        return {**super().settings(), "splits": str(self.splits)}

    def _result(self) -> MetricResult:
        logits = self._sets("features", "keys").flatten(0, 1)
        clips = len(logits)
        if clips < 2 * self.splits:
            raise DataError(
                f"{self.name}: {clips} clips do not make {self.splits} parts of 2 or more; set splits lower."
            )
        value = inception_score(logits, self.splits)
        halves = self.splits if clips // 2 >= 2 * self.splits else 1
        interval = subsampled(
            lambda a, _: inception_score(logits[a.to(logits.device)], halves),
            value,
            clips,
            clips,
            self.draws,
            self.seed,
        )
        note = f"is_i3d_k400 grows with N: each of the {self.splits} parts has {clips // self.splits} clips"
        found = replace(self._describe(value, clips), resize=self.extractor.description, interval=interval)
        return replace(found, notes=(note,))
