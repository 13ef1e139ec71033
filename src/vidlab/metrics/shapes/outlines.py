"""Which shape an outline is, how it is turned, and how well the shape explains it.

The measured coverage of each pixel is compared with the renderer's own drawing of every shape, of the same area and
center, upright and turned by the measured angle.
"""

import numpy as np

from vidlab.data.moving_shapes.render import coverage
from vidlab.data.moving_shapes.scene import SHAPES, Body, Canvas, Track
from vidlab.metrics.shapes.parsed_scene import Complexes, Floats, Mask, ramp

SYMMETRY = {"triangle": 3, "square": 4, "cross": 4}
# The direction of what the moment of that order sees first, from upright: a triangle's corners point up, a square's
# to 45 degrees, a cross's arms along the axes (angles clockwise from the right).
_UPRIGHT = {"triangle": -np.pi / 2, "square": np.pi / 4, "cross": 0.0}
LOOKED_AT = 8  # frames that decide on the shape
UPRIGHT_FITS = 0.08  # an error under which a turned shape need not be tried
FITS, DOES_NOT = 0.14, 0.34  # errors of a shape that is fully and not at all convincing
SHARPNESS = 6.0  # the second-best shape at 3 times the error of the best is given 1 / 3^6 of its weight


def turns(share: Floats, x: Track, y: Track, present: Mask, order: int) -> Track:
    """Accumulated clockwise turn (T,) of a coverage (T, H, W), from its angular moment of the given order.

    Args:
        share: coverage in [0, 1].
        x, y: center in pixels, (T,).
        present: frames to be used; the others are interpolated.
        order: of the shape's symmetry; turns of more than half a period per frame are taken for shorter ones.
    """
    phase = np.unwrap(np.angle(angular_moment(share, x, y, order))[present])
    if not len(phase):
        return np.zeros(len(x))
    return np.interp(np.arange(len(x)), np.flatnonzero(present), phase - phase[0]) / order


def angular_moment(share: Floats, x: Track, y: Track, order: int) -> Complexes:
    """Sum of coverage times r^order e^(i order angle) about the center, complex (T,)."""
    height, width = share.shape[1:]
    u = np.arange(width) + 0.5 - x[:, None]
    v = np.arange(height) + 0.5 - y[:, None]
    place = u[:, None, :] + 1j * v[:, :, None]
    squared = place * place
    power = squared * squared if order == 4 else squared * place
    return (share * power).sum((1, 2))


def shape_errors(share: Floats, trusted: Mask, body: Body, canvas: Canvas) -> dict[str, float]:
    """Misfit of every shape, in [0, 1]: half the summed difference over the mean area (1 - soft Dice overlap).

    Args:
        share: measured coverage, (T, H, W).
        trusted: 0 where another object may be in front, (T, H, W).
        body: the measured tracks; its shape and angle are not used.
        canvas: size of the clip; its frames count those given here.
    """
    found = {}
    for shape in SHAPES:
        upright = np.zeros(len(body.x))
        found[shape] = float(misfit(share, trusted, _as(body, shape, upright), canvas).mean())
    if min(found.values()) > UPRIGHT_FITS:
        for shape in SYMMETRY:
            turned = float(
                misfit(share, trusted, _as(body, shape, angle_of(share, body, shape, canvas)), canvas).mean()
            )
            found[shape] = min(found[shape], turned)
    return found


def angle_of(share: Floats, body: Body, shape: str, canvas: Canvas) -> Track:
    """Clockwise angle from upright (T,), within one period of the shape's symmetry; 0 for a circle."""
    if shape not in SYMMETRY:
        return np.zeros(len(body.x))
    order = SYMMETRY[shape]
    moment = angular_moment(share, body.x * canvas.short, body.y * canvas.short, order)
    return np.angle(moment) / order - _UPRIGHT[shape]


def misfit(share: Floats, trusted: Mask, body: Body, canvas: Canvas) -> Floats:
    """``shape_errors`` of one body per frame, (T,)."""
    drawn = coverage(body, canvas)
    both = (trusted * (share + drawn)).sum((1, 2))
    return (trusted * np.abs(share - drawn)).sum((1, 2)) / np.maximum(both, 1e-6)


def shape_scores(errors: dict[str, float]) -> dict[str, float]:
    """Belief in each shape: its share of the evidence, times how convincing the best shape is."""
    weights = {shape: max(error, 0.01) ** -SHARPNESS for shape, error in errors.items()}
    convincing = ramp(min(errors.values()), DOES_NOT, FITS)
    return {shape: convincing * weight / sum(weights.values()) for shape, weight in weights.items()}


def _as(body: Body, shape: str, angle: Track) -> Body:
    return Body(shape, body.color, body.x, body.y, body.diameter, angle)
