"""Fitting the background's pattern: analysis by synthesis over tiles, phases and camera motions.

Every pattern is a texture between -1 (first color) and 1 (second color). A fit is judged by its weighted
correlation with the texture measured in the video.
"""

from dataclasses import dataclass, replace

import numpy as np

from vidlab.data.moving_shapes.scene import Canvas
from vidlab.metrics.shapes.gratings import CAMERA_MOVES, PHASES, Bank, Camera, Move, bank, waves
from vidlab.metrics.shapes.parsed_scene import Floats

# Steps of tile (short sides) and phase (tiles) of the successive refinements of the best fit.
REFINEMENTS = ((0.003, 0.03), (0.0012, 0.012), (0.0005, 0.005))
_STEPS = np.arange(-2, 3)


@dataclass(frozen=True)
class Measured:
    """A texture (T, H, W) in [-1, 1], and how far each of its pixels is to be believed, in [0, 1]."""

    texture: Floats
    weight: Floats
    canvas: Canvas


@dataclass(frozen=True)
class Wave:
    """One wave's tile in short sides and its phase at the middle of the axis in tiles."""

    tile: float
    phase: float


@dataclass(frozen=True)
class PatternFit:
    """A pattern under a camera.

    Args:
        pattern: one of the data set's patterns.
        camera: with its strength.
        across, down: the waves along the width and the height; None where the pattern is constant.
        correlation: with the measured texture, in [0, 1].
        model: the texture, broadcastable to (T, H, W).
    """

    pattern: str
    camera: Camera
    across: Wave | None
    down: Wave | None
    correlation: float
    model: Floats


@dataclass(frozen=True)
class Fits:
    """The best fit of each pattern, and of each camera, by name, with the best pattern."""

    patterns: dict[str, PatternFit]
    cameras: dict[str, PatternFit]

    @property
    def best(self) -> PatternFit:
        """The pattern that explains the background best."""
        return max(self.patterns.values(), key=lambda fit: fit.correlation)


def fit_patterns(measured: Measured) -> Fits:
    """Fit gradients, stripes and tiles under every camera."""
    found = [*_gradients(measured)]
    for camera in CAMERA_MOVES:
        # A pan along the stripes does not show.
        if not camera.down.pan:
            found.append(_striped(measured, camera, vertical=False))
        if not camera.across.pan:
            found.append(_striped(measured, camera, vertical=True))
        found.append(_checkered(measured, camera))
    winner = _refined(measured, max(found, key=lambda fit: fit.correlation))
    patterns: dict[str, PatternFit] = {winner.pattern: winner}
    cameras: dict[str, PatternFit] = {winner.camera.name: winner}
    for fit in found:
        _keep_better(patterns, fit.pattern, fit)
        if fit.pattern == winner.pattern:
            _keep_better(cameras, fit.camera.name, fit)
    return Fits(patterns, cameras)


def _keep_better(table: dict[str, PatternFit], name: str, fit: PatternFit) -> None:
    if name not in table or fit.correlation > table[name].correlation:
        table[name] = fit


def correlation(measured: Measured, model: Floats) -> float:
    """Weighted correlation about zero of the texture with a model of it; below 0 counts as 0."""
    seen = measured.weight * measured.texture
    scale = float((seen * measured.texture).sum()) * float((measured.weight * model**2).sum())
    return max(0.0, float((seen * model).sum()) / np.sqrt(scale)) if scale > 0 else 0.0


def _gradients(measured: Measured) -> list[PatternFit]:
    fits = []
    for axis in (1, 2):
        length = measured.texture.shape[axis]
        line = (2 * (np.arange(length) + 0.5) / length - 1).astype(np.float32)
        ramp = line[None, :, None] if axis == 1 else line[None, None, :]
        for model in (ramp, -ramp):
            value = correlation(measured, model)
            fits.append(PatternFit("gradient", CAMERA_MOVES[0], None, None, value, model))
    return fits


def _striped(measured: Measured, camera: Camera, vertical: bool) -> PatternFit:
    axis, move = (2, camera.down) if vertical else (1, camera.across)
    profile, share = (measured.weight * measured.texture).sum(axis), measured.weight.sum(axis)
    wave = _nearest(bank(measured.canvas, profile.shape[1], move), profile, share)
    return _fitted(measured, "striped", camera, None if vertical else wave, wave if vertical else None)


