"""The background: which colors it has, how they are laid out, and how the camera moves it."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from vidlab.data.moving_shapes.scene import BACKGROUND_COLORS, CAMERAS, PATTERNS, Canvas
from vidlab.metrics.shapes.masks import widened
from vidlab.metrics.shapes.parsed_scene import Floats, Mask, SeenBackground, ramp
from vidlab.metrics.shapes.patterns import Fits, Measured, PatternFit, fit_patterns

# Distances in RGB. Objects differ from every background, and from every mix of two, by at least 90.
REACH = 60.0  # the farthest that a pixel speaks for or against a color
OWN = 45.0  # what is nearer belongs to the background
SECOND_SHARE = 0.08  # part of the frame that a second color must explain to be believed
FREEDOM = 1.35  # mixing two colors explains a third of any noise, which speaks for neither
TOLERANCE = 2.0  # mean error of a pattern that is right
SAMPLE = 8192  # pixels looked at to choose the colors
_PALETTE = np.array(list(BACKGROUND_COLORS.values()), np.float32)


@dataclass(frozen=True)
class Background:
    """What was found, and the clip without its objects.

    Args:
        seen: what the judge reports.
        pixels: the background alone, (T, H, W, 3) or broadcastable to it.
        foreground: pixels of a color that the background does not have, (T, H, W).
    """

    seen: SeenBackground
    pixels: Floats
    foreground: Mask


def find_background(pixels: Floats, canvas: Canvas) -> Background:
    """Explain as much of a clip as possible by one moving pattern.

    Args:
        pixels: (T, H, W, 3) in [0, 255].
        canvas: its size.
    """
    ends = _colors(pixels)
    if len(ends) == 1:
        return _report(pixels, ends, None, ends[0])
    distance, share = to_segment(pixels, ends)
    measured = Measured(2 * share - 1, (distance < OWN).astype(np.float32), canvas)
    fits = fit_patterns(measured)
    mix = (1 + fits.best.model) / 2
    ends = _refitted(pixels, ends, mix, measured.weight)
    return _report(pixels, ends, fits, ends[0] + mix[..., None] * (ends[1] - ends[0]))


def to_segment(pixels: Floats, ends: Floats) -> tuple[Floats, Floats]:
    """Distance of colors (..., 3) to the mixes of one or two colors, and the second's share in the nearest."""
    along = ends[-1] - ends[0]
    length = float(along @ along)
    from_first = pixels - ends[0]
    share = np.clip(from_first @ along / length, 0, 1) if length else np.zeros(pixels.shape[:-1], np.float32)
    return np.linalg.norm(from_first - share[..., None] * along, axis=-1), share


def _colors(pixels: Floats) -> Floats:
    """The one or two background colors that explain most pixels, (1 or 2, 3), as they are in this clip."""
    flat = pixels.reshape(-1, 3)
    flat = flat[:: max(1, len(flat) // SAMPLE)]
    candidates = [_PALETTE[[i]] for i in range(len(_PALETTE))]
    candidates += [_PALETTE[[i, j]] for i, j in combinations(range(len(_PALETTE)), 2)]
    costs = [_unexplained(flat, ends) for ends in candidates]
    costs = [
        cost if len(ends) == 1 else FREEDOM * cost + SECOND_SHARE for cost, ends in zip(costs, candidates, strict=True)
    ]
    ends = candidates[int(np.argmin(costs))]
    distance, share = to_segment(flat, ends)
    for _ in range(2):
        near = [(distance < REACH) & (np.abs(share - end) <= 0.25) for end in range(len(ends))]
        ends = np.array([flat[own].mean(0) if own.any() else old for own, old in zip(near, ends, strict=True)])
        distance, share = to_segment(flat, ends)
    return ends


def _unexplained(flat: Floats, ends: Floats) -> float:
    """Mean squared distance, in [0, 1] of the farthest that counts."""
    return float((np.minimum(to_segment(flat, ends)[0], REACH) ** 2).mean()) / REACH**2


def _refitted(pixels: Floats, ends: Floats, mix: Floats, weight: Floats) -> Floats:
    """The two colors that, mixed by (T, H, W), come nearest to the pixels (least squares)."""
    mix = np.broadcast_to(mix, weight.shape)
    design = np.stack([1 - mix, mix], -1)[weight > 0]
    if len(design) < 2 or np.ptp(design[:, 0]) < 0.5:
        return ends
    gram = design.T @ design
    return np.linalg.solve(gram, design.T @ pixels[weight > 0]).astype(np.float32)


def _report(pixels: Floats, ends: Floats, fits: Fits | None, synthetic: Floats) -> Background:
    foreground = to_segment(pixels, ends)[0] > OWN
    patterns = dict.fromkeys(PATTERNS, 0.0)
    cameras = dict.fromkeys(CAMERAS, 0.0)
    if fits is None:
        # Nothing in one color shows what the camera does.
        patterns["plain"], cameras["fixed"] = ramp(float((~foreground).mean()), 0.2, 0.6), 1.0
    else:
        patterns |= _correlations(fits.patterns)
        cameras |= _correlations(fits.cameras)
    consistency = _consistency(pixels, synthetic, foreground)
    return Background(SeenBackground(ends, patterns, cameras, consistency), synthetic, foreground)


def _correlations(fits: dict[str, PatternFit]) -> dict[str, float]:
    return {name: fit.correlation * fit.camera.strength for name, fit in fits.items()}


def _consistency(pixels: Floats, synthetic: Floats, foreground: Mask) -> float:
    """1 where the pattern explains every background pixel, falling to 0 at a mean error of ``REACH``."""
    # The faint edges of an object are neither it nor background.
    free = ~widened(foreground)
    error = np.minimum(np.linalg.norm(pixels - synthetic, axis=-1), 2 * REACH)
    return ramp(float(error[free].mean()), REACH, TOLERANCE) if free.any() else 0.0
