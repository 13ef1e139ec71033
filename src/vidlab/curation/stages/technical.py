"""Technical quality without a reference: BRISQUE."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.special import gamma
from typing_extensions import override

from vidlab.assets import MANIFESTS, fetch, read_manifest
from vidlab.curation.engine.records import Clip, Measurement
from vidlab.curation.engine.stage import Measure
from vidlab.curation.engine.video_file import VideoFile, reduced_size, spread
from vidlab.errors import UserError
from vidlab.perceptual.unpickle import read_number_lists
from vidlab.perceptual.weights import weights_digest

SCORE = "brisque"
MODEL, RANGES = "brisque-svm.txt", "brisque-ranges.pickle"
KERNEL, SIGMA = 7, 7 / 6
GRAY = (0.2125, 0.7154, 0.0721)


@dataclass(frozen=True)
class Brisque(Measure):
    """Mean BRISQUE (Mittal et al. 2012) of frames, as ``brisque``: about 0 to 100, lower is better.

    Open-Sora Plan takes DOVER's technical score, which is another measure on another scale; this one is told from it by
    its name. Weights are those of the authors, pinned (0.2 MB).

    Args:
        frames: number of frames, evenly over the clip.
        short_side: pixels to which larger frames are reduced.

    Raises:
        UserError: a setting is out of range.
    """

    frames: int = 3
    short_side: int = 480

    def __post_init__(self) -> None:
        if self.frames < 1 or self.short_side < 32:
            raise UserError(f"frames={self.frames}, short_side={self.short_side}: at least 1, and 32 pixels.")

    @property
    @override
    def provides(self) -> tuple[str, ...]:
        return (SCORE,)

    @override
    def weights(self) -> Sequence[str]:
        return [weights_digest(f"asset:{name}") for name in (MODEL, RANGES)]

    @override
    def measure(self, video: VideoFile, clips: Sequence[Clip]) -> Sequence[Measurement]:
        return [Measurement({SCORE: float(np.mean(list(self._scores(video, clip))))}) for clip in clips]

    def _scores(self, video: VideoFile, clip: Clip) -> Iterator[float]:
        import cv2

        for frame in video.frames(clip, spread(clip.frames, self.frames)):
            height, width = reduced_size(frame.shape[0], frame.shape[1], self.short_side)
            yield brisque(cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA))


def brisque(frame: np.ndarray) -> float:
    """BRISQUE of a uint8 (H, W, 3) RGB frame."""
    import cv2

    gray = frame.astype(np.float64) @ np.array(GRAY) / 255
    half = cv2.resize(gray, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_CUBIC)
    return quality_model()(np.array([*features(gray), *features(half)]))


def features(gray: np.ndarray) -> Iterator[float]:
    """The 18 features of one scale: shapes of the distributions of normalized values and of their products."""
    values = normalized(gray)
    alpha, _, left, right = asymmetric_fit(values)
    yield from (alpha, (left + right) / 2)
    products = (
        values[:, :-1] * values[:, 1:],
        values[:-1] * values[1:],
        values[:-1, :-1] * values[1:, 1:],
        values[1:, :-1] * values[:-1, 1:],
    )
    for product in products:
        yield from asymmetric_fit(product)


def normalized(gray: np.ndarray) -> np.ndarray:
    """Values less their local mean, by their local deviation (equation 1 of the paper)."""
    import cv2

    place = np.arange(KERNEL) - KERNEL // 2
    line = np.exp(-(place**2) / (2 * SIGMA**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    mean = cv2.filter2D(gray, -1, kernel, borderType=cv2.BORDER_CONSTANT)
    square = cv2.filter2D(gray**2, -1, kernel, borderType=cv2.BORDER_CONSTANT)
    return (gray - mean) / (np.sqrt(np.abs(mean**2 - square)) + 1 / 255)


def asymmetric_fit(values: np.ndarray) -> tuple[float, float, float, float]:
    """The asymmetric generalized Gaussian of values: shape, mean, and the variances left and right of 0."""
    negative, positive = values[values < 0], values[values >= 0]
    if not len(negative) or not len(positive) or not values.any():
        return 10.0, 0.0, 0.0, 0.0  # one flat color
    left, right = float(np.mean(negative**2)), float(np.mean(positive**2))
    ratio = np.sqrt(left / right) if right else 1.0
    observed = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    alpha = shape_of(float(observed * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2))
    scale = np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
    mean = (np.sqrt(right) - np.sqrt(left)) * scale * gamma(2 / alpha) / gamma(1 / alpha)
    return alpha, float(mean), left, right


@lru_cache(maxsize=1 << 12)
def shape_of(ratio: float) -> float:
    """The shape alpha in [0.1, 20] with Gamma(2 / alpha)^2 / (Gamma(1 / alpha) Gamma(3 / alpha)) = ratio."""

    def excess(alpha: float) -> float:
        return float(gamma(2 / alpha) ** 2 / (gamma(1 / alpha) * gamma(3 / alpha)) - ratio)

    low, high = 0.1, 20.0
    if excess(low) > 0 or excess(high) < 0:
        return low if excess(low) > 0 else high
    return float(brentq(excess, low, high, xtol=1e-10))


class QualityModel:
    """A support vector regression with a Gaussian kernel, in LIBSVM's text form.

    Args:
        model: its file.
        ranges: lists of the least and the greatest of each feature.
    """

    def __init__(self, model: Path, ranges: Path) -> None:
        head, _, body = model.read_text("utf-8").partition("\nSV\n")
        facts = dict(line.split(maxsplit=1) for line in head.splitlines())
        self.gamma, self.rho = float(facts["gamma"]), float(facts["rho"])
        rows = [line.split() for line in body.splitlines() if line.strip()]
        self.weights = np.array([float(row[0]) for row in rows])
        self.vectors = np.zeros((len(rows), 36))
        for at, row in enumerate(rows):
            for cell in row[1:]:
                place, _, value = cell.partition(":")
                self.vectors[at, int(place) - 1] = float(value)
        found = read_number_lists(ranges)
        self.least, self.most = np.array(found["min_"]), np.array(found["max_"])

    def __call__(self, found: np.ndarray) -> float:
        """The quality of 36 features."""
        scaled = 2 * (found - self.least) / (self.most - self.least) - 1
        kernel = np.exp(-self.gamma * ((self.vectors - scaled) ** 2).sum(1))
        return float(self.weights @ kernel - self.rho)


@cache
def quality_model() -> QualityModel:
    """The published one, once per process.

    Raises:
        AssetError: it could not be fetched.
    """
    known = read_manifest(MANIFESTS[0])
    return QualityModel(fetch(known[MODEL]), fetch(known[RANGES]))
