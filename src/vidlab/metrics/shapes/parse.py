"""From pixels to what is seen: background first, then the objects before it, then their shapes."""

import math

import numpy as np

from vidlab.data.moving_shapes.scene import Body, Canvas
from vidlab.metrics.shapes.background import Background, find_background
from vidlab.metrics.shapes.masks import widened
from vidlab.metrics.shapes.objects import Blob, find_objects
from vidlab.metrics.shapes.outlines import (
    DOES_NOT,
    FITS,
    LOOKED_AT,
    SYMMETRY,
    angle_of,
    misfit,
    shape_errors,
    shape_scores,
    turns,
)
from vidlab.metrics.shapes.parsed_scene import Floats, Mask, ParsedScene, SeenObject, Whole

COLOR_HOLDS, COLOR_LOST = 20.0, 100.0  # departures from the object's mean color, in RGB


def parse_scene(pixels: Floats) -> ParsedScene:
    """Everything that can be told of a clip from its pixels alone.

    Args:
        pixels: (T, H, W, 3) in [0, 255].
    """
    pixels = pixels.astype(np.float32)
    canvas = Canvas(*pixels.shape[:3])
    background = find_background(pixels, canvas)
    blobs = find_objects(pixels, background, canvas)
    before = [widened(blob.mask) for blob in blobs]
    objects = []
    for index, blob in enumerate(blobs):
        others = [mask for other, mask in enumerate(before) if other != index]
        trusted = ~np.any(others, axis=0) if others else np.ones_like(blob.mask)
        objects.append(_seen(pixels, blob, trusted, canvas))
    counts = np.sum([blob.pieces for blob in blobs], axis=0) if blobs else np.zeros(canvas.frames)
    return ParsedScene(canvas, tuple(objects), background.seen, counts, _flicker(pixels, background, blobs))


def _seen(pixels: Floats, blob: Blob, trusted: Mask, canvas: Canvas) -> SeenObject:
    diameter = np.sqrt(4 * blob.area / math.pi) / canvas.short
    still = np.zeros(canvas.frames)
    body = Body("", "", blob.x / canvas.short, blob.y / canvas.short, diameter, still)
    whole = blob.present & ~blob.hidden
    whole = whole if whole.any() else blob.present
    chosen = np.flatnonzero(whole)
    chosen = chosen[np.linspace(0, len(chosen) - 1, min(LOOKED_AT, len(chosen))).round().astype(int)]
    errors = shape_errors(blob.share[chosen], trusted[chosen], _at(body, chosen), _frames(canvas, len(chosen)))
    best = min(errors, key=lambda shape: errors[shape])
    return SeenObject(
        color=blob.color,
        shapes=shape_scores(errors),
        x=body.x,
        y=body.y,
        diameter=diameter,
        turns={order: turns(blob.share, blob.x, blob.y, whole, order) for order in set(SYMMETRY.values())},
        area=blob.share.sum((1, 2), dtype=np.float64),
        present=blob.present,
        hidden=blob.hidden,
        consistency=_consistency(pixels, blob, trusted, body, best, canvas),
    )


def _consistency(pixels: Floats, blob: Blob, trusted: Mask, body: Body, shape: str, canvas: Canvas) -> float:
    """How well the best shape and the mean color explain every frame, absent frames counting as 0."""
    upright = Body(shape, "", body.x, body.y, body.diameter, np.zeros(canvas.frames))
    error = misfit(blob.share, trusted, upright, canvas)
    if float(np.median(error)) > FITS / 2:
        turned = Body(shape, "", body.x, body.y, body.diameter, angle_of(blob.share, body, shape, canvas))
        error = np.minimum(error, misfit(blob.share, trusted, turned, canvas))
    outline = np.clip((DOES_NOT - error) / (DOES_NOT - FITS), 0, 1)
    weight = blob.share**4 * blob.mask
    colors = (weight[..., None] * pixels).sum((1, 2)) / np.maximum(weight.sum((1, 2)), 1e-6)[:, None]
    away = np.linalg.norm(colors - blob.color, axis=-1)
    color = np.clip((COLOR_LOST - away) / (COLOR_LOST - COLOR_HOLDS), 0, 1)
    # What is hidden cannot be judged.
    seen = ~blob.hidden if not blob.hidden.all() else blob.present
    return float((outline * color * blob.present)[seen].mean())


def _flicker(pixels: Floats, background: Background, blobs: tuple[Blob, ...]) -> float:
    """Mean absolute change from frame to frame of what the model of the clip does not explain."""
    model = np.array(np.broadcast_to(background.pixels, pixels.shape))
    for blob in blobs:
        model += blob.share[..., None] * (blob.color - model)
    unexplained = pixels - model
    return float(np.abs(np.diff(unexplained, axis=0)).mean()) if len(pixels) > 1 else 0.0


def _at(body: Body, frames: Whole) -> Body:
    return Body(body.shape, body.color, body.x[frames], body.y[frames], body.diameter[frames], body.angle[frames])


def _frames(canvas: Canvas, frames: int) -> Canvas:
    return Canvas(frames, canvas.height, canvas.width)
