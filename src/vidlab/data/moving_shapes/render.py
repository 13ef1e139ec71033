"""Renders a scene to frames: separable textures for the background, supersampled shapes over it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vidlab.data.moving_shapes.scene import (
    BACKGROUND_COLORS,
    COLORS,
    CROSS_ARM,
    CROSS_HALF,
    PAN,
    PANS,
    SQUARE_HALF,
    TRIANGLE_INRADIUS,
    ZOOM,
    Background,
    Body,
    Canvas,
    Scene,
)

SUPERSAMPLING = 4
Frames = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]


def render_scene(scene: Scene) -> Frames:
    """The frames of a scene, uint8 RGB of shape (T, H, W, 3)."""
    pixels = _background(scene)
    for body in scene.bodies:
        alpha = coverage(body, scene.canvas)[..., None]
        color = np.array(COLORS[body.color], np.float32)
        pixels = pixels + alpha * (color - pixels)
    return np.ascontiguousarray((pixels + 0.5).astype(np.uint8))


def coverage(body: Body, canvas: Canvas) -> Floats:
    """The part of each pixel that a body covers, in [0, 1], shape (T, H, W), from 4 x 4 points per pixel."""
    short, steps = canvas.short, SUPERSAMPLING
    side = 2 * int(np.ceil(body.reach * short)) + 2
    center_x, center_y = body.x * short, body.y * short
    left = np.floor(center_x).astype(int) - side // 2
    top = np.floor(center_y).astype(int) - side // 2
    points = ((np.arange(side * steps) + 0.5) / steps).astype(np.float32)
    scale = (1 / (body.diameter * short))[:, None]
    u = ((points + (left - center_x)[:, None]) * scale).astype(np.float32)
    v = ((points + (top - center_y)[:, None]) * scale).astype(np.float32)
    inside = _inside(body, u[:, None, :], v[:, :, None])
    rows = inside.view(np.uint8).reshape(canvas.frames, side, steps, side * steps).sum(2, dtype=np.uint8)
    box = rows.reshape(canvas.frames, side, side, steps).sum(3, dtype=np.uint8) * np.float32(1 / steps**2)
    out = np.zeros((canvas.frames, canvas.height, canvas.width), np.float32)
    for frame, (row, column) in enumerate(zip(top, left, strict=True)):
        y0, y1 = max(row, 0), min(row + side, canvas.height)
        x0, x1 = max(column, 0), min(column + side, canvas.width)
        out[frame, y0:y1, x0:x1] = box[frame, y0 - row : y1 - row, x0 - column : x1 - column]
    return out


def _inside(body: Body, u: Floats, v: Floats) -> NDArray[np.bool_]:
    """Which points (u (T, 1, P), v (T, P, 1), in diameters from the center) lie in the shape."""
    if body.angle.any():
        cos = np.cos(body.angle, dtype=np.float32)[:, None, None]
        sin = np.sin(body.angle, dtype=np.float32)[:, None, None]
        u, v = cos * u + sin * v, cos * v - sin * u
    if body.shape == "circle":
        return u * u + v * v <= 0.25
    if body.shape == "triangle":
        slope = np.float32(np.sqrt(3) / 2) * np.abs(u) - np.float32(0.5) * v
        return (slope <= TRIANGLE_INRADIUS) & (v <= TRIANGLE_INRADIUS)
    u, v = np.abs(u), np.abs(v)
    if body.shape == "square":
        return (u <= SQUARE_HALF) & (v <= SQUARE_HALF)
    return ((u <= CROSS_ARM) & (v <= CROSS_HALF)) | ((u <= CROSS_HALF) & (v <= CROSS_ARM))


def _background(scene: Scene) -> Floats:
    """The background as float32 (T, H, W, 3), moved by the camera."""
    background, canvas = scene.background, scene.canvas
    colors = np.array([BACKGROUND_COLORS[name] for name in background.colors], np.float32)
    shape = (canvas.frames, canvas.height, canvas.width, 3)
    if background.pattern == "plain":
        return np.broadcast_to(colors[0], shape)
    mix = _mix(background, canvas, scene.camera)[..., None]
    return np.broadcast_to(colors[0] + mix * (colors[1] - colors[0]), shape)


def _mix(background: Background, canvas: Canvas, camera: str) -> Floats:
    """The share of the second color in each pixel, in [0, 1], broadcastable to (T, H, W)."""
    if background.pattern == "gradient":
        length = canvas.height if background.vertical else canvas.width
        ramp = ((np.arange(length) + 0.5) / length).astype(np.float32)
        return ramp[None, :, None] if background.vertical else ramp[None, None, :]
    zoom = zoom_of(camera, canvas)
    pan_x, pan_y = PANS.get(camera, (0.0, 0.0))
    across = _wave(canvas.width, canvas, zoom, pan_x, background.tile, background.phase[0])[:, None, :]
    down = _wave(canvas.height, canvas, zoom, pan_y, background.tile, background.phase[1])[:, :, None]
    if background.pattern == "checkered":
        return (1 - across * down) / 2
    return (1 + (down if background.vertical else across)) / 2


def zoom_of(camera: str, canvas: Canvas) -> NDArray[np.float64]:
    """The magnification in each frame (T,)."""
    start, end = {"zoom in": (1.0, ZOOM), "zoom out": (ZOOM, 1.0)}.get(camera, (1.0, 1.0))
    return np.geomspace(start, end, canvas.frames)


def _wave(length: int, canvas: Canvas, zoom: NDArray[np.float64], pan: float, tile: float, phase: float) -> Floats:
    """A square wave of -1 and 1 along one axis, averaged over each pixel, (T, length).

    The camera looks at the middle of the axis; pan is 1 when it moves along the axis, -1 against it.
    """
    points = (np.arange(length * SUPERSAMPLING) + 0.5) / SUPERSAMPLING / canvas.short
    middle = length / canvas.short / 2
    world = (points - middle) / zoom[:, None] + middle + (PAN * pan * canvas.time)[:, None]
    sign = 2 * (np.floor(world / tile + phase) % 2) - 1
    return sign.reshape(canvas.frames, length, SUPERSAMPLING).mean(2).astype(np.float32)