def _checkered(measured: Measured, camera: Camera) -> PatternFit:
    """Take turns with the wave across and the wave down, starting from the first frame's main axes."""
    canvas, seen = measured.canvas, measured.weight * measured.texture
    height, width = seen.shape[1:]
    banks = bank(canvas, width, camera.across), bank(canvas, height, camera.down)
    across, down = _first_tiles(banks, seen[0])
    for _ in range(2):
        line = _line(canvas, height, camera.down, down)[:, :, None]
        across = _nearest(banks[0], (seen * line).sum(1), (measured.weight * line**2).sum(1))
        line = _line(canvas, width, camera.across, across)[:, None, :]
        down = _nearest(banks[1], (seen * line).sum(2), (measured.weight * line**2).sum(2), across.tile)
    return _fitted(measured, "checkered", camera, across, down)


def _first_tiles(banks: tuple[Bank, Bank], frame: Floats) -> tuple[Wave, Wave]:
    """The waves of one frame (H, W), which share their tile."""
    row = frame[np.abs(frame).sum(1).argmax()]
    for _ in range(6):
        column = frame @ row
        column = column / max(float(np.linalg.norm(column)), 1e-6)
        row = column @ frame
    scores = [found.waves[:, :, 0] @ line for found, line in zip(banks, (row, column), strict=True)]
    tile = int((scores[0].max(1) * scores[1].max(1)).argmax())
    across, down = (Wave(float(banks[0].tiles[tile]), float(PHASES[score[tile].argmax()])) for score in scores)
    return across, down


def _nearest(found: Bank, profile: Floats, share: Floats, tile: float | None = None) -> Wave:
    """The wave of a bank that fits a profile (T, length) best; share is the weight that went into it."""
    nearest = 0 if tile is None else int(np.abs(found.tiles - tile).argmin())
    rows = slice(None) if tile is None else slice(nearest, nearest + 1)
    scores = _scores(found.waves[rows], found.squares[rows], profile, share)
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    return Wave(float(found.tiles[rows][row]), float(PHASES[column]))


def _scores(templates: Floats, squares: Floats, profile: Floats, share: Floats) -> Floats:
    """Weighted correlation, up to the profile's own scale, of waves (tiles, phases, T, length) with a profile."""
    shape, size = templates.shape[:2], profile.size
    both = templates.reshape(-1, size) @ profile.astype(np.float32).ravel()
    scale = squares.reshape(-1, size) @ share.astype(np.float32).ravel()
    return (both / np.sqrt(np.maximum(scale, 1e-6))).reshape(shape)


def _refined(measured: Measured, fit: PatternFit) -> PatternFit:
    """The fit with its tile and phases on a finer grid."""
    for tile_step, phase_step in REFINEMENTS:
        for axis in (2, 1):
            fit = _refined_along(measured, fit, axis, tile_step, phase_step)
    return fit


def _refined_along(measured: Measured, fit: PatternFit, axis: int, tile_step: float, phase_step: float) -> PatternFit:
    """Search around the wave along one axis of (T, H, W), the other wave's phase held."""
    wave, other = (fit.across, fit.down) if axis == 2 else (fit.down, fit.across)
    if wave is None:
        return fit
    canvas, camera = measured.canvas, fit.camera
    move, other_move = (camera.across, camera.down) if axis == 2 else (camera.down, camera.across)
    seen, weight, summed = measured.weight * measured.texture, measured.weight, 3 - axis
    if other is not None:
        line = np.expand_dims(_line(canvas, seen.shape[summed], other_move, other), axis)
        seen, weight = seen * line, weight * line**2
    tiles, phases = wave.tile + tile_step * _STEPS, wave.phase + phase_step * _STEPS
    templates = waves(canvas, measured.texture.shape[axis], move, tiles, phases)
    scores = _scores(templates, templates**2, seen.sum(summed), weight.sum(summed))
    row, column = np.unravel_index(int(scores.argmax()), scores.shape)
    better = Wave(float(tiles[row]), float(phases[column]))
    shared = None if other is None else replace(other, tile=better.tile)
    pair = (better, shared) if axis == 2 else (shared, better)
    return max(fit, _fitted(measured, fit.pattern, camera, *pair), key=lambda found: found.correlation)


def _fitted(measured: Measured, pattern: str, camera: Camera, across: Wave | None, down: Wave | None) -> PatternFit:
    height, width = measured.texture.shape[1:]
    model: Floats = np.ones((1, 1, 1), np.float32)
    if across is not None:
        model = model * _line(measured.canvas, width, camera.across, across)[:, None, :]
    if down is not None:
        model = model * _line(measured.canvas, height, camera.down, down)[:, :, None]
    return PatternFit(pattern, camera, across, down, correlation(measured, model), model)


def _line(canvas: Canvas, length: int, move: Move, wave: Wave) -> Floats:
    """One wave, (T, length)."""
    return waves(canvas, length, move, np.array([wave.tile]), np.array([wave.phase]))[0, 0]
