"""Objects: found by color against the background, separated, and tracked to fractions of a pixel."""

import math
from dataclasses import dataclass, replace

import numpy as np

from vidlab.data.moving_shapes.scene import COLORS, SIZES, Canvas, Track
from vidlab.metrics.shapes.background import OWN, Background
from vidlab.metrics.shapes.masks import eroded, moments, parts, widened
from vidlab.metrics.shapes.parsed_scene import Floats, Mask, Whole

SAME = 50.0  # two clusters of nearer colors are one object
SPECK = 0.25  # parts of less than this share of a small object's area are no objects
INNER = 0.12  # idem, for the inner pixels of an object that is there at all
WHOLE = 0.93  # an object next to another that shows less of its usual area is partly hidden
_PALETTE = np.array(list(COLORS.values()), np.float32)


@dataclass(frozen=True)
class Blob:
    """One object's pixels.

    Args:
        color: mean of its inner pixels, (3,).
        share: how much of each pixel it covers, in [0, 1], (T, H, W).
        mask: pixels that are mostly its own, (T, H, W).
        pieces: separate parts per frame, (T,).
        x, y, area: of the coverage per frame in pixels, (T,), interpolated where it is not fully visible.
        present, hidden: as in ``SeenObject``.
    """

    color: Floats
    share: Floats
    mask: Mask
    pieces: Track
    x: Track
    y: Track
    area: Track
    present: Mask
    hidden: Mask


def find_objects(pixels: Floats, background: Background, canvas: Canvas) -> tuple[Blob, ...]:
    """Every object that shows, largest first.

    Args:
        pixels: (T, H, W, 3) in [0, 255].
        background: what is behind the objects.
        canvas: size of the clip.
    """
    behind = np.broadcast_to(background.pixels, pixels.shape)
    places = np.flatnonzero(background.foreground)
    colors = _object_colors(pixels, background.foreground, canvas)
    if not len(colors):
        return ()
    labels = np.full(background.foreground.shape, -1)
    flat = labels.reshape(-1)
    flat[places] = _owner(pixels.reshape(-1, 3)[places], behind.reshape(-1, 3)[places], colors)
    found = [_blob(pixels, behind, labels, index, color, canvas) for index, color in enumerate(colors)]
    seen = [blob for blob in found if blob.present.mean() >= 0.25]
    return tuple(sorted(_completed(seen), key=lambda blob: -float(blob.area.mean())))


def _small(canvas: Canvas) -> float:
    """Area of a small object in pixels."""
    return math.pi / 4 * (SIZES["small"] * canvas.short) ** 2


def _object_colors(pixels: Floats, foreground: Mask, canvas: Canvas) -> Floats:
    """The colors (n, 3) of which there are enough inner pixels, each the mean of those nearest to one name."""
    inner = eroded(foreground)
    seen = pixels[inner]
    nearest = _distances(seen, _PALETTE).argmin(-1)
    names = np.full(foreground.shape, -1)
    names[inner] = nearest
    found: list[tuple[int, Floats]] = []
    for index in range(len(_PALETTE)):
        # Inner to the foreground may still be an edge between two objects; inner to one color is not.
        own = eroded((names == index) | ~inner) & (names == index)
        count = int(own.sum())
        if count >= INNER * _small(canvas) * canvas.frames * 0.25:
            found.append((count, pixels[own].mean(0)))
    kept: list[Floats] = []
    for _, color in sorted(found, key=lambda pair: -pair[0]):
        if all(np.linalg.norm(color - other) > SAME for other in kept):
            kept.append(color)
    return np.array(kept, np.float32)


def _distances(pixels: Floats, colors: Floats) -> Floats:
    """Between colors (N, 3) and (n, 3): (N, n)."""
    return np.linalg.norm(pixels[:, None] - colors, axis=-1)


def _owner(pixels: Floats, behind: Floats, colors: Floats) -> Whole:
    """Which color (n, 3), mixed with what is behind, explains each pixel (N, 3) best; (N,)."""
    along = colors - behind[:, None]
    share = ((pixels - behind)[:, None] * along).sum(-1) / np.maximum((along**2).sum(-1), 1e-6)
    mixed = behind[:, None] + np.clip(share, 0.2, 1.0)[..., None] * along
    return np.linalg.norm(pixels[:, None] - mixed, axis=-1).argmin(-1)


def _blob(pixels: Floats, behind: Floats, labels: Whole, index: int, color: Floats, canvas: Canvas) -> Blob:
    numbers = parts(labels == index)
    sizes = np.bincount(numbers.ravel(), minlength=2)
    sizes[0] = 0
    # Noise joins pixels to threads; an object has pixels that are surrounded by its own.
    inner = numbers * eroded(labels == index)
    large = [names[sizes[names] >= SPECK * _small(canvas)] for names in map(_names, inner)]
    main = np.array([names[sizes[names].argmax()] if len(names) else -1 for names in large])
    mask = numbers == main[:, None, None]
    around = widened(mask) & ((labels == index) | (labels == -1))
    along = color - behind
    share = np.clip(((pixels - behind) * along).sum(-1) / np.maximum((along**2).sum(-1), OWN**2), 0, 1) * around
    area, x, y = moments(share)
    present = area >= SPECK * _small(canvas)
    pieces = np.array([len(names) for names in large], float)
    return Blob(color, share, mask, pieces, x, y, area, present, np.zeros(len(area), bool))


def _names(numbers: Whole) -> Whole:
    return np.unique(numbers[numbers > 0])


def _completed(blobs: list[Blob]) -> list[Blob]:
    """The blobs with hidden and missing frames filled in from the others."""
    near = [widened(blob.mask) for blob in blobs]
    whole = np.array([_whole(index, blobs, near) for index in range(len(blobs))])
    done = []
    for index, blob in enumerate(blobs):
        # Of two objects that meet, the one behind has lost more of its area.
        behind = whole[index] <= whole.min(0)
        hidden = blob.present & behind & (whole[index] < WHOLE)
        pieces = np.where(hidden, 1.0, blob.pieces)
        done.append(_filled(replace(blob, hidden=hidden, pieces=pieces), blob.present & ~hidden))
    return done


def _whole(index: int, blobs: list[Blob], near: list[Mask]) -> Floats:
    """The part of an object's usual area that shows where it touches another, 1 elsewhere; (T,)."""
    blob = blobs[index]
    others = [mask for other, mask in enumerate(near) if other != index]
    touching = (
        np.any([(near[index] & mask).any((1, 2)) for mask in others], axis=0) if others else np.zeros_like(blob.present)
    )
    apart = blob.present & ~touching
    touching = touching & blob.present
    usual = np.median(blob.area[apart]) if apart.sum() > 1 else blob.area.max()
    return np.where(touching, blob.area / max(float(usual), 1e-6), 1.0)


def _filled(blob: Blob, sure: Mask) -> Blob:
    """Tracks interpolated between sure frames; a half-hidden object at the ends of the clip is where it is seen."""
    known, every = np.flatnonzero(sure), np.arange(len(sure))
    if not len(known):
        known = np.flatnonzero(blob.present)
    trusted = sure | (blob.present & ((every < known[0]) | (every > known[-1])))
    known = np.flatnonzero(trusted)
    x, y, area = (np.interp(every, known, track[known]) for track in (blob.x, blob.y, blob.area))
    return replace(blob, x=x, y=y, area=area)
